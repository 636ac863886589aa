"""One server that `up` runs: its process, its log, its last words. The processes are real and short-lived."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from proxy.cli.child import LAST_LINES, Child, readable
from tests.fakes.waiting import LIMIT_S


def a_child(folder: Path, code: str) -> Child:
    return Child("server", [sys.executable, "-c", code], folder / "server.log")


async def test_its_events_are_read_from_its_log(tmp_path: Path) -> None:
    lines = [json.dumps({"event": "ready", "port": port}) for port in (1, 2)]
    child = a_child(tmp_path, f"print('no json'); print({lines[0]!r}); print({lines[1]!r})")
    await child.start()
    assert await child.ended() == 0
    await child.catch_up()
    assert child.said("ready") == {"event": "ready", "port": 1}
    assert child.says("ready") == {"event": "ready", "port": 2}
    assert child.said("other") == child.says("other") == {}


async def test_its_end_and_last_words_are_told(tmp_path: Path) -> None:
    child = a_child(tmp_path, "import sys; print('out'); sys.exit('half a line')")
    await child.start()
    assert await child.ended() == 1
    assert set((await child.last_words()).splitlines()) == {"  out", "  half a line"}


async def test_a_log_that_was_moved_away_leaves_what_was_read(tmp_path: Path) -> None:
    child = a_child(tmp_path, "import sys; print('out'); sys.exit(3)")
    await child.start()
    assert await child.ended() == 3
    await child.catch_up()
    (tmp_path / "server.log").unlink()
    assert await child.last_words() == "  out"


async def test_only_the_newest_lines_are_kept(tmp_path: Path) -> None:
    child = a_child(tmp_path, f"[print(n) for n in range({LAST_LINES + 5})]")
    await child.start()
    await child.ended()
    lines = (await child.last_words()).split()
    assert lines == [str(number) for number in range(5, LAST_LINES + 5)]


async def test_each_line_is_echoed_once(tmp_path: Path) -> None:
    child = a_child(tmp_path, "print('one'); print('two')")
    heard: list[str] = []
    await child.start()
    await child.ended()
    await child.catch_up(heard.append)
    await child.catch_up(heard.append)
    assert heard == ["one", "two"]


async def test_the_log_of_the_start_before_is_kept_beside(tmp_path: Path) -> None:
    for text in ("first", "second"):
        child = a_child(tmp_path, f"print({text!r})")
        await child.start()
        await child.ended()
    assert (tmp_path / "server.log").read_text() == "second\n"
    assert (tmp_path / "server.log.1").read_text() == "first\n"
    assert (tmp_path / "server.log").stat().st_mode & 0o077 == 0


async def test_it_ends_as_sigterm_ends_it(tmp_path: Path) -> None:
    # It sleeps for short times: a signal that comes just before a pause would be heard after it.
    code = "import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(0))\nprint(1, flush=True)\n"
    child = a_child(tmp_path, f"{code}while True: time.sleep(0.05)")
    await child.start()
    while not (tmp_path / "server.log").read_bytes():
        await child.catch_up()
    assert await child.stop(30)
    assert not child.running


async def test_one_that_does_not_hear_sigterm_yet_has_ended_well_by_it(tmp_path: Path) -> None:
    child = a_child(tmp_path, "import signal; signal.pause()")
    await child.start()
    assert await child.stop(LIMIT_S)
    assert await child.ended() == -signal.SIGTERM


async def test_one_that_does_not_listen_is_killed_when_its_time_is_over(tmp_path: Path) -> None:
    child = a_child(tmp_path, "import signal\nsignal.signal(15, signal.SIG_IGN)\nprint(1, flush=True)\nsignal.pause()")
    await child.start()
    while not (tmp_path / "server.log").read_bytes():
        await child.catch_up()
    assert not await child.stop(0.01)
    assert await child.ended() == -signal.SIGKILL


async def test_one_that_has_ended_stops_at_once(tmp_path: Path) -> None:
    child = a_child(tmp_path, "raise SystemExit(1)")
    await child.start()
    await child.ended()
    assert await child.stop(0)
    child.signal(signal.SIGTERM)


async def test_it_runs_in_a_session_of_its_own(tmp_path: Path) -> None:
    child = a_child(tmp_path, "import os; print(os.getsid(0))")
    await child.start()
    await child.ended()
    assert (tmp_path / "server.log").read_text().strip() != str(os.getsid(0))


def test_a_log_line_is_readable() -> None:
    line = json.dumps(
        {"time": "2026-11-25T10:11:12.123+00:00", "level": "error", "event": "failed", "code": 3, "pid": 9}
    )
    assert readable(line) == "10:11:12 error   failed code=3"


@pytest.mark.parametrize("line", ["Traceback (most recent call last):", "{not json", "[1]", '"text"', "{}"])
def test_any_other_line_stays_as_it_is(line: str) -> None:
    assert readable(line) == line
