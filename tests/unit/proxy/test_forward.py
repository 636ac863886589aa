"""The relay: for each thing it waits for, what happens if that hangs and the exchange ends, and if it fails."""

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

from proxy.asked import UpstreamLostError, UpstreamRefusedError
from proxy.exchange import Ending, NotRecordedError
from proxy.forward import Delivery, Forward, Run, Timings, told_on_leaving
from sidecar.wire.errors import ApiError, unavailable
from sidecar.wire.internal import IGNORED
from tests.fakes.proxy import TICKET, FakeClient, FakeClock, FakeGrant, FakeSettling, FakeUpstream, call
from tests.fakes.sidecar import DONE, FINISH, WHOLE, delta, usage_comment

SCRIPT = [delta("a"), delta("b"), usage_comment(3), FINISH + DONE]


class Scene:
    """A run with fakes all around."""

    def __init__(self, *, stream: bool = True) -> None:
        self.client = FakeClient()
        self.upstream = FakeUpstream()
        self.upstream.script = SCRIPT if stream else [WHOLE]
        self.grant = FakeGrant()
        self.settling = FakeSettling()
        self.timings = Timings()
        self.clock = FakeClock()
        run: Any = Run(call(stream=stream), TICKET, self.upstream, self.grant, self.client, self.settling, self.timings)
        self.run = run

    async def play(self) -> Delivery:
        return await Forward(self.clock).run(self.run)

    async def play_until_it_waits(self) -> "asyncio.Task[Delivery]":
        task = asyncio.create_task(self.play())
        for _ in range(20):
            await asyncio.sleep(0)
        assert not task.done()
        return task


async def test_a_stream_goes_out_without_the_comment_and_ends_after_the_settlement() -> None:
    scene = Scene()
    delivery = await scene.play()
    assert scene.client.sent == delta("a") + delta("b") + FINISH + DONE
    assert scene.client.last == "finish"
    assert (delivery.outcome.ending, delivery.error) == (Ending.COMPLETE, None)
    assert [usage.completion_tokens for usage in scene.settling.completed] == [3]
    assert scene.grant.prompts == [7]
    assert scene.upstream.closed == 1


async def test_a_whole_answer_goes_out_after_the_settlement() -> None:
    scene = Scene(stream=False)
    scene.settling.gate = asyncio.Event()
    task = await scene.play_until_it_waits()
    assert scene.client.answers == []
    scene.settling.gate.set()
    await task
    assert scene.client.answers == [(200, WHOLE)]


async def test_nothing_leaves_before_the_reservation_is_durable() -> None:
    scene = Scene()
    scene.grant.durable_gate = asyncio.Event()
    task = await scene.play_until_it_waits()
    assert not scene.client.answered
    scene.grant.durable_gate.set()
    assert (await task).outcome.ending is Ending.COMPLETE


async def test_a_whole_answer_that_is_sooner_than_the_disk_is_settled_and_leaves_after_it() -> None:
    scene = Scene(stream=False)
    scene.grant.durable_gate = asyncio.Event()
    task = await scene.play_until_it_waits()
    assert [usage.completion_tokens for usage in scene.settling.completed] == [3]
    assert not scene.client.answered
    scene.grant.durable_gate.set()
    assert (await task).outcome.ending is Ending.COMPLETE
    assert scene.client.answers == [(200, WHOLE)]


async def test_a_whole_answer_whose_reservation_is_refused_after_it_goes_nowhere() -> None:
    scene = Scene(stream=False)
    kept: list[bytes] = []

    async def keep(answer: bytes) -> None:
        kept.append(answer)

    scene.run = replace(scene.run, keep=keep)
    scene.grant.durable_gate = asyncio.Event()
    scene.grant.durable_error = ApiError(429, "no", code="insufficient_quota")
    task = await scene.play_until_it_waits()
    scene.grant.durable_gate.set()
    with pytest.raises(ApiError) as refused:
        await task
    assert refused.value.code == "insufficient_quota"
    assert not scene.client.answered
    assert kept == []


