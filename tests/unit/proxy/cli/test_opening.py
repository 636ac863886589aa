"""Waiting for readiness: each reason is told, an odd one is warned of, and it does not wait for ever."""

from collections.abc import Iterator

import pytest

from proxy.admin.records import ServerState
from proxy.cli import opening
from proxy.cli.exits import CommandError
from proxy.clock import SystemClock
from tests.fakes.server_state import server_state


class FakeClock(SystemClock):
    """A clock that moves by `step_s` with each look. Mutable: `_now_s`."""

    def __init__(self, step_s: float) -> None:
        self._now_s = 0.0
        self._step_s = step_s

    def monotonic(self) -> float:
        self._now_s += self._step_s
        return self._now_s


class Server:
    """Gives its answers one after the other, the last one for ever."""

    def __init__(self, *answers: ServerState | None) -> None:
        self._answers: Iterator[ServerState | None] = iter(answers)
        self._last = answers[-1]

    async def ask(self) -> ServerState | None:
        return next(self._answers, self._last)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "POLL_S", 0)


async def test_each_reason_is_told_until_it_is_ready() -> None:
    told: list[str] = []
    server = Server(None, server_state("unreachable"), server_state("loading"), server_state(""))
    state = await opening.wait_ready(server.ask, FakeClock(0.1), told.append, pytest.fail)
    assert state.ready
    assert told == ["starting", "unreachable", "loading"]


async def test_an_odd_reason_that_lasts_is_warned_of_once() -> None:
    warned: list[str] = []
    server = Server(*[server_state("unreachable")] * 30, *[server_state("loading")] * 30, server_state(""))
    await opening.wait_ready(server.ask, FakeClock(2), lambda _: None, warned.append)
    assert len(warned) == 1
    assert "unreachable" in warned[0]
    assert "run/sidecar.log" in warned[0]


async def test_it_does_not_wait_for_ever() -> None:
    server = Server(server_state("loading"))
    with pytest.raises(CommandError, match=r"Not ready after 3[0-9] minutes; the model server is loading"):
        await opening.wait_ready(server.ask, FakeClock(100), lambda _: None, pytest.fail)


def test_the_sidecar_is_described_by_what_it_said() -> None:
    ready = {"precision": "int8", "tier": "packed", "max_context": 8192, "pid": 3}
    assert opening.described(ready, "run/s.sock") == "run/s.sock, int8, packed, 8192 tokens of context"
    assert opening.described({}, "run/s.sock") == "run/s.sock"
