"""How much memory a model may take, by the kernel's files."""

from pathlib import Path

import pytest

from sidecar.engine.memory import free_bytes
from tests.fakes.machine import Machine, mib

MIB = 1 << 20


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    found = Machine(tmp_path)
    found.uses(own=300, available=8000)
    return found


def free(machine: Machine) -> int:
    return free_bytes(machine.proc, machine.cgroups)


def test_a_machine_has_what_the_kernel_calls_available(machine: Machine) -> None:
    assert free(machine) == 8000 * MIB
    machine.group(".", "max", 500)
    assert free(machine) == 8000 * MIB


def test_a_container_has_what_its_limit_leaves(machine: Machine) -> None:
    machine.group(".", mib(5000), 1000)
    assert free(machine) == 4000 * MIB
    machine.group(".", mib(500), 1000)
    assert free(machine) == 0


def test_the_file_cache_of_the_weights_is_in_nobodys_way(machine: Machine) -> None:
    machine.group(".", mib(5000), 4900, cache=3000)
    assert free(machine) == 3100 * MIB


def test_without_the_kernels_files_a_fixed_amount_is_assumed(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "absent", tmp_path) == 8 << 30