async def test_w3_a_client_that_is_slow_to_read_is_waited_for_after_each_piece() -> None:
    scene = Scene()
    scene.client.slow = True
    await scene.play()
    assert scene.client.waits == 2
    assert scene.client.sent == delta("a") + delta("b") + FINISH + DONE


async def test_the_end_waits_for_the_settlement() -> None:
    scene = Scene()
    scene.settling.gate = asyncio.Event()
    task = await scene.play_until_it_waits()
    assert scene.client.sent == delta("a") + delta("b")
    scene.settling.gate.set()
    await task
    assert scene.client.sent.endswith(DONE)


async def test_ignored_fields_are_announced() -> None:
    scene = Scene()
    scene.upstream.ignored = "foo"
    await scene.play()
    assert scene.client.announced == {IGNORED: "foo"}


# A whole answer that is here does not wait for its reservation alone.
@pytest.mark.parametrize(
    ("place", "stream"), [("head", True), ("head", False), ("durable", True), ("piece", True), ("piece", False)]
)
async def test_a_client_that_leaves_at_any_wait_is_settled_by_what_was_produced(place: str, stream: bool) -> None:
    scene = Scene(stream=stream)
    never = asyncio.Event()
    if place == "head":
        scene.upstream.gate = never
    elif place == "durable":
        scene.grant.durable_gate = never
    else:
        scene.upstream.script = [delta("a"), never]
    task = await scene.play_until_it_waits()
    scene.client.leave(Ending.CLIENT_GONE)
    delivery = await task
    assert scene.settling.interruptions == [(499, Ending.CLIENT_GONE, None)]
    assert (delivery.outcome.status, delivery.error) == (499, None)
    assert scene.upstream.closed == scene.upstream.opened == 1
    assert all(kind == "send" for kind, _ in scene.client.events)


@pytest.mark.parametrize("ending", [Ending.CLIENT_GONE, Ending.CLIENT_STALLED])
async def test_a_client_that_cannot_be_written_to_is_gone(ending: Ending) -> None:
    scene = Scene()
    scene.client.deaf = ending
    await scene.play()
    assert scene.settling.interruptions == [(499, ending, None)]


async def test_a_client_that_leaves_after_the_settlement_has_a_complete_answer() -> None:
    for stream in (True, False):
        scene = Scene(stream=stream)
        scene.upstream.script = [usage_comment(3) + FINISH + DONE] if stream else [WHOLE]
        scene.client.deaf = Ending.CLIENT_GONE
        delivery = await scene.play()
        assert delivery.outcome.ending is Ending.COMPLETE
        assert scene.settling.interruptions == []


@pytest.mark.parametrize(
    ("ending", "status", "code"),
    [(Ending.SHUTTING_DOWN, 503, "server_shutting_down"), (Ending.REVOKED, 401, "invalid_api_key")],
)
async def test_who_must_go_is_told_why(ending: Ending, status: int, code: str) -> None:
    before = Scene()
    before.upstream.gate = asyncio.Event()
    task = await before.play_until_it_waits()
    before.client.leave(ending)
    delivery = await task
    assert delivery.error is not None
    assert (delivery.error.status, delivery.error.code) == (status, code)
    assert before.settling.interruptions == [(status, ending, code)]
    during = Scene()
    during.upstream.script = [delta("a"), asyncio.Event()]
    task = await during.play_until_it_waits()
    during.client.leave(ending)
    delivery = await task
    assert delivery.error is None
    assert during.client.last == "fail"
    assert code.encode() in during.client.events[-1][1]
    assert during.settling.interruptions == [(200, ending, code)]


def test_a_client_that_left_is_told_nothing() -> None:
    assert told_on_leaving(Ending.CLIENT_GONE) is None
    assert told_on_leaving(Ending.CLIENT_STALLED) is None


@pytest.mark.parametrize("timed_out", [True, False])
async def test_a_sidecar_lost_before_the_first_event_is_an_error_answer(timed_out: bool) -> None:
    for stream in (True, False):
        scene = Scene(stream=stream)
        scene.upstream.script = [UpstreamLostError(timed_out=timed_out)]
        delivery = await scene.play()
        assert delivery.error is not None
        expected = (504, "timeout") if timed_out else (503, "upstream_unavailable")
        assert (delivery.error.status, delivery.error.code) == expected
        assert scene.settling.interruptions == [(expected[0], Ending.UPSTREAM_FAILED, expected[1])]
        assert not scene.client.answered


