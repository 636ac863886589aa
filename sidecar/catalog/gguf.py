"""GGUF files as models: how one is known, and where in the cache the folder made of it lies. `fetch` has it made."""

import hashlib
from pathlib import Path
from typing import Final

from sidecar.catalog.errors import CatalogError

_SUFFIX: Final = ".gguf"
_HASHED_ENDS_BYTES: Final = 1 << 20
_FP32_BYTES: Final = 4
# Config, tokenizer and headers.
_BESIDE_BYTES: Final = 50_000_000


def is_file(path: Path) -> bool:
    return path.suffix == _SUFFIX and path.is_file()


def folder(file: Path, cache: Path) -> Path:
    """Another file of the same name, or one that was changed, has another folder.

    Known by its size, its time and both its ends: to read all of it at every start would take longer than the rest.
    """
    told = file.stat()
    digest = hashlib.sha256(f"{told.st_size} {told.st_mtime_ns}".encode())
    with file.open("rb") as opened:
        digest.update(opened.read(_HASHED_ENDS_BYTES))
        opened.seek(max(0, told.st_size - _HASHED_ENDS_BYTES))
        digest.update(opened.read())
    return cache / "models" / f"{file.stem}-{digest.hexdigest()[:12]}"


def needed_bytes(file: Path) -> int:
    """What its folder takes. Raises CatalogError for a file that is none."""
    # Takes numpy along, which is for this alone.
    from gguf import GGUFReader  # noqa: PLC0415

    try:
        weights = sum(int(tensor.n_elements) for tensor in GGUFReader(file).tensors)
    except (ValueError, IndexError, KeyError, OverflowError) as exc:
        raise CatalogError(f"{file} is not a GGUF file: {exc}", "Download it again.") from exc
    return weights * _FP32_BYTES + _BESIDE_BYTES
