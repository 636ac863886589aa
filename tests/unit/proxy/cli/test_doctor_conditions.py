"""Each of the doctor's checks, on a machine or a house that has the very condition it looks for."""

import datetime as dt
import json
import os
import shutil
import socket
import sqlite3
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from msgspec import structs

from proxy.cli import root
from proxy.cli.checks import disk, gpu, house, machine, model, stores, traces, upstreams
from proxy.cli.checks.check import Case, Check, Status
from proxy.cli.checks.gpu import Torch
from proxy.cli.sidecar_command import SidecarConfig, SidecarEngine, SidecarModel
from proxy.settings import Admin, Database, Limits, Listen, Proxy, Replay, Timeouts, Upstream, Valkey
from tests.fakes import valkey
from tests.fakes.server_state import server_state

ROOT = Path(__file__).parents[4]
CPU, CUDA = Torch("2.13.0+cpu", None), Torch("2.13.0", (13, 0))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(ROOT / "policies", tmp_path / "policies")
    for name in ("conf", "run", "data"):
        (tmp_path / name).mkdir(mode=0o700)
    (tmp_path / "conf/proxy.yaml").write_text("upstreams: [{name: local, socket: run/s.sock}]\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def a_case(engine: SidecarEngine | None = None, **settings: object) -> Case:
    plain = Proxy(upstreams=[Upstream(name="local", socket="run/s.sock")], listen=Listen(port=0), admin=Admin(port=0))
    sidecar = SidecarConfig(
        model=SidecarModel(id="m", source="m"),
        socket="run/s.sock",
        cache="cache",
        engine=engine or SidecarEngine(),
    )
    return Case(Path("conf/proxy.yaml"), structs.replace(plain, **settings), Path("conf/sidecar.yaml"), sidecar)


def told(check: Check, status: Status, *words: str) -> None:
    """A finding that is not well says what to do."""
    assert check.status is status, check
    assert all(word in f"{check.message} {check.hint}" for word in words), check
    assert bool(check.hint) is (status is not Status.OK)


def test_a_port_that_somebody_has_is_a_failure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        check = house.check_ports(a_case(listen=Listen(port=port)))
    told(check, Status.FAILED, f"127.0.0.1:{port}", "another process listens there", "listen.port")


def test_an_address_of_another_machine_is_a_failure_of_the_host() -> None:
    # TEST-NET-1 of RFC 5737 is nobody's.
    check = house.check_ports(a_case(listen=Listen(host="192.0.2.1", port=0)))
    told(check, Status.FAILED, "192.0.2.1 is not an address of this machine", "listen.host in conf/proxy.yaml")
    assert "port" not in check.hint
    assert "process" not in check.hint


def test_policies_that_everybody_may_change_are_a_failure(here: Path) -> None:
    (here / "policies/default.yaml").chmod(0o646)
    told(house.check_permissions(a_case()), Status.FAILED, "may change", "chmod o-w policies/default.yaml")


def test_policies_that_are_mounted_read_only_are_nobodys_to_change(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "policies").chmod(0o777)
    told(house.check_permissions(a_case()), Status.FAILED, "may change policies", "chmod o-w policies")
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=os.ST_RDONLY))
    told(house.check_permissions(a_case()), Status.OK)


def test_files_of_another_user_are_a_failure(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: here.stat().st_uid + 1)
    told(house.check_permissions(a_case()), Status.FAILED, "another user owns data, run", "chown")


