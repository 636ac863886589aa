"""The policy of now, while its files change: when they are read, what a bad one does, and who is told."""

import asyncio
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from proxy.metrics import Metrics
from proxy.policy import watch
from proxy.policy.schema import Policy
from proxy.policy.watch import PolicyWatch, read
from proxy.reloads import Reloads
from sidecar.jsonlog import JsonLog
from sidecar.yamlfile import ConfigInvalidError, Problem
from tests.fakes.proxy import FakeClock

SUCCESS = "tollhouse_proxy_config_last_reload_success_timestamp_seconds"
WORKED = "tollhouse_proxy_config_last_reload_successful"
TIER = """\
    requests_per_minute: {requests}
    tokens_per_minute: unlimited
    concurrency: unlimited
    monthly_requests: unlimited
    monthly_tokens: unlimited
    max_output_tokens: unlimited
    default_output_tokens: unlimited
    models: ["*"]
    priority: 7
"""


def text(requests: object, *tiers: str) -> str:
    return "version: 1\ntiers:\n" + "".join(f"  {tier}:\n{TIER.format(requests=requests)}" for tier in tiers or ("t",))


class Told:
    """Remembers what the watch says."""

    def __init__(self) -> None:
        self.loads: list[tuple[str, str | None]] = []
        self.refusals: list[list[Problem]] = []
        self.again = asyncio.Event()

    def loaded(self, policy: Policy, before: Policy | None) -> None:
        if before is not None:
            self.again.set()
        self.loads.append((policy.revision, before and before.revision))

    def refused(self, problems: Sequence[Problem], exc: Exception, current: Policy) -> None:
        self.refusals.append(list(problems))


class Desk:
    """A folder, its watch, and looks by hand."""

    def __init__(self, folder: Path, observer: Any = None) -> None:
        self.folder = folder
        self.told = Told()
        self.watch = PolicyWatch(folder, read(folder), observer or self.told)

    def write(self, content: str, name: str = "a.yaml") -> None:
        (self.folder / name).write_text(content)

    def look(self, times: int = 1, *, wanted: bool = False) -> None:
        for _ in range(times):
            reading = self.watch.look(wanted=wanted)
            if reading is not None:
                self.watch.take(reading)

    @property
    def limit(self) -> int | None:
        return self.watch().tier("t").requests_per_minute


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    (tmp_path / "a.yaml").write_text(text(10))
    return Desk(tmp_path)


def test_a_change_is_read_once_it_has_rested(desk: Desk) -> None:
    desk.write(text(200))
    desk.look()
    assert desk.limit == 10
    desk.look()
    assert desk.limit == 200
    desk.look(3)
    first, second = desk.told.loads
    assert second == (desk.watch().revision, first[0])


def test_a_single_file_is_looked_at_as_a_folder_is(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text(10))
    desk = Desk(tmp_path, None)
    desk.watch = PolicyWatch(path, read(path), desk.told)
    desk.write(text(200))
    desk.write("version: 1\ntiers: {}\n", "b.yaml")
    desk.look(2)
    assert (desk.limit, desk.told.refusals) == (200, [])


def test_what_is_still_being_written_is_not_read(desk: Desk) -> None:
    content = text(200)
    for end in range(10, len(content), 10):
        desk.write(content[:end])
        desk.look()
    assert (desk.limit, desk.told.refusals) == (10, [])
    desk.write(content)
    desk.look(2)
    assert (desk.limit, desk.told.refusals) == (200, [])


def test_files_that_change_while_they_are_read_are_read_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(folder: Path) -> Policy:
        found = load(folder)
        desk.write(text(3000))
        return found

    load = watch.load_policy
    desk.write(text(200))
    desk.look()
    with monkeypatch.context() as patched:
        patched.setattr(watch, "load_policy", slow)
        desk.look()
    assert desk.limit == 10
    desk.look()
    assert desk.limit == 3000


def test_f12_a_bad_policy_leaves_the_last_good_one_and_is_told_once(desk: Desk) -> None:
    before = desk.watch()
    desk.write("version: 1\ntiers: {t: 3}\nteirs: {}\n")
    desk.look(5)
    assert desk.watch() is before
    assert [
        [str(problem).removeprefix(f"{desk.folder}/")[:11] for problem in problems] for problems in desk.told.refusals
    ] == [["a.yaml:2:12", "a.yaml:3:1:"]]
    assert len(desk.watch.problems) == 2
    desk.write(text(300))
    desk.look(2)
    assert (desk.limit, desk.watch.problems) == (300, ())


def test_f12_nothing_that_a_file_does_ends_the_watch(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_folder: Path) -> Policy:
        raise RecursionError

    before = desk.watch()
    with monkeypatch.context() as patched:
        patched.setattr(watch, "load_policy", broken)
        desk.look(wanted=True)
    assert desk.watch() is before
    assert "does not expect" in desk.told.refusals[0][0].message


