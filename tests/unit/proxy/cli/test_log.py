"""`tollhouse log`: what is asked of the desk, and what comes out."""

import asyncio
import csv
import datetime as dt
import io
import json
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from proxy.admin.records import Listing, LogQuery
from proxy.cli import log, root
from proxy.store.requestlog import FIELDS, LoggedRequest

NOON = dt.datetime(2026, 11, 25, 12, tzinfo=dt.UTC)
NEVER: Any = {"ended": None, "status": None, "duration_ms": None, "ttft_ms": None, "reason": None}


def logged(name: str, **changes: Any) -> LoggedRequest:
    return LoggedRequest(
        **{
            "request_id": name, "created": NOON, "ended": NOON, "state": "settled", "status": 200, "key_id": "k",
            "account_id": "a", "tier": "free", "endpoint": "/v1/chat/completions", "model": "small",
            "upstream": "local", "stream": True, "choices": 1, "est_tokens": 50, "prompt_tokens": 10,
            "cached_tokens": 4, "completion_tokens": 5, "duration_ms": 7, "ttft_ms": 3, "reason": "complete",
            "finish_reason": "stop", "error_code": None, "rule": None, "period": "2026-11",
            "client_request_id": None, "trace_id": None,
            **changes,
        }
    )  # fmt: skip


class FakeDesk:
    """Gives the parts that it has, one after the other. Mutable: `asked`, `parts`."""

    def __init__(self) -> None:
        self.asked: list[LogQuery] = []
        self.parts = [[logged("req_1"), logged("req_2", client_request_id="=1+1")], [], [logged("req_3", **NEVER)]]

    async def list_log(self, wanted: LogQuery) -> Listing[LoggedRequest]:
        self.asked.append(wanted)
        place = 0 if wanted.after is None else int(wanted.after)
        following = str(place + 1) if place + 1 < len(self.parts) else None
        return Listing(self.parts[place], following)


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeDesk:
    made = FakeDesk()

    def at_the_desk(_settings: object, errand: Callable[[FakeDesk], Awaitable[Any]]) -> Any:
        async def done() -> Any:
            return await errand(made)

        return asyncio.run(done())

    monkeypatch.setattr(log, "at_the_desk", at_the_desk)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/proxy.yaml").write_text("upstreams: [{name: local, socket: run/s.sock}]\n")
    monkeypatch.chdir(tmp_path)
    return made


def test_a_list_goes_on_until_it_has_as_many_as_are_wanted(desk: FakeDesk, capsys: pytest.CaptureFixture[str]) -> None:
    root.run(["log", "list", "--key", "k", "--since", "2026-11-01", "--status", "200", "--state", "settled"])
    first = desk.asked[0]
    assert (first.key, first.since, first.status, first.state) == (
        "k",
        dt.datetime(2026, 11, 1, tzinfo=dt.UTC),
        200,
        "settled",
    )
    assert [(query.after, query.limit) for query in desk.asked] == [(None, 50), ("1", 48), ("2", 48)]
    out, err = capsys.readouterr()
    lines = [line.split("\t") for line in out.splitlines()]
    assert lines[0] == ["2026-11-25 12:00:00", "req_1", "k", "small", "200", "complete", "10+5", "7 ms"]
    assert lines[2][4:6] == ["", "settled"]
    assert "--after" not in err


def test_a_list_that_has_more_says_where(desk: FakeDesk, capsys: pytest.CaptureFixture[str]) -> None:
    root.run(["--json", "log", "list", "--limit", "2"])
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert ([row["request_id"] for row in document["rows"]], document["next"]) == (["req_1", "req_2"], "1")
    assert "--after 1" in err


def test_an_export_to_csv_has_a_header_and_every_column(desk: FakeDesk, capsys: pytest.CaptureFixture[str]) -> None:
    root.run(["log", "export", "--until", "2026-12-01"])
    header, *rows = csv.reader(io.StringIO(capsys.readouterr().out))
    assert tuple(header) == FIELDS
    assert [row[0] for row in rows] == ["req_1", "req_2", "req_3"]
    second = dict(zip(header, rows[1], strict=True))
    assert (second["client_request_id"], second["stream"], second["created"]) == (
        "'=1+1",
        "True",
        "2026-11-25T12:00:00Z",
    )
    assert dict(zip(header, rows[2], strict=True))["ended"] == ""
    assert {query.limit for query in desk.asked} == {1000}
    assert {query.until for query in desk.asked} == {dt.datetime(2026, 12, 1, tzinfo=dt.UTC)}


def test_an_export_for_a_program_is_of_json_lines(desk: FakeDesk, capsys: pytest.CaptureFixture[str]) -> None:
    root.run(["--json", "log", "export"])
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["request_id"] for line in lines] == ["req_1", "req_2", "req_3"]


def test_an_export_to_json_lines_goes_to_a_file_of_this_user_s(
    desk: FakeDesk, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    root.run(["log", "export", "--format", "jsonl", "--output", "log.jsonl"])
    path = tmp_path / "log.jsonl"
    assert [json.loads(line)["request_id"] for line in path.read_text().splitlines()] == ["req_1", "req_2", "req_3"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert capsys.readouterr().out == "3 requests in log.jsonl\n"
    # One end for the whole of it, lest what comes meanwhile move it.
    assert len({query.until for query in desk.asked}) == 1
    assert root.run(["log", "export", "--output", "log.jsonl"]) != 0
    assert "log.jsonl cannot be made" in capsys.readouterr().err