@pytest.fixture
def volumes(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders of root's, as a container's volumes have them, with files of this user's."""
    (here / "data/root.secret").write_bytes(bytes(32))
    (here / "data/root.secret").chmod(0o600)
    (here / "data/tollhouse.db").touch(0o600)
    for folder in ("data", "run"):
        (here / folder).chmod(0o2775)
    user = here.stat().st_uid + 1 if os.geteuid() == 0 else os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setattr(house, "_owner", lambda path: 0 if path.is_dir() else user)
    return here


def test_a_volume_s_root_is_root_s_and_its_group_s(volumes: Path) -> None:
    told(house.check_permissions(a_case()), Status.OK)
    (volumes / "data/tollhouse.db").chmod(0o640)
    told(house.check_permissions(a_case()), Status.FAILED, "others on this machine have access to data/tollhouse.db")


def test_a_folder_of_root_s_that_all_may_write_is_a_failure_unless_it_is_a_volume(
    volumes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (volumes / "data").chmod(0o2777)
    told(house.check_permissions(a_case()), Status.FAILED, "another user owns data")
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "data")
    told(house.check_permissions(a_case()), Status.OK)


def may(path: Path, mode: int) -> bool:
    """What `os.access` says to a file's owner who is not root."""
    return Path(path).exists() and Path(path).stat().st_mode >> 6 & mode == mode


@pytest.mark.parametrize(("closed", "mode"), [("data/tollhouse.db", 0o400), ("data", 0o500)])
def test_a_database_that_is_not_to_be_written_is_a_failure_and_is_left_as_it_is(
    here: Path, monkeypatch: pytest.MonkeyPatch, closed: str, mode: int
) -> None:
    assert root.run(["-q", "db", "upgrade"]) == 0
    before = sorted(Path("data").iterdir())
    (here / closed).chmod(mode)
    monkeypatch.setattr(os, "access", may)
    told(house.check_permissions(a_case()), Status.FAILED, f"may not write {closed}", f"chmod u+rwX {closed}")
    told(house.check_database(a_case()), Status.FAILED, f"may not write {closed}")
    told(house.check_ledger(a_case()), Status.FAILED, f"may not write {closed}", "`permissions`")
    assert sorted(Path("data").iterdir()) == before
    (here / closed).chmod(mode | 0o200)
    told(house.check_permissions(a_case()), Status.OK)


def test_books_that_cannot_be_read_are_not_the_doctor_s_to_look_for_in_the_doctor() -> None:
    url = "postgresql+asyncpg://user:secret@127.0.0.1:1/x"
    check = house.check_ledger(a_case(database=Database(url=url)))
    told(check, Status.FAILED, "`database`")
    assert "doctor" not in check.hint


def test_a_database_that_is_no_database_is_told_with_its_place(here: Path) -> None:
    (here / "data/tollhouse.db").write_bytes(b"a letter to my mother\n" * 100)
    told(house.check_database(a_case()), Status.FAILED, "data/tollhouse.db", "not a database", "database.url")


def test_another_program_s_database_is_left_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with sqlite3.connect("data/tollhouse.db") as database:
        database.execute("CREATE TABLE recipes (dish TEXT)")
    database.close()
    before = (here / "data/tollhouse.db").read_bytes()
    told(house.check_database(a_case()), Status.FAILED, "tables of another program (recipes)", "database.url")
    assert root.run(["db", "upgrade"]) == 1
    assert "recipes" in capsys.readouterr().err
    assert (here / "data/tollhouse.db").read_bytes() == before


def test_a_database_of_a_newer_version_is_not_to_be_upgraded(capsys: pytest.CaptureFixture[str]) -> None:
    assert root.run(["-q", "db", "upgrade"]) == 0
    with sqlite3.connect("data/tollhouse.db") as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    database.close()
    capsys.readouterr()
    check = house.check_database(a_case())
    told(check, Status.FAILED, "schema 9999", "a newer Tollhouse has upgraded it", "restore a backup")
    assert root.run(["db", "current"]) == 0
    said = capsys.readouterr().out
    assert "a newer Tollhouse has upgraded it" in said
    assert "db upgrade" not in f"{said} {check.hint}"


def test_a_postgres_that_is_away_is_a_failure() -> None:
    url = "postgresql+asyncpg://user:secret@127.0.0.1:1/x"
    check = house.check_database(a_case(database=Database(url=url)))
    told(check, Status.FAILED, "127.0.0.1", "database.url")
    assert "secret" not in check.message


def test_few_open_files_are_a_warning_with_the_number_that_is_needed() -> None:
    case = a_case(limits=Limits(max_connections=1000))
    told(house.check_files(case, hard=256), Status.WARNING, "1000 connections", "enough for 96", "LimitNOFILE=2064")
    told(house.check_files(case, hard=2064), Status.OK, "2064")
    told(house.check_files(case, hard=-1), Status.OK)


NOW = dt.datetime(2027, 1, 31, tzinfo=dt.UTC)


def test_a_clock_of_the_past_is_a_failure() -> None:
    past = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    told(stores.check_clock(a_case(), past, kept=True), Status.FAILED, "1970", "set-ntp")


def test_a_clock_that_nobody_keeps_matters_where_others_compare(here: Path) -> None:
    told(stores.check_clock(a_case(), NOW, kept=True), Status.OK, "synchronised")
    told(stores.check_clock(a_case(), NOW, kept=False), Status.OK)
    shared = a_case(valkey=Valkey(url="valkey://127.0.0.1:1"))
    told(stores.check_clock(shared, NOW, kept=False), Status.WARNING, "several proxies", "set-ntp")
    policy = here / "policies/default.yaml"
    policy.write_text(policy.read_text().replace("    priority: 10\n", "    priority: 10\n    replay: signed\n"))
    told(stores.check_clock(a_case(), NOW, kept=False), Status.WARNING, "sign requests")


def test_the_kernel_is_asked_about_the_clock() -> None:
    assert stores.check_clock(a_case()).status is Status.OK


@pytest.fixture
def evicting() -> Iterator[valkey.ValkeyServer]:
    with valkey.running("allkeys-lru") as server:
        yield server


def test_a_valkey_that_forgets_is_a_failure_where_nonces_are_and_else_well(
    evicting: valkey.ValkeyServer,
) -> None:
    # As long as a busy machine may keep the answer.
    there = {"valkey": Valkey(url=evicting.url), "timeouts": Timeouts(connect_s=30.0)}
    told(stores.check_valkey(a_case(**there)), Status.OK, "answers")
    case = a_case(**there, replay=Replay(store="valkey"))
    told(stores.check_valkey(case), Status.FAILED, "allkeys-lru", "config set maxmemory-policy noeviction")


def test_a_valkey_that_is_away_is_a_warning_and_where_nonces_are_a_failure() -> None:
    away = Valkey(url="valkey://:secret@127.0.0.1:1/0")
    check = stores.check_valkey(a_case(valkey=away))
    told(check, Status.WARNING, "127.0.0.1", "valkey.url")
    assert "secret" not in check.message
    told(stores.check_valkey(a_case(valkey=away, replay=Replay(store="valkey"))), Status.FAILED)
    told(stores.check_valkey(a_case(replay=Replay(store="valkey"))), Status.FAILED, "no address")
    told(stores.check_valkey(a_case()), Status.OK, "none")


@pytest.mark.parametrize(
    ("torch", "speaks", "there", "status", "said"),
    [
        (CPU, None, False, Status.OK, "models run on the CPU"),
        (None, None, False, Status.OK, "torch is not installed"),
        (CPU, (13, 0), True, Status.WARNING, "TOLLHOUSE_TORCH=cuda"),
        (None, (13, 0), True, Status.WARNING, "torch is not installed"),
        (CUDA, None, True, Status.FAILED, "libcuda.so.1"),
        (CUDA, (12, 8), True, Status.FAILED, "CUDA 12.8 by the driver, torch 2.13.0 for CUDA 13.0"),
        (CUDA, (13, 1), True, Status.OK, "CUDA 13.1"),
    ],
)
def test_driver_and_torch_fit_or_not(
    torch: Torch | None, speaks: tuple[int, int] | None, there: bool, status: Status, said: str
) -> None:
    told(gpu.judged(torch, speaks, there=there, devices=()), status, said)


def test_a_gpu_that_this_user_may_not_use_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = tmp_path / "nvidia0"
    device.touch()
    monkeypatch.setattr(gpu.os, "access", lambda *_: False)
    told(gpu.judged(CUDA, (13, 0), there=True, devices=(device,)), Status.FAILED, "nvidia0", "group")


def test_the_build_of_torch_is_read_without_importing_it(tmp_path: Path) -> None:
    file = tmp_path / "version.py"
    file.write_text("__version__ = '2.13.0'\ncuda: Optional[str] = '12.8'\n")
    assert gpu.torch_build(file) == Torch("2.13.0", (12, 8))
    file.write_text("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\n")
    assert gpu.torch_build(file) == CPU
    assert gpu.torch_build(tmp_path / "none.py") is None


def test_what_is_installed_here_is_found() -> None:
    found = gpu.torch_build()
    assert found is not None
    assert found.version.startswith("2.")


@pytest.mark.parametrize(
    ("precision", "features", "status", "said"),
    [
        ("bf16", {"avx2"}, Status.WARNING, "runs as fp32"),
        ("bf16", {"bf16"}, Status.OK, "bf16 on the CPU"),
        ("fp16", {"bf16"}, Status.WARNING, "no fp16 instructions"),
        ("int8", {"avx2"}, Status.OK, "7 bits"),
        ("int8", {"vnni"}, Status.OK, "int8 on the CPU"),
        ("fp32", {"vnni"}, Status.OK, "two to three times"),
        ("nf4", {"vnni"}, Status.WARNING, "saves memory, not time"),
        ("bf16", None, Status.OK, "bf16 on the CPU"),
    ],
)
def test_a_precision_that_the_cpu_does_badly_is_told(
    precision: str, features: set[str] | None, status: Status, said: str
) -> None:
    told(model.judged(precision, None if features is None else frozenset(features)), status, said)


def test_a_gpu_that_is_left_idle_is_told_with_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "is_there", lambda: True)
    monkeypatch.setattr(gpu, "torch_build", lambda: CUDA)
    monkeypatch.setattr(gpu, "driver_cuda", lambda: (13, 0))
    monkeypatch.setattr(gpu, "DEVICES", ())
    told(model.check_device(a_case()), Status.WARNING, "engine.device: cuda in conf/sidecar.yaml", "bf16")
    told(model.check_device(a_case(SidecarEngine(device="cuda"))), Status.OK)
    # One that this torch cannot use is the check gpu's to tell.
    monkeypatch.setattr(gpu, "torch_build", lambda: CPU)
    told(model.check_device(a_case()), Status.OK)
    monkeypatch.setattr(gpu, "is_there", lambda: False)
    told(model.check_device(a_case()), Status.OK)


