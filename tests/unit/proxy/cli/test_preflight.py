"""What is in the way of a start is said before anything slow, with what to do about it."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.cli import listeners, preflight
from proxy.cli.checks import disk
from proxy.cli.exits import CommandError, Exit
from proxy.cli.sidecar_command import SidecarConfig, SidecarModel
from proxy.settings import Admin, Listen, Proxy, Upstream

MODEL = SidecarModel(id="m", source="m")
CONFIG = Path("conf/sidecar.yaml")


def settings(port: int = 0, admin_port: int = 0, host: str = "127.0.0.1") -> Proxy:
    return Proxy(
        upstreams=[Upstream(name="local", socket="run/s.sock")],
        listen=Listen(host=host, port=port),
        admin=Admin(port=admin_port, socket="run/a.sock"),
    )


SIDECAR = SidecarConfig(model=MODEL, socket="run/s.sock")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    return tmp_path


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def listening(path: str) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()
    return server


def test_an_empty_folder_is_ready() -> None:
    preflight.check_ready_to_start(settings(), SIDECAR, CONFIG)


@pytest.mark.parametrize(("path", "said"), [("run/a.sock", "Tollhouse runs here"), ("run/s.sock", "sidecar runs")])
def test_a_server_that_runs_already_is_named(path: str, said: str) -> None:
    with listening(path), pytest.raises(CommandError, match=said) as refused:
        preflight.check_ready_to_start(settings(), SIDECAR, CONFIG)
    assert path in refused.value.message
    assert refused.value.hint


@pytest.mark.parametrize("path", ["run/a.sock", "run/s.sock"])
def test_a_socket_that_was_left_over_is_no_hindrance(path: str) -> None:
    listening(path).close()
    preflight.check_ready_to_start(settings(), SIDECAR, CONFIG)
    assert listeners.is_socket(Path(path))


@pytest.mark.parametrize("path", ["run/a.sock", "run/s.sock"])
def test_a_file_in_a_socket_s_place_is_not_touched(path: str) -> None:
    Path(path).write_text("precious")
    with pytest.raises(CommandError, match="something else lies there"):
        preflight.check_ready_to_start(settings(), SIDECAR, CONFIG)
    assert Path(path).read_text() == "precious"


def test_a_socket_path_that_the_kernel_cannot_hold_is_refused() -> None:
    with pytest.raises(CommandError, match="too long"):
        preflight.check_socket(Path("run/" + "x" * 104))
    preflight.check_socket(Path("run/" + "x" * 103))


def test_a_socket_that_cannot_be_used_is_not_taken_for_none() -> None:
    Path("run/a.sock").symlink_to("a.sock")
    with pytest.raises(CommandError, match=r"run/a\.sock cannot be used") as refused:
        listeners.socket_answers(Path("run/a.sock"))
    assert refused.value.code is Exit.NOT_REACHABLE


def test_a_taken_port_is_told_with_a_way_out(taken_port: int) -> None:
    with pytest.raises(CommandError, match=f"127.0.0.1:{taken_port}: another process listens there") as refused:
        preflight.check_ready_to_start(settings(port=taken_port), SIDECAR, CONFIG)
    assert f"TOLLHOUSE__LISTEN__PORT={taken_port + 10} tollhouse up" in refused.value.hint
    with pytest.raises(CommandError) as refused:
        preflight.check_ready_to_start(settings(admin_port=taken_port), SIDECAR, CONFIG)
    assert "TOLLHOUSE__ADMIN__PORT=" in refused.value.hint


def test_an_address_of_another_machine_is_refused() -> None:
    # TEST-NET-1 of RFC 5737 is nobody's.
    with pytest.raises(CommandError, match=r"192\.0\.2\.1 is not an address of this machine") as refused:
        preflight.check_ready_to_start(settings(host="192.0.2.1"), SIDECAR, CONFIG)
    assert "TOLLHOUSE__LISTEN__HOST=127.0.0.1 tollhouse up" in refused.value.hint
    assert "PORT" not in refused.value.hint


def test_a_sidecar_that_the_proxy_does_not_know_is_told_with_both_paths() -> None:
    with pytest.raises(CommandError) as refused:
        preflight.check_ready_to_start(settings(), SidecarConfig(model=MODEL, socket="run/other.sock"), CONFIG)
    assert "run/other.sock (conf/sidecar.yaml)" in refused.value.message
    assert "run/s.sock" in refused.value.message


def test_a_full_disk_is_told_before_anything_is_started(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "LEAST_BYTES", 1 << 62)
    with pytest.raises(CommandError, match=f"The disk of {here} is full") as refused:
        preflight.check_ready_to_start(settings(), SIDECAR, CONFIG)
    assert "Free " in refused.value.hint
