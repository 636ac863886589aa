"""How full the house is, read from files as the kernel writes them."""

import io
import json
from pathlib import Path

import pytest

from proxy import memory
from proxy.memory import Memory, read_percent
from sidecar.jsonlog import JsonLog
from tests.fakes.machine import Machine, mib


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def percent_of(machine: Machine) -> float:
    return read_percent(machine.proc, machine.cgroups)


def test_what_counts_is_what_this_process_could_have(machine: Machine) -> None:
    machine.uses(own=300, available=700)
    assert percent_of(machine) == pytest.approx(30)
    machine.uses(own=300, available=0)
    assert percent_of(machine) == 100


def test_the_limit_of_a_control_group_counts_and_its_cache_does_not(machine: Machine) -> None:
    machine.uses(own=300, available=9000)
    machine.groups("0::/a/b\n")
    machine.group("a/b", "max", 500)
    machine.group("a", mib(800), 600, cache=100)
    assert percent_of(machine) == pytest.approx(50)
    machine.group("a", mib(500), 700)
    assert percent_of(machine) == 100


def test_the_control_groups_of_old_are_read_too(machine: Machine) -> None:
    machine.uses(own=300, available=9000)
    machine.groups("5:cpu:/x\n4:memory:/x\n0::/\n")
    machine.group("memory/x", mib(600), 400, cache=100, old=True)
    assert percent_of(machine) == pytest.approx(50)


def test_a_container_that_sees_itself_as_the_root_is_bounded_by_the_root(machine: Machine) -> None:
    machine.uses(own=300, available=9000)
    machine.groups("0::/kubepods/pod1\n")
    machine.group(".", mib(1000), 700)
    assert percent_of(machine) == pytest.approx(50)


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
