"""How full the house is, read from files as the kernel writes them."""

import io
import json
from pathlib import Path

import pytest

from proxy import memory
from proxy.memory import Memory, read_percent
from sidecar.jsonlog import JsonLog

MIB = 1024


class Machine:
    """A /proc and a /sys/fs/cgroup of our own. Sizes in MiB."""

    def __init__(self, folder: Path) -> None:
        self.proc, self.cgroups = folder / "proc", folder / "cgroup"
        (self.proc / "self").mkdir(parents=True)
        self.cgroups.mkdir()
        self.groups("0::/\n")

    def uses(self, own: int, available: int) -> None:
        (self.proc / "self/status").write_text(f"Name:\tpython\nVmRSS:\t{own * MIB} kB\nThreads:\t1\n")
        (self.proc / "meminfo").write_text(f"MemTotal: {9999 * MIB} kB\nMemAvailable: {available * MIB} kB\n")

    def groups(self, text: str) -> None:
        (self.proc / "self/cgroup").write_text(text)

    def group(self, path: str, limit: str, used: int, cache: int = 0, *, old: bool = False) -> None:
        folder = self.cgroups / path
        folder.mkdir(parents=True, exist_ok=True)
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if old else ("memory.max", "memory.current")
        (folder / names[0]).write_text(f"{limit}\n")
        (folder / names[1]).write_text(f"{used * MIB * 1024}\n")
        name = "total_inactive_file" if old else "inactive_file"
        (folder / "memory.stat").write_text(f"anon 5\n{name} {cache * MIB * 1024}\n")

    def percent(self) -> float:
        return read_percent(self.proc, self.cgroups)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def mib(number: int) -> str:
    return str(number * MIB * 1024)


def test_what_counts_is_what_this_process_could_have(machine: Machine) -> None:
    machine.uses(own=300, available=700)
    assert machine.percent() == pytest.approx(30)
    machine.uses(own=300, available=0)
    assert machine.percent() == 100


def test_the_limit_of_a_control_group_counts_and_its_cache_does_not(machine: Machine) -> None:
    machine.uses(own=300, available=9000)
    machine.groups("0::/a/b\n")
    machine.group("a/b", "max", 500)
    machine.group("a", mib(800), 600, cache=100)
    assert machine.percent() == pytest.approx(50)
    machine.group("a", mib(500), 700)
    assert machine.percent() == 100


def test_the_control_groups_of_old_are_read_too(machine: Machine) -> None:
    machine.uses(own=300, available=9000)
    machine.groups("5:cpu:/x\n4:memory:/x\n0::/\n")
    machine.group("memory/x", mib(600), 400, cache=100, old=True)
    assert machine.percent() == pytest.approx(50)


def test_a_container_that_sees_itself_as_the_root_is_bounded_by_the_root(machine: Machine) -> None:
    machine.uses(own=300, available=9000)
    machine.groups("0::/kubepods/pod1\n")
    machine.group(".", mib(1000), 700)
    assert machine.percent() == pytest.approx(50)


@pytest.mark.parametrize(
    ("percent", "requests", "connections"), [(89, False, False), (90, True, False), (95, True, True)]
)
def test_w6_requests_stop_first_and_connections_then(percent: float, requests: bool, connections: bool) -> None:
    spare = Memory(requests_percent=90, connections_percent=95)
    spare.percent = percent
    assert (spare.no_requests(), spare.no_connections()) == (requests, connections)
    refused = spare.refusal()
    assert (refused is not None) is requests
    if refused is not None:
        assert (refused.status, refused.code, refused.headers()["retry-after"]) == (503, "server_is_overloaded", "1")


def test_a_change_is_told_and_no_more() -> None:
    log, spare = io.StringIO(), Memory(requests_percent=90, connections_percent=95)
    for percent in (50, 92, 99, 91, 40, 30):
        spare.note(percent, JsonLog(log))
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [(line["event"], line["percent"]) for line in lines] == [("memory_low", 92), ("memory_recovered", 40)]


async def test_where_nothing_can_be_read_nothing_is_refused(tmp_path: Path) -> None:
    log, spare = io.StringIO(), Memory(requests_percent=90, connections_percent=95)
    await memory.watch(spare, JsonLog(log), tmp_path, tmp_path)
    assert not spare.no_requests()
    assert json.loads(log.getvalue())["event"] == "memory_unknown"


def test_this_machine_tells() -> None:
    assert 0 < read_percent() < 100
