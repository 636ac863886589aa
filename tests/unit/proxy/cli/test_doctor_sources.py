"""What the doctor says of a model that the operator brought: what the sidecar's own command says, which is run here."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from proxy.cli import root


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/proxy.yaml").write_text("upstreams: [{name: local, socket: run/s.sock}]\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def folder(here: Path) -> Path:
    """A folder with all that there must be, and 20 weights."""
    own = here / "own"
    own.mkdir()
    (own / "config.json").write_text('{"model_type": "llama"}')
    (own / "tokenizer.json").write_text("{}")
    header = json.dumps({"w": {"dtype": "F32", "shape": [2, 10], "data_offsets": [0, 80]}}).encode()
    (own / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(80))
    return own


def examined(
    capsys: pytest.CaptureFixture[str], source: str, code: int = 0, more: str = ""
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The checks `model` and `room`."""
    Path("conf/sidecar.yaml").write_text(f"model: {{id: m, source: {source}}}\ncache: cache\n{more}")
    assert root.run(["--json", "doctor", "--only", "model", "--only", "room"]) == code
    model, room = json.loads(capsys.readouterr().out)["checks"]
    return model, room


def test_a_folder_that_can_be_used_is_well(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for source in ("own", str(folder)):
        model, room = examined(capsys, source)
        assert (model["status"], model["message"]) == ("ok", source)
        assert "0 million weights in fp32" in room["message"]


@pytest.mark.parametrize("source", ["/srv/models/absent", "/models/absent.gguf", "models/absent", "absent"])
def test_a_source_that_is_not_there_is_a_failure(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    model, room = examined(capsys, source, code=1)
    assert model["status"] == "fail"
    assert source in model["message"]
    assert model["hint"]
    assert (room["status"], room["message"]) == ("ok", "to be seen once the model is here")


def test_what_the_sidecar_refuses_is_a_failure_with_its_words(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "tokenizer.json").unlink()
    model, _ = examined(capsys, "own", code=1)
    assert (model["status"], model["message"]) == ("fail", "own has no tokenizer.json")
    assert "save_pretrained" in model["hint"]
    (folder / "tokenizer.json").write_text("{}")
    (folder / "config.json").write_text('{"model_type": "x", "auto_map": {}}')
    model, _ = examined(capsys, "own", code=1)
    assert "would run code" in model["message"]


def test_weights_in_pickles_are_a_failure_and_not_none_at_all(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    model, room = examined(capsys, "own", code=1)
    assert "pytorch_model.bin" in model["message"]
    assert "weights" not in room["message"]


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 80\n"


@pytest.mark.parametrize("content", [b"", POINTER, struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 2) + b"{}"])
def test_weights_that_cannot_be_read_are_a_failure(
    folder: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "model.safetensors").write_bytes(content)
    _, room = examined(capsys, "own", code=1)
    assert (room["status"], room["message"]) == ("fail", "no weights can be read from own/model.safetensors")


def test_a_gguf_file_is_to_be_converted(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = here / "small.gguf"
    file.write_bytes(b"GGUF")
    model, room = examined(capsys, str(file))
    assert (model["status"], model["message"]) == ("warn", f"{file} is not converted yet")
    assert "model fetch" in model["hint"]
    assert room["message"] == "to be seen once the model is here"


def test_the_embedding_model_is_looked_at_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, _ = examined(capsys, "own", code=1, more="embedding: {id: e, source: absent}\n")
    assert (model["status"], model["message"]) == ("fail", "there is no model 'absent'")
