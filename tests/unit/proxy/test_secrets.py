"""The root secret: made once, whole, for its owner alone; and what is derived from it."""

import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from proxy.secrets import API_KEY_MAC, RootSecret, SecretFileError, ensure_root_secret, read_root_secret


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def test_it_is_made_once_and_read_from_then_on(tmp_path: Path) -> None:
    path = tmp_path / "data/root.secret"
    made = ensure_root_secret(path)
    assert len(made.root) == 32
    assert ensure_root_secret(path) == read_root_secret(path) == made
    assert ensure_root_secret(tmp_path / "other") != made


@pytest.mark.usefixtures("open_umask")
def test_it_is_its_owners_alone_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "data/root.secret"
    ensure_root_secret(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [entry.name for entry in path.parent.iterdir()] == ["root.secret"]


def test_of_many_that_start_together_all_read_the_same(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        secrets = set(pool.map(ensure_root_secret, [tmp_path / "root.secret"] * 8))
    assert len(secrets) == 1
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_one_that_others_may_use_is_refused_with_what_to_do(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "root.secret"
    ensure_root_secret(path)
    path.chmod(mode)
    with pytest.raises(SecretFileError, match=f"chmod 600 {path}"):
        ensure_root_secret(path)


@pytest.mark.parametrize("data", [b"", b"x" * 31, b"x" * 33])
def test_one_of_another_length_is_refused_and_left_alone(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "root.secret"
    path.write_bytes(data)
    path.chmod(0o600)
    with pytest.raises(SecretFileError, match=f"holds {len(data)} bytes instead of 32"):
        ensure_root_secret(path)
    assert path.read_bytes() == data


def test_a_missing_one_is_not_made_by_reading(tmp_path: Path) -> None:
    with pytest.raises(SecretFileError, match="No such file"):
        read_root_secret(tmp_path / "root.secret")
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SecretFileError, match="directory"):
        ensure_root_secret(tmp_path)
    with pytest.raises(SecretFileError, match="not a regular file"):
        ensure_root_secret(Path(os.devnull))


def test_a_folder_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SecretFileError, match="cannot be used"):
        ensure_root_secret(tmp_path / "file/root.secret")


def test_a11_each_purpose_has_a_secret_of_its_own() -> None:
    root = RootSecret(bytes(range(32)))
    assert root.derive(API_KEY_MAC) == root.derive(API_KEY_MAC)
    assert root.derive(API_KEY_MAC) != root.derive("tollhouse/cursor/v1")
    assert root.derive(API_KEY_MAC) != RootSecret(bytes(32)).derive(API_KEY_MAC)


def test_a11_a_derived_secret_never_changes_with_the_version() -> None:
    # RFC 5869, HKDF-Expand with one block: HMAC-SHA256(root, info || 0x01). A change here would end every key.
    derived = RootSecret(bytes(range(32))).derive(API_KEY_MAC)
    assert derived.hex() == "96ff3287ba77952d72c8f32967be2c96efc5049520afddea0cff4086dc75f14c"


def test_a4_it_does_not_show_itself() -> None:
    assert "x" * 32 not in repr(RootSecret(b"x" * 32))