async def test_a_sidecar_lost_in_the_stream_is_an_error_event_and_no_end() -> None:
    scene = Scene()
    scene.upstream.script = [delta("a"), UpstreamLostError()]
    delivery = await scene.play()
    assert delivery.error is None
    assert scene.client.last == "fail"
    assert b"upstream_unavailable" in scene.client.events[-1][1]
    assert scene.settling.interruptions == [(200, Ending.UPSTREAM_FAILED, "upstream_unavailable")]


async def test_a_sidecar_s_own_error_event_is_not_doubled() -> None:
    scene = Scene()
    scene.upstream.script = [b'data: {"error":{}}\n\n']
    await scene.play()
    assert scene.client.events[-1] == ("fail", b"")


@pytest.mark.parametrize(
    "script", [[delta("a")], [delta("a"), usage_comment(1)], [delta("a"), usage_comment(1), FINISH]]
)
async def test_an_answer_without_its_end_is_broken_off(script: list[bytes]) -> None:
    scene = Scene()
    scene.upstream.script = script
    await scene.play()
    assert scene.client.last == "fail"
    assert scene.settling.completed == []
    assert scene.settling.interruptions == [(200, Ending.UPSTREAM_FAILED, "upstream_unavailable")]


async def test_bytes_that_are_no_answer_count_as_a_lost_sidecar() -> None:
    for stream, body in ((True, b": tollhouse-usage {]\n\n"), (False, b"no json")):
        scene = Scene(stream=stream)
        scene.upstream.script = [body]
        delivery = await scene.play()
        assert delivery.error is not None
        assert delivery.outcome.ending is Ending.UPSTREAM_FAILED


async def test_a_refusal_goes_up_and_settles_nothing() -> None:
    scene = Scene()
    scene.upstream.refusal = UpstreamRefusedError(400, "no", code="invalid_type", param="n")
    with pytest.raises(UpstreamRefusedError):
        await scene.play()
    assert scene.settling.interruptions == []


async def test_a_reservation_that_is_not_durable_goes_up_and_the_sidecar_is_let_go() -> None:
    scene = Scene()
    scene.grant.durable_error = ApiError(429, "no", code="insufficient_quota")
    with pytest.raises(ApiError):
        await scene.play()
    assert scene.upstream.closed == 1
    assert not scene.client.answered
    assert scene.settling.interruptions == []


@pytest.mark.parametrize("stream", [True, False])
async def test_f5_what_ran_is_owed_if_a_reservation_may_be_on_disk_all_the_same(*, stream: bool) -> None:
    scene = Scene(stream=stream)
    scene.grant.durable_error = NotRecordedError()
    scene.upstream.gate = asyncio.Event()
    if stream:
        scene.upstream.gate.set()
    with pytest.raises(NotRecordedError):
        await scene.play()
    assert scene.settling.interruptions == [(503, Ending.INTERNAL, "storage_unavailable")]
    assert not scene.client.answered


async def test_f5_a_whole_answer_whose_reservation_fails_is_not_waited_for() -> None:
    scene = Scene(stream=False)
    # It would never come to its end.
    scene.upstream.gate, scene.grant.durable_gate = asyncio.Event(), asyncio.Event()
    scene.grant.durable_error = unavailable("no", code="storage_unavailable", retry_after_s=2)
    playing = asyncio.create_task(scene.play())
    for _ in range(3):
        await asyncio.sleep(0)
    assert scene.upstream.opened == 1
    scene.grant.durable_gate.set()
    with pytest.raises(ApiError) as refused:
        await playing
    assert refused.value.code == "storage_unavailable"
    assert (scene.upstream.opened, scene.upstream.closed) == (1, 1)
    assert not scene.client.answered


