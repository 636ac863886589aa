"""What a model folder must be before anything of it is loaded."""

import json
from pathlib import Path

import pytest

from sidecar.catalog.errors import CatalogError
from sidecar.catalog.folder import check_folder, weight_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    return tmp_path


def refusal(folder: Path) -> str:
    with pytest.raises(CatalogError) as caught:
        check_folder(folder)
    assert caught.value.hint
    return caught.value.message


def test_a_folder_with_everything_passes(folder: Path) -> None:
    check_folder(folder)


def test_no_folder(tmp_path: Path) -> None:
    assert "is not a folder" in refusal(tmp_path / "absent")


@pytest.mark.parametrize(("name", "message"), [("config.json", "config.json"), ("tokenizer.json", "tokenizer.json")])
def test_a_missing_file_is_named(folder: Path, name: str, message: str) -> None:
    (folder / name).unlink()
    assert refusal(folder).endswith(f"has no {message}")


@pytest.mark.parametrize(
    ("config", "message"),
    [("{", "is not JSON"), ("[]", "is not a JSON object"), ("{}", "has no model_type"), ("[" * 5000, "is not JSON")],
)
def test_a_config_that_is_none(folder: Path, config: str, message: str) -> None:
    (folder / "config.json").write_text(config)
    assert message in refusal(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_c8_code_in_the_folder_is_refused(folder: Path, name: str) -> None:
    (folder / name).write_text(json.dumps({"model_type": "x", "auto_map": {"AutoModel": "evil.Model"}}))
    assert "would run code" in refusal(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl"])
def test_c8_pickled_weights_are_refused(folder: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"")
    message = refusal(folder)
    assert name in message
    assert "runs code" in message


def test_no_weights_at_all(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "has no model.safetensors" in refusal(folder)


def shard(folder: Path, weight_map: object) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_shards_must_all_be_there(folder: Path) -> None:
    shard(folder, {"a": "model-1.safetensors", "b": "model-2.safetensors"})
    (folder / "model-1.safetensors").write_bytes(b"")
    assert "has no model-2.safetensors" in refusal(folder)
    (folder / "model-2.safetensors").write_bytes(b"")
    check_folder(folder)
    # As Mistral's own format has them, once more.
    (folder / "consolidated.safetensors").write_bytes(b"")
    assert [path.name for path in weight_files(folder)] == ["model-1.safetensors", "model-2.safetensors"]


@pytest.mark.parametrize("weight_map", [None, {}, {"a": "../model.safetensors"}, {"a": "model.bin"}, {"a": 1}])
def test_c8_an_index_that_points_elsewhere_is_refused(folder: Path, weight_map: object) -> None:
    shard(folder, weight_map)
    assert "does not name safetensors files beside it" in refusal(folder)