def test_a_folder_that_vanishes_leaves_the_policy(desk: Desk) -> None:
    desk.folder.rename(desk.folder.with_name("elsewhere"))
    desk.look(3)
    assert (desk.limit, len(desk.told.refusals)) == (10, 1)
    desk.folder.with_name("elsewhere").rename(desk.folder)
    desk.look(2)
    assert desk.watch.problems == ()


def test_f12_without_a_policy_nothing_starts(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("version: 2\ntiers: {}\n")
    with pytest.raises(ConfigInvalidError):
        PolicyWatch(tmp_path, read(tmp_path), Told())


def test_a_mounted_volume_is_swapped_by_its_link(tmp_path: Path) -> None:
    # As Kubernetes mounts a ConfigMap: a.yaml -> ..data/a.yaml, and ..data -> a folder of the version.
    for version, limit in (("..1", 10), ("..2", 77)):
        (tmp_path / version).mkdir()
        (tmp_path / version / "a.yaml").write_text(text(limit))
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "a.yaml").symlink_to("..data/a.yaml")
    desk = Desk(tmp_path)
    assert desk.limit == 10
    (tmp_path / "..new").symlink_to("..2")
    (tmp_path / "..new").replace(tmp_path / "..data")
    desk.look(2)
    assert desk.limit == 77


def test_a_copy_with_the_same_size_and_time_is_a_change(desk: Desk) -> None:
    found = (desk.folder / "a.yaml").stat()
    desk.write(text(99), "b")
    os.utime(desk.folder / "b", ns=(found.st_atime_ns, found.st_mtime_ns))
    (desk.folder / "b").replace(desk.folder / "a.yaml")
    desk.look(2)
    assert desk.limit == 99


def test_what_is_touched_and_not_changed_is_the_same_policy(desk: Desk) -> None:
    before = desk.watch()
    os.utime(desk.folder / "a.yaml", (1, 1))
    desk.look(2)
    assert desk.watch() is before
    assert desk.told.loads[1] == (before.revision, before.revision)


async def test_whoever_asks_has_the_files_read_at_once(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "LOOK_EVERY_S", 3600.0)
    told = asyncio.Event()
    running = asyncio.create_task(desk.watch.run(told))
    await asyncio.to_thread(desk.write, text(200))
    told.set()
    async with asyncio.timeout(10):
        await desk.told.again.wait()
    assert desk.limit == 200
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_it_looks_by_itself(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "LOOK_EVERY_S", 0.0)
    running = asyncio.create_task(desk.watch.run(asyncio.Event()))
    await asyncio.to_thread(desk.write, text(200))
    async with asyncio.timeout(10):
        await desk.told.again.wait()
    assert desk.limit == 200
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def test_readings_are_counted_and_logged_with_every_place(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text(10))
    registry, log, clock = CollectorRegistry(), io.StringIO(), FakeClock()
    desk = Desk(tmp_path, Reloads(Metrics(clock, registry, "1"), clock, JsonLog(log), lambda: None))
    first = desk.watch().revision

    def shown(name: str) -> list[str]:
        lines = generate_latest(registry).decode().splitlines()
        return [line for line in lines if line.startswith(f"tollhouse_proxy_{name}")]

    began = clock.now().timestamp()
    assert registry.get_sample_value(SUCCESS) == began
    assert registry.get_sample_value(WORKED) == 1
    clock.seconds = 60.0
    desk.write("version: 1\ntiers: {t: 3}\nteirs: {}\n")
    desk.look(2)
    assert shown("config_reloads_total") == [
        'tollhouse_proxy_config_reloads_total{result="ok"} 0.0',
        'tollhouse_proxy_config_reloads_total{result="error"} 1.0',
    ]
    assert registry.get_sample_value(SUCCESS) == began
    assert registry.get_sample_value(WORKED) == 0
    assert shown("policy_info") == [f'tollhouse_proxy_policy_info{{revision="{first}"}} 1.0']
    desk.write(text(20))
    desk.look(2)
    second = desk.watch().revision
    assert registry.get_sample_value(WORKED) == 1
    assert shown("policy_info") == [f'tollhouse_proxy_policy_info{{revision="{second}"}} 1.0']
    assert 'tollhouse_proxy_config_reloads_total{result="ok"} 1.0' in shown("config_reloads_total")
    refused, reloaded = map(json.loads, log.getvalue().splitlines())
    assert (refused["event"], refused["level"], refused["revision"], refused["count"]) == (
        "policy_refused",
        "error",
        first,
        2,
    )
    assert [problem.removeprefix(f"{tmp_path}/")[:11] for problem in refused["problems"]] == [
        "a.yaml:2:12",
        "a.yaml:3:1:",
    ]
    assert (reloaded["event"], reloaded["revision"], reloaded["tiers"]) == ("policy_reloaded", second, 1)