async def test_a_settlement_that_is_not_durable_breaks_the_stream_off_without_its_end() -> None:
    scene = Scene()
    scene.settling.error = unavailable("no", code="storage_unavailable", retry_after_s=2)
    delivery = await scene.play()
    assert scene.client.last == "fail"
    assert DONE not in scene.client.sent
    assert (delivery.outcome.ending, delivery.outcome.error_code) == (Ending.INTERNAL, "storage_unavailable")


async def test_a_settlement_that_is_not_durable_goes_up_if_nothing_was_answered() -> None:
    scene = Scene(stream=False)
    scene.settling.error = unavailable("no", code="storage_unavailable", retry_after_s=2)
    with pytest.raises(ApiError):
        await scene.play()
    assert not scene.client.answered


async def test_a_fault_of_ours_is_no_free_answer() -> None:
    scene = Scene()
    scene.upstream.script = [delta("a"), ZeroDivisionError()]
    with pytest.raises(ZeroDivisionError):
        await scene.play()
    assert scene.settling.interruptions == [(500, Ending.INTERNAL, None)]


async def test_the_times_are_kept_in_order() -> None:
    scene = Scene()
    clock = scene.clock
    ticks = iter(range(100))
    clock.monotonic = lambda: float(next(ticks))
    await scene.play()
    timings = scene.timings
    stamps = [timings.upstream_head_s, timings.durable_s, timings.first_byte_s, timings.settling_s, timings.settled_s]
    assert stamps == sorted(stamps, key=lambda stamp: -1.0 if stamp is None else stamp)
    assert None not in stamps


async def test_a_whole_answer_has_no_first_token() -> None:
    scene = Scene(stream=False)
    await scene.play()
    assert scene.timings.first_byte_s is None
    assert scene.timings.settled_s is not None


async def test_a_keep_alive_comment_is_not_the_first_token() -> None:
    scene = Scene()
    scene.upstream.script = [b": keep-alive\n\n", asyncio.Event()]
    task = await scene.play_until_it_waits()
    assert scene.client.sent == b": keep-alive\n\n"
    assert scene.timings.first_byte_s is None
    scene.client.leave(Ending.CLIENT_GONE)
    await task


class Shelf:
    """Where answers are stored: what it was given, and whether it takes it. `gate` is waited at."""

    def __init__(self, settling: FakeSettling) -> None:
        self.settling = settling
        self.kept: list[bytes] = []
        self.gate: asyncio.Event | None = None
        self.error: Exception | None = None

    async def keep(self, told: bytes) -> None:
        assert self.settling.completed
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        self.kept.append(told)


def shelved(*, stream: bool) -> tuple[Scene, Shelf]:
    scene = Scene(stream=stream)
    shelf = Shelf(scene.settling)
    scene.run = replace(scene.run, keep=shelf.keep)
    return scene, shelf


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_to_be_stored_is_complete_once_it_is(stream: bool) -> None:
    scene, shelf = shelved(stream=stream)
    shelf.gate = asyncio.Event()
    task = await scene.play_until_it_waits()
    assert scene.client.answers == []
    assert not scene.client.sent.endswith(DONE)
    shelf.gate.set()
    assert (await task).outcome.ending is Ending.COMPLETE
    assert shelf.kept == ([FINISH + DONE] if stream else [WHOLE])
    assert scene.client.sent.endswith(DONE) or scene.client.answers == [(200, WHOLE)]


async def test_an_answer_that_cannot_be_stored_is_owed_and_not_told_as_stored() -> None:
    error = unavailable("The shelf is gone.", code="storage_unavailable", retry_after_s=1)
    scene, shelf = shelved(stream=True)
    shelf.error = error
    delivery = await scene.play()
    assert scene.client.last == "fail"
    assert (delivery.outcome.ending, delivery.outcome.error_code) == (Ending.INTERNAL, "storage_unavailable")
    scene, shelf = shelved(stream=False)
    shelf.error = error
    with pytest.raises(ApiError) as caught:
        await scene.play()
    assert (caught.value, scene.client.answers) == (error, [])
    assert len(scene.settling.completed) == 1


async def test_an_answer_that_is_not_whole_is_not_stored() -> None:
    scene, shelf = shelved(stream=True)
    scene.upstream.script = [delta("a"), usage_comment(3), FINISH]
    await scene.play()
    assert shelf.kept == []