def test_a_gpu_that_is_asked_for_and_not_there_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    case = a_case(SidecarEngine(precision="bf16", device="cuda"))
    monkeypatch.setattr(gpu, "is_there", lambda: False)
    told(model.check_precision(case), Status.FAILED, "no NVIDIA driver")
    monkeypatch.setattr(gpu, "is_there", lambda: True)
    monkeypatch.setattr(gpu, "torch_build", lambda: CPU)
    told(model.check_precision(case), Status.FAILED, "without CUDA")
    monkeypatch.setattr(gpu, "torch_build", lambda: CUDA)
    told(model.check_precision(case), Status.OK)
    whole = a_case(SidecarEngine(precision="int8", device="cuda"))
    told(model.check_precision(whole), Status.FAILED, "bnb_int8")


def listed(monkeypatch: pytest.MonkeyPatch, *weights: str, **row: object) -> None:
    whole = {"name": "m", "path": None, **row}
    configured = [{"source": "m", "path": whole["path"], "weights": weights, "error": None}]
    listing = json.dumps({"rows": [whole], "configured": configured}).encode()
    monkeypatch.setattr(model.sidecar_command, "ask_sidecar_command", lambda *_: listing)


def test_a_model_that_was_changed_on_disk_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    listed(monkeypatch, path="/cache/m", damaged=["model.safetensors"])
    told(model.check_model(a_case()), Status.FAILED, "model.safetensors", "rm -r /cache/m", "tollhouse model fetch")


