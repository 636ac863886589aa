"""What is owed at the end: the upstream's figure, the sidecar's, the slots', or the estimate."""

import asyncio
from typing import Any

import pytest

from proxy.asked import UpstreamLostError
from proxy.exchange import Ending, NotRecordedError
from proxy.forward import Timings
from proxy.settle import Settlement, UsageUnknownError, produced
from sidecar.wire.errors import ApiError
from sidecar.wire.internal import RequestState, Usage
from sidecar.wire.slots import RequestUsage, SlotFileError
from tests.fakes.proxy import ARRIVAL, NOON, FakeClock, FakeGrant, FakeUpstream

LOST = UpstreamLostError()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting between looks at the slots."""
    monkeypatch.setattr("proxy.settle.SLOT_POLL_S", 0.0)


def settlement(grant: FakeGrant, clock: FakeClock | None = None, storage_s: float = 5.0) -> Settlement:
    timings = Timings(first_byte_s=1000.5)
    return Settlement(grant, ARRIVAL, timings, clock or FakeClock(), storage_s)


async def owed(upstream: Any) -> Usage | None:
    return await produced(upstream, "req_1", NOON)


async def test_a_whole_answer_is_settled_by_its_own_usage() -> None:
    grant, clock = FakeGrant(), FakeClock()
    clock.seconds = 2.0
    outcome = await settlement(grant, clock).complete(Usage(7, 3, 1, "stop"))
    assert (outcome.status, outcome.ending, outcome.finish_reason) == (200, Ending.COMPLETE, "stop")
    ((settled, more),) = grant.settled
    assert settled == outcome
    assert (more["duration_ms"], more["ttft_ms"], more["forced"]) == (2000, 500, False)


@pytest.mark.parametrize("how", ["fails", "hangs"])
async def test_a_settlement_that_does_not_reach_the_disk_is_a_503(how: str) -> None:
    grant = FakeGrant()
    if how == "fails":
        grant.settle_error = OSError("disk full")
    else:
        grant.settle_gate = asyncio.Event()
    with pytest.raises(ApiError) as refused:
        await settlement(grant, storage_s=0.01).complete(Usage(7, 3))
    assert (refused.value.status, refused.value.code) == (503, "storage_unavailable")


async def test_a_settlement_that_was_too_slow_goes_on() -> None:
    grant = FakeGrant()
    grant.settle_gate = asyncio.Event()
    with pytest.raises(ApiError):
        await settlement(grant, storage_s=0.0).complete(Usage(7, 3))
    grant.settle_gate.set()
    for _ in range(3):
        await asyncio.sleep(0)
    assert len(grant.settled) == 1


async def test_an_interrupted_answer_is_settled_by_what_the_sidecar_says() -> None:
    grant, upstream = FakeGrant(), FakeUpstream()
    upstream.cancel_answer = RequestState(True, False, 7, 4)
    outcome = await settlement(grant).interrupted(upstream, 499, Ending.CLIENT_GONE, None)
    assert outcome.usage == Usage(7, 4)
    assert upstream.cancelled == ["req_1"]
    assert grant.settled[0][1]["forced"] is False


async def test_f5_what_an_unrecorded_request_used_is_settled_without_waiting_for_the_disk() -> None:
    grant, upstream = FakeGrant(), FakeUpstream()
    grant.settle_gate = asyncio.Event()
    upstream.cancel_answer = RequestState(True, False, 7, 4)
    await settlement(grant).unrecorded(upstream, NotRecordedError())
    grant.settle_gate.set()
    for _ in range(3):
        await asyncio.sleep(0)
    ((outcome, more),) = grant.settled
    assert (outcome.status, outcome.usage, outcome.error_code) == (503, Usage(7, 4), "storage_unavailable")
    assert more["forced"] is False


async def test_when_nobody_knows_the_estimate_is_settled_and_marked() -> None:
    grant, upstream = FakeGrant(), FakeUpstream()
    upstream.cancel_answer, upstream.slot_answers = LOST, [SlotFileError("gone")]
    outcome = await settlement(grant).interrupted(upstream, 200, Ending.UPSTREAM_FAILED, "x")
    assert outcome.usage == Usage(7, 8)
    assert grant.settled[0][1]["forced"] is True


async def test_what_never_ran_owes_nothing() -> None:
    grant = FakeGrant()
    outcome = await settlement(grant).interrupted(FakeUpstream(), 499, Ending.CLIENT_GONE, None)
    assert outcome.usage is None


@pytest.mark.parametrize("error", [LOST, ApiError(503, "no")])
async def test_slots_speak_for_a_sidecar_that_does_not_answer(error: Exception) -> None:
    upstream = FakeUpstream()
    upstream.cancel_answer, upstream.slot_answers = error, [RequestUsage(7, 5, running=False)]
    assert await owed(upstream) == Usage(7, 5)


@pytest.mark.usefixtures("quick")
async def test_slots_are_read_until_the_sequence_ended() -> None:
    upstream = FakeUpstream()
    upstream.cancel_answer = LOST
    upstream.slot_answers = [RequestUsage(7, n, running=True) for n in (5, 6, 7)] + [RequestUsage(7, 8, running=False)]
    assert await owed(upstream) == Usage(7, 8)


@pytest.mark.usefixtures("quick")
async def test_f2_slots_that_no_engine_has_are_the_last_word() -> None:
    upstream = FakeUpstream()
    upstream.cancel_answer, upstream.slots_written = LOST, False
    # It stands still for long: a step may take its time, and counts when it is over.
    upstream.slot_answers = [RequestUsage(7, 5, running=True)] * 30 + [RequestUsage(7, 6, running=True)]
    assert await owed(upstream) == Usage(7, 6)


@pytest.mark.usefixtures("quick")
async def test_an_engine_that_hangs_is_not_waited_for_for_ever() -> None:
    upstream = FakeUpstream()
    upstream.cancel_answer = LOST
    upstream.slot_answers = [RequestUsage(7, 5, running=True)]
    assert await owed(upstream) == Usage(7, 5)


async def test_no_slot_means_that_it_never_ran_unless_slots_as_young_were_overwritten() -> None:
    upstream = FakeUpstream()
    upstream.evicted_ns = int((NOON.timestamp() - 1) * 1e9)
    assert await owed(upstream) is None
    upstream.evicted_ns = int((NOON.timestamp() + 1) * 1e9)
    with pytest.raises(UsageUnknownError):
        await owed(upstream)
