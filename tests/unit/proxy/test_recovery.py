"""Orphans of a dead proxy: each is settled by who knows, voided if nothing ran, forced if nobody knows."""

import asyncio
import datetime as dt
import io
from typing import Any

import pytest

from proxy.asked import UpstreamLostError
from proxy.recovery import Recovered, recover
from proxy.store.database import StorageError
from proxy.store.posting import Entry, Settled, Voided
from sidecar.jsonlog import JsonLog
from sidecar.wire.internal import Endpoint, RequestState
from sidecar.wire.slots import RequestUsage, SlotFileError
from tests.fakes.proxy import NOON, FakeClock, FakeUpstream


def entry(request_id: str = "req_1", upstream: str | None = "local") -> Entry:
    created = NOON - dt.timedelta(seconds=3)
    return Entry(
        request_id=request_id, key_id="k", account_id="a", tier="t", period="2026-11", endpoint=Endpoint.CHAT.value,
        model="m", upstream=upstream, stream=True, choices=1, priority=0, est_tokens=50, created=created,
    )  # fmt: skip


class FakeBooks:
    def __init__(self, *orphans: Entry) -> None:
        self.orphans = list(orphans)
        self.settled: list[Settled] = []
        self.voided: list[Voided] = []
        self.error: Exception | None = None

    async def open_rows(self) -> list[Entry]:
        return self.orphans

    def settle(self, settled: Settled) -> "asyncio.Future[None]":
        self.settled.append(settled)
        return self._done()

    def void(self, voided: Voided) -> "asyncio.Future[None]":
        self.voided.append(voided)
        return self._done()

    def _done(self) -> "asyncio.Future[None]":
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.error is None:
            done.set_result(None)
        else:
            done.set_exception(self.error)
        return done


async def recovered(books: FakeBooks, *upstreams: FakeUpstream) -> Recovered:
    sidecars: Any = upstreams
    return await recover(books, sidecars, FakeClock(), JsonLog(io.StringIO()))


async def test_an_orphan_is_settled_by_what_its_sidecar_says_and_stopped() -> None:
    books, other, upstream = FakeBooks(entry()), FakeUpstream("other"), FakeUpstream()
    upstream.cancel_answer = RequestState(True, False, 7, 4)
    assert await recovered(books, other, upstream) == Recovered(settled=1)
    (settled,) = books.settled
    assert (settled.prompt_tokens, settled.completion_tokens, settled.forced) == (7, 4, False)
    assert (settled.duration_ms, settled.ended) == (3000, NOON)
    assert (upstream.cancelled, other.cancelled) == (["req_1"], [])


async def test_an_orphan_that_never_ran_is_void() -> None:
    books = FakeBooks(entry())
    assert await recovered(books, FakeUpstream()) == Recovered(voided=1)
    assert [voided.request_id for voided in books.voided] == ["req_1"]


async def test_slots_speak_for_a_sidecar_that_is_away() -> None:
    books, upstream = FakeBooks(entry()), FakeUpstream()
    upstream.cancel_answer, upstream.slot_answers = UpstreamLostError(), [RequestUsage(7, 5, running=False)]
    assert await recovered(books, upstream) == Recovered(settled=1)
    assert books.settled[0].completion_tokens == 5


@pytest.mark.parametrize("why", ["no slots", "no such upstream", "overwritten"])
async def test_what_nobody_knows_is_forced_at_the_estimate(why: str) -> None:
    books, upstream = FakeBooks(entry(upstream="gone" if why == "no such upstream" else "local")), FakeUpstream()
    if why == "no slots":
        upstream.cancel_answer, upstream.slot_answers = UpstreamLostError(), [SlotFileError("gone")]
    upstream.evicted_ns = int(NOON.timestamp() * 1e9)
    assert await recovered(books, upstream) == Recovered(forced=1)
    (settled,) = books.settled
    assert settled.prompt_tokens + settled.completion_tokens == 50
    assert settled.forced


async def test_a_sidecar_that_hangs_does_not_hold_the_start_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.recovery.LIMIT_S", 0.02)
    books, hanging = FakeBooks(*(entry(f"req_{n}") for n in range(40))), FakeUpstream()

    async def hang(_request_id: str) -> RequestState:
        await asyncio.Event().wait()
        raise AssertionError

    hanging.cancel = hang
    assert await recovered(books, hanging) == Recovered(forced=40)


async def test_it_returns_when_all_is_on_disk_and_says_so_if_it_cannot_be() -> None:
    books = FakeBooks(entry())
    books.error = StorageError("disk full")
    with pytest.raises(StorageError):
        await recovered(books, FakeUpstream())


async def test_without_orphans_nobody_is_asked() -> None:
    upstream = FakeUpstream()
    assert await recovered(FakeBooks(), upstream) == Recovered()
    assert upstream.cancelled == []
