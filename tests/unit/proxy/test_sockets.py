"""What is listened on: private from birth, and never somebody else's."""

import socket
import stat
from pathlib import Path

import pytest

from proxy.sockets import ListenError, bind_tcp, bind_unix, is_loopback, listen, url


def test_f14_a_unix_socket_is_private_and_so_is_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "run/a.sock"
    with bind_unix(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_f14_a_socket_that_nobody_answers_on_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    bind_unix(path).close()
    assert path.exists()
    bind_unix(path).close()


def test_f14_a_socket_that_is_answered_on_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with bind_unix(path) as mine:
        mine.listen()
        with pytest.raises(ListenError, match="another process listens there"):
            bind_unix(path)
        assert path.exists()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    path.write_text("precious")
    with pytest.raises(ListenError, match="no socket"):
        bind_unix(path)
    assert path.read_text() == "precious"


def test_a_port_in_use_is_told_by_its_address() -> None:
    with bind_tcp("127.0.0.1", 0) as first:
        first.listen()
        port = first.getsockname()[1]
        with pytest.raises(ListenError, match=f"127.0.0.1:{port}: another process"):
            bind_tcp("127.0.0.1", port)


def test_one_port_for_two_that_do_not_listen_yet_is_told_to_the_second() -> None:
    with bind_tcp("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with bind_tcp("127.0.0.1", port) as second:
            listen(first, 1)
            with pytest.raises(ListenError, match=f"127.0.0.1:{port}: another process"):
                listen(second, 1)


def test_an_address_that_is_not_ours_is_told() -> None:
    with pytest.raises(ListenError, match="not an address of this machine"):
        bind_tcp("192.0.2.1", 0)


def test_an_ipv6_address_works_where_there_is_ipv6() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    with bind_tcp("::1", 0) as bound:
        assert bound.family == socket.AF_INET6


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),  # noqa: S104
        ("::", "http://[::1]:80"),
        ("::1", "http://[::1]:80"),
        ("box.example", "http://box.example:80"),
    ],
)
def test_an_address_is_one_that_a_client_here_can_use(host: str, expected: str) -> None:
    assert url(host, 80) == expected


@pytest.mark.parametrize(
    ("host", "loopback"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("192.0.2.1", False), ("x", False)]
)
def test_a_loopback_address_is_known(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
