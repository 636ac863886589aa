"""The socket is this user's alone, and only a dead one is removed to make place for it."""

import io
import json
import os
import socket
import stat
from pathlib import Path

import pytest

from sidecar.api.listener import SocketUnusableError, close_socket, open_socket, peer_uid
from sidecar.jsonlog import JsonLog


@pytest.fixture
def log() -> JsonLog:
    return JsonLog(io.StringIO())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_f14_the_folder_is_0700_and_the_socket_0600(tmp_path: Path, log: JsonLog) -> None:
    path = tmp_path / "run" / "s.sock"
    previous = os.umask(0)
    try:
        listening = open_socket(path, log)
    finally:
        os.umask(previous)
    assert (mode(path.parent), mode(path)) == (0o700, 0o600)
    close_socket(listening, path)
    assert not path.exists()


def test_a_socket_nobody_listens_on_is_replaced(tmp_path: Path, log: JsonLog) -> None:
    path = tmp_path / "s.sock"
    dead = open_socket(path, log)
    dead.close()
    close_socket(open_socket(path, log), path)


def test_f14_a_socket_in_use_is_left_alone(tmp_path: Path, log: JsonLog) -> None:
    path = tmp_path / "s.sock"
    listening = open_socket(path, log)
    with pytest.raises(SocketUnusableError, match="another sidecar is listening"):
        open_socket(path, log)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    close_socket(listening, path)


def test_a_file_in_the_socket_s_place_is_left_alone(tmp_path: Path, log: JsonLog) -> None:
    path = tmp_path / "s.sock"
    path.write_text("mine")
    with pytest.raises(SocketUnusableError, match="not a socket"):
        open_socket(path, log)
    assert path.read_text() == "mine"


def test_f14_a_folder_that_others_may_write_is_refused(tmp_path: Path, log: JsonLog) -> None:
    tmp_path.chmod(0o770)
    with pytest.raises(SocketUnusableError, match="chmod 700"):
        open_socket(tmp_path / "s.sock", log)


def test_a_folder_that_others_may_read_is_told_of(tmp_path: Path) -> None:
    output = io.StringIO()
    tmp_path.chmod(0o755)
    path = tmp_path / "s.sock"
    close_socket(open_socket(path, JsonLog(output)), path)
    assert json.loads(output.getvalue())["event"] == "socket_folder_open"


def test_a_path_too_long_for_a_socket_is_named(tmp_path: Path, log: JsonLog) -> None:
    with pytest.raises(SocketUnusableError, match="107 bytes"):
        open_socket(tmp_path / ("s" * 100) / "s.sock", log)


def test_f14_a_peer_is_known_by_its_user() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert peer_uid(ours) == os.getuid()
