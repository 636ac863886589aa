"""The root secret: 32 random bytes in a 0600 file outside the database, from which every other secret is derived.

One purpose, one derived secret (HKDF-Expand, RFC 5869): what leaks from one use is no help against another. Nothing
here knows what the derived secrets are for. Reading blocks: call it at start.
"""

import contextlib
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

ROOT_BYTES: Final = 32
DERIVED_BYTES: Final = 32
API_KEY_MAC: Final = "tollhouse/apikey-mac/v1"
IDEMPOTENCY: Final = "tollhouse/idempotency/v1"
_FOLDER_MODE: Final = 0o700
_OTHERS: Final = 0o077


class SecretFileError(Exception):
    """The root secret cannot be used. The message says which file, what is wrong with it and what to do."""


@dataclass(frozen=True, slots=True)
class RootSecret:
    """The root: it only derives. Uniform random bytes need no extract step."""

    root: bytes = field(repr=False)

    def derive(self, purpose: str) -> bytes:
        """The secret for one purpose, `tollhouse/<purpose>/v<n>`: 32 bytes, always the same."""
        return HKDFExpand(algorithm=SHA256(), length=DERIVED_BYTES, info=purpose.encode()).derive(self.root)


def is_made(path: Path) -> bool:
    """Whether there is such a file. Raises SecretFileError if that cannot be told."""
    with _explained(path):
        return path.exists()


def ensure_root_secret(path: Path) -> RootSecret:
    """Read the root secret; make it first if there is no such file. Raises SecretFileError."""
    with _explained(path):
        if not path.exists():
            _make(path)
    return read_root_secret(path)


def read_root_secret(path: Path) -> RootSecret:
    """Raises SecretFileError: also for a file that others than its owner may read."""
    with _explained(path), path.open("rb") as file:
        # Judged by the descriptor, so that what is judged is what is read.
        found = os.fstat(file.fileno())
        _check(path, found)
        root = file.read(ROOT_BYTES + 1)
    if len(root) != ROOT_BYTES:
        raise SecretFileError(f"{path}: holds {found.st_size} bytes instead of {ROOT_BYTES}; restore it from a backup")
    return RootSecret(root)


def _check(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise SecretFileError(f"{path}: is not a regular file")
    if found.st_mode & _OTHERS:
        mode = stat.S_IMODE(found.st_mode)
        raise SecretFileError(f"{path}: others may use it (mode {mode:04o}); run: chmod 600 {path}")
    if found.st_uid not in {os.geteuid(), 0}:
        raise SecretFileError(f"{path}: belongs to user {found.st_uid}; run: chown {os.geteuid()} {path}")


def _make(path: Path) -> None:
    """Whole or not at all, and only once: of two processes that start together one makes it and both read it."""
    path.parent.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
    # mkstemp makes the file 0600 whatever the umask.
    descriptor, made = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(ROOT_BYTES))
            file.flush()
            os.fsync(file.fileno())
        # Unlike a rename, a link never replaces what another process just made.
        with contextlib.suppress(FileExistsError):
            os.link(made, path)
        _sync_folder(path.parent)
    finally:
        Path(made).unlink()


def _sync_folder(folder: Path) -> None:
    """The name must survive a power cut too: keys are in the database that only this secret can check."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise SecretFileError(f"{path}: cannot be used: {exc.strerror}") from exc
