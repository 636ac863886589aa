"""Trials of a policy: one at a time, and none that goes on for ever."""

import asyncio
import errno
import io
import json
import os
from pathlib import Path

import msgspec
import pytest

from proxy.console import trial
from proxy.console.trial import Outcome, Trial
from proxy.console.trials import Trials, WantedTrial
from sidecar.jsonlog import JsonLog
from sidecar.wire.errors import ApiError
from tests.fakes.proxy import NOON, FakeClock

WANTED = WantedTrial({"default.yaml": "version: 1\ntiers: {}\n"})


async def test_one_that_takes_too_long_is_ended_and_another_may_come(tmp_path: Path) -> None:
    trials = Trials(str(tmp_path / "a.sock"), FakeClock(), JsonLog(io.StringIO()), limit_s=0.001)
    for _ in range(2):
        with pytest.raises(ApiError) as late:
            await trials.run(WANTED)
        assert (late.value.status, late.value.code) == (503, "simulation_failed")


async def test_a_second_one_is_refused_while_one_runs(tmp_path: Path) -> None:
    trials = Trials(str(tmp_path / "a.sock"), FakeClock(), JsonLog(io.StringIO()), limit_s=0.05)
    first = asyncio.ensure_future(trials.run(WANTED))
    await asyncio.sleep(0)
    with pytest.raises(ApiError) as busy:
        await trials.run(WANTED)
    assert (busy.value.status, busy.value.code) == (409, "simulation_running")
    with pytest.raises(ApiError):
        await first


async def test_one_without_its_server_fails_and_the_log_says_why(tmp_path: Path) -> None:
    log = io.StringIO()
    policy = (Path(__file__).parents[4] / "policies/default.yaml").read_text()
    trials = Trials(str(tmp_path / "a.sock"), FakeClock(), JsonLog(log))
    with pytest.raises(ApiError) as failed:
        await trials.run(WantedTrial({"default.yaml": policy}))
    assert (failed.value.status, failed.value.code) == (503, "simulation_failed")
    (told,) = map(json.loads, log.getvalue().splitlines())
    assert (told["event"], told["exit_code"]) == ("simulation_failed", 1)
    assert told["error_type"] == "proxy.admin.client.NotReachableError"


def test_one_that_may_not_step_back_is_run_all_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refused(_by: int) -> int:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    asked = Trial(str(tmp_path / "a.sock"), {"default.yaml": "tiers: 3"}, NOON, NOON)
    answer = io.BytesIO()
    monkeypatch.setattr(os, "nice", refused)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(msgspec.json.encode(asked))))
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(answer))
    trial.main()
    assert msgspec.json.decode(answer.getvalue(), type=Outcome).problems
