"""A GGUF file is converted once into the cache; another file, or a changed one, is another model."""

import os
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from sidecar.catalog import gguf
from sidecar.catalog.errors import CatalogError
from sidecar.catalog.fetch import MANIFEST, fetch, is_whole, resolve

CONVERT = """\
#!/bin/sh
[ -f "$3" ] || exit 3
mkdir "$4"
echo '{"model_type": "llama"}' > "$4/config.json"
echo '{}' > "$4/tokenizer.json"
cp "$3" "$4/model.safetensors"
"""


class Stages:
    def __init__(self) -> None:
        self.names: list[str] = []

    def stage(self, name: str) -> None:
        self.names.append(name)

    def advance(self, fraction: float) -> None:
        raise AssertionError


def write(path: Path, value: float = 1.0) -> Path:
    writer = GGUFWriter(path, "llama")
    writer.add_tensor("output.weight", np.full((8, 16), value, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small file, and a Python that plays the conversion."""
    program = tmp_path / "python"
    program.write_text(CONVERT)
    program.chmod(0o700)
    monkeypatch.setattr("sys.executable", str(program))
    return write(tmp_path / "small-Q4.gguf")


def test_a_file_is_converted_once(file: Path, tmp_path: Path) -> None:
    cache, stages = tmp_path / "cache", Stages()
    assert resolve(str(file), cache) is None
    made = fetch(str(file), cache, stages)
    assert stages.names == ["converting"]
    assert made.parent == cache / "models"
    assert made.name.startswith("small-Q4-")
    assert is_whole(made)
    assert (made / "model.safetensors").read_bytes() == file.read_bytes()
    assert str(file) in (made / MANIFEST).read_text()
    assert resolve(str(file), cache) == fetch(str(file), cache, stages) == made
    assert stages.names == ["converting"]


def test_a_changed_file_is_another_model(file: Path, tmp_path: Path) -> None:
    before = gguf.folder(file, tmp_path)
    told = file.stat()
    write(file, value=2.0)
    os.utime(file, ns=(told.st_atime_ns, told.st_mtime_ns))
    changed = gguf.folder(file, tmp_path)
    assert before != changed
    os.utime(file, ns=(told.st_atime_ns, told.st_mtime_ns + 1))
    assert gguf.folder(file, tmp_path) not in {before, changed}


def test_a_file_that_is_something_else_is_refused(tmp_path: Path, file: Path) -> None:
    file.write_bytes(b"GG" * 100)
    with pytest.raises(CatalogError, match="is not a GGUF file"):
        fetch(str(file), tmp_path / "cache", Stages())
    assert not [path for path in (tmp_path / "cache" / "models").iterdir() if path.is_dir()]


def test_a_disk_that_is_too_small_is_told(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gguf.needed_bytes(file) == 8 * 16 * 4 + 50_000_000
    monkeypatch.setattr(gguf, "needed_bytes", lambda _: 1 << 60)
    with pytest.raises(CatalogError, match=r"small-Q4\.gguf needs"):
        fetch(str(file), tmp_path / "cache", Stages())


def test_a_file_that_is_not_there_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="is not a folder"):
        resolve(str(tmp_path / "none.gguf"), tmp_path)