def test_a_disk_without_room_for_the_model_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    listed(monkeypatch, needed_bytes=1 << 62)
    told(model.check_model(a_case()), Status.FAILED, "GB are free", "`cache`")


def a_model(folder: Path, parameters: int) -> None:
    folder.mkdir()
    header = json.dumps({"__metadata__": {}, "w": {"dtype": "F32", "shape": [parameters // 10, 10]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)


def test_memory_without_room_for_the_weights_is_told(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_model(here / "own", 1_000_000_000)
    listed(monkeypatch, "own/model.safetensors", path="own")
    case = a_case()
    monkeypatch.setattr(model, "left_bytes", lambda: 3_000_000_000)
    told(model.check_room(case), Status.FAILED, "1,000 million weights in fp32 take 4.0 GB", "3.0 GB are free")
    monkeypatch.setattr(model, "left_bytes", lambda: 4_500_000_000)
    told(model.check_room(case), Status.WARNING)
    small = a_case(SidecarEngine(precision="int8"))
    told(model.check_room(small), Status.OK, "take 1.0 GB")


def test_a_model_that_is_loaded_has_its_room(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_model(here / "own", 1_000_000_000_000)
    listed(monkeypatch, "own/model.safetensors", path="own")
    told(model.check_room(a_case()), Status.FAILED)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("run/s.sock")
        server.listen()
        told(model.check_room(a_case()), Status.OK, "is loaded")


def test_a_disk_that_is_nearly_full_is_a_warning_and_a_full_one_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "LOW_BYTES", 1 << 62)
    told(disk.check_disk(a_case()), Status.WARNING, "full disk")
    monkeypatch.setattr(disk, "LEAST_BYTES", 1 << 62)
    told(disk.check_disk(a_case()), Status.FAILED, "full disk")


@pytest.mark.parametrize("full", ["data", "."])
def test_the_disk_that_is_looked_at_is_the_fullest_of_a_house(
    full: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = (here / full).resolve()

    def usage(folder: Path) -> SimpleNamespace:
        return SimpleNamespace(free=1_000_000 if folder.resolve() == volume else 5 << 40)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    file = Database(url="sqlite+aiosqlite:///data/not/yet/tollhouse.db")
    told(disk.check_disk(a_case(database=file)), Status.FAILED, f"0.0 GB free in {volume}")
    server = Database(url="postgresql+asyncpg://me@db/tollhouse")
    here_alone = Status.OK if full == "data" else Status.FAILED
    assert disk.check_disk(a_case(database=server)).status is here_alone


@pytest.mark.parametrize(
    ("reasons", "status", "said"),
    [
        ({"a": "", "b": ""}, Status.OK, "a, b: ready"),
        ({"a": "", "b": "unreachable"}, Status.WARNING, "b is unreachable; the others serve"),
        ({"a": "loading"}, Status.WARNING, "a is loading"),
        ({"a": "unreachable"}, Status.FAILED, "a is unreachable: nobody is served"),
    ],
)
def test_upstreams_that_are_not_ready_are_told(reasons: dict[str, str], status: Status, said: str) -> None:
    told(upstreams.judged(server_state(upstreams=reasons)), status, said)


def test_a_running_server_is_asked_for_its_upstreams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstreams.desk, "server_runs", lambda settings: True)
    monkeypatch.setattr(
        upstreams.desk, "at_the_desk", lambda settings, errand: server_state(upstreams={"local": "unreachable"})
    )
    told(upstreams.check_upstreams(a_case()), Status.FAILED, "local is unreachable", "sidecar")


def test_a_sidecar_that_the_proxy_does_not_know_is_a_failure() -> None:
    told(upstreams.check_upstreams(a_case()), Status.OK, "run/s.sock")
    strange = a_case(upstreams=[Upstream(name="local", socket="run/other.sock")])
    told(upstreams.check_upstreams(strange), Status.FAILED, "run/s.sock (conf/sidecar.yaml)", "run/other.sock")
    told(upstreams.check_upstreams(structs.replace(strange, sidecar=None)), Status.OK)


def test_packages_of_our_names_from_elsewhere_are_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stranger = tmp_path / "elsewhere/sidecar"
    found = {"proxy": "/ours", "sidecar": str(stranger.parent), "migrations": "/ours"}
    monkeypatch.setattr(machine, "_home", found.get)
    told(
        machine.check_packages(), Status.FAILED, "'proxy' from /ours", f"'sidecar' from {stranger.parent}", "PYTHONPATH"
    )


def test_spans_that_cannot_be_sent_are_a_failure_and_those_that_nobody_takes_a_warning() -> None:
    told(traces.check_traces({}), Status.OK, "OTEL_EXPORTER_OTLP_ENDPOINT is not set")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        there = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}"}
        told(traces.check_traces(there), Status.OK, f"127.0.0.1:{port} takes connections")
        told(traces.check_traces(there | {"OTEL_SDK_DISABLED": "true"}), Status.OK, "turned off")
        grpc = there | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
        told(traces.check_traces(grpc), Status.FAILED, "only http/protobuf", "docs/tracing.md")
    told(traces.check_traces(there), Status.WARNING, f"127.0.0.1:{port}", "refused", "lost")
    for address in ("127.0.0.1:4318", "ftp://127.0.0.1", "http://[::1", "http://127.0.0.1:x"):
        told(traces.check_traces({"OTEL_EXPORTER_OTLP_ENDPOINT": address}), Status.FAILED, address, "http://")


def test_spans_that_want_what_is_not_installed_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sidecar.otlp", None)
    check = traces.check_traces({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"})
    told(check, Status.FAILED, "pip install 'tollhouse[otel]'")
