"""`tollhouse policy simulate`: all pages of the recording, the policy that is tried, and what is shown."""

import asyncio
import datetime as dt
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from proxy.admin.errands import Errands
from proxy.admin.recording import Recording, WantedRecording
from proxy.admin.table import Action
from proxy.cli import policy_simulate, root
from proxy.simulation.request import Caller
from proxy.store.recordings import Recorded

POLICIES = Path(__file__).parents[4] / "policies"
NOON = dt.datetime(2026, 11, 25, 12, tzinfo=dt.UTC)


def row(number: int) -> Recorded:
    at = NOON + dt.timedelta(seconds=number)
    return Recorded(
        request_id=f"req_{number}",
        state="settled",
        key_id="k",
        account_id="a",
        tier="free",
        endpoint="/v1/chat/completions",
        model="m",
        stream=False,
        choices=1,
        created=at,
        ended=at + dt.timedelta(milliseconds=10),
        est_tokens=60,
        prompt_tokens=10,
        completion_tokens=40,
        asked_output_tokens=50,
        bound_prompt_tokens=12,
        max_context=1000,
        prompts=1,
    )


class FakeDesk(Errands):
    """Twelve requests in pages of five. Mutable: `asked`."""

    def __init__(self) -> None:
        self.asked: list[WantedRecording] = []

    @override
    async def do(self, action: Action[Any, Any], given: Any, id_: str = "") -> Any:
        raise NotImplementedError

    @override
    async def recording(self, wanted: WantedRecording) -> Recording:
        self.asked.append(wanted)
        begin = 0 if wanted.after is None else int(wanted.after.request_id.removeprefix("req_")) + 1
        rows = [row(number) for number in range(begin, min(begin + 5, 12))]
        return Recording(rows, [Caller("k", "a")] if begin == 0 else [], begin + 5 < 12)


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeDesk:
    made = FakeDesk()

    def at_the_desk(_settings: object, errand: Callable[[FakeDesk], Awaitable[Any]]) -> Any:
        async def done() -> Any:
            return await errand(made)

        return asyncio.run(done())

    monkeypatch.setattr(policy_simulate, "at_the_desk", at_the_desk)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/proxy.yaml").write_text("upstreams: [{name: local, socket: run/s.sock}]\n")
    text = (POLICIES / "default.yaml").read_text()
    for name, content in (
        ("policies", text),
        ("next", text.replace("requests_per_minute: 10", "requests_per_minute: 4")),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "default.yaml").write_text(content)
    monkeypatch.chdir(tmp_path)
    return made


SPAN = ["--from", "2026-11-25T12:00", "--to", "2026-11-25T13:00"]


def test_the_sums_are_shown_by_key_and_rule(desk: FakeDesk, capsys: pytest.CaptureFixture[str]) -> None:
    assert root.run(["policy", "simulate", *SPAN, "--key", "k"]) == 0
    out, err = capsys.readouterr()
    assert out == "k\tfree\trequests_per_minute\t1\t2026-11-25 12:00:11\n"
    assert "12 requests, 11 let in, 1 refused." in err
    assert [wanted.key_id for wanted in desk.asked] == ["k"] * 3
    assert [wanted.after and wanted.after.request_id for wanted in desk.asked] == [None, "req_4", "req_9"]
    assert (desk.asked[0].since, desk.asked[0].until) == (NOON, NOON + dt.timedelta(hours=1))


def test_another_policy_is_tried_and_each_refusal_listed(desk: FakeDesk, capsys: pytest.CaptureFixture[str]) -> None:
    assert root.run(["policy", "simulate", *SPAN, "--policy", "next", "--each"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2026-11-25 12:00:04\treq_4\tk\tfree\tm\trequests_per_minute"
    assert len(lines) == 8


def test_a_program_gets_everything(desk: FakeDesk, capsys: pytest.CaptureFixture[str]) -> None:
    assert root.run(["policy", "simulate", *SPAN, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["requests"], found["let_in"], found["refused"]) == (12, 11, 1)
    assert found["by_rule"] == [{"name": "requests_per_minute", "requests": 1, "refused": 1, "shadow": 0}]
    assert found["refusals"][0]["at"] == "2026-11-25T12:00:11Z"


def test_times_ago_and_times_that_are_none(desk: FakeDesk) -> None:
    assert root.run(["policy", "simulate", "--from", "7d"]) == 0
    days = (desk.asked[0].until - desk.asked[0].since) / dt.timedelta(days=1)
    assert days == pytest.approx(7, abs=0.01)
    assert root.run(["policy", "simulate", "--from", "yesterday"]) == 2
    assert root.run(["policy", "simulate", "--from", "1d", "--to", "2d"]) == 2


def test_a_policy_with_mistakes_is_not_tried(desk: FakeDesk, capsys: pytest.CaptureFixture[str]) -> None:
    Path("next/default.yaml").write_text("version: 2\ntiers: {}\n")
    assert root.run(["policy", "simulate", *SPAN, "--policy", "next"]) == 3
    assert desk.asked == []
