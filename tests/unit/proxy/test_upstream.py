"""The sidecars from the proxy's side: who is ready, who is chosen, and how their errors come in. Over Unix sockets."""

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from proxy.answers import BrokenOffError
from proxy.asked import UpstreamLostError, UpstreamRefusedError, translated
from proxy.exchange import Question, TextEndpoint
from proxy.settings import Timeouts, Upstream
from proxy.upstream import Sidecar, Upstreams
from sidecar.jsonlog import JsonLog
from sidecar.protocol.ticket import read_ticket
from sidecar.wire import internal
from sidecar.wire.errors import ApiError
from sidecar.wire.internal import Count
from sidecar.wire.slots import SlotFileError, SlotWriter, embedding_slots
from tests.fakes.proxy import TICKET, call
from tests.fakes.sidecar import MODEL, STREAM, WHOLE, FakeSidecar, model_state

# Longer than a busy machine keeps an answer that comes.
PATIENT = Timeouts(connect_s=30.0, state_s=30.0, first_byte_s=30.0, between_bytes_s=30.0, count_s=30.0, cancel_s=30.0)


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[FakeSidecar]:
    async with FakeSidecar(tmp_path / "s.sock") as running:
        yield running


@pytest.fixture
async def sidecar(fake: FakeSidecar) -> AsyncIterator[Sidecar]:
    async with one(fake) as running:
        yield running


def one(fake: FakeSidecar, log: io.StringIO | None = None, timeouts: Timeouts = PATIENT) -> Sidecar:
    return Sidecar(Upstream(name="local", socket=str(fake.socket)), timeouts, JsonLog(log or io.StringIO()))


async def test_a_sidecar_is_ready_when_it_says_so(fake: FakeSidecar) -> None:
    log = io.StringIO()
    async with one(fake, log) as sidecar:
        assert (sidecar.ready, sidecar.reason) == (True, "")
        fake.ready, fake.reason = False, "stalled"
        await sidecar.refresh()
        assert (sidecar.ready, sidecar.reason) == (False, "stalled")
        await fake.stop()
        await sidecar.refresh()
        assert (sidecar.ready, sidecar.reason) == (False, "unreachable")
    events = [json.loads(line)["event"] for line in log.getvalue().splitlines()]
    assert events == ["upstream_ready", "upstream_lost"]


async def test_what_it_served_is_remembered_while_it_is_away(fake: FakeSidecar, sidecar: Sidecar) -> None:
    fake.models = []
    await sidecar.refresh()
    assert list(sidecar.models or ()) == [MODEL]
    fake.models = [model_state("other")]
    await sidecar.refresh()
    assert list(sidecar.models or ()) == ["other"]


class Bell(io.StringIO):
    """A log that rings when a word is written."""

    def __init__(self, word: str) -> None:
        super().__init__()
        self.word = word
        self.rung = asyncio.Event()

    def write(self, text: str) -> int:
        if self.word in text:
            self.rung.set()
        return super().write(text)


async def test_a_watcher_follows_the_state(fake: FakeSidecar) -> None:
    fake.ready, fake.reason = False, "loading"
    bell = Bell("upstream_ready")
    async with Upstreams([one(fake, bell)]) as upstreams:
        assert not upstreams.ready
        fake.ready = True
        async with asyncio.timeout(30):
            await bell.rung.wait()
        assert upstreams.ready


async def test_a_call_runs_with_the_ticket_as_its_head(fake: FakeSidecar, sidecar: Sidecar) -> None:
    async with sidecar.open(call(stream=False), TICKET) as asked:
        answer = await asked.answer()
        assert sidecar.outstanding_tokens == TICKET.max_total_tokens
        assert answer.prompt_tokens == 7
        assert await answer.whole() == WHOLE
    assert sidecar.outstanding_tokens == 0
    (received,) = fake.received
    allowed = {"host", "content-length", "content-type", "traceparent", "connection"}
    assert {name for name in received.headers if not name.startswith("x-tollhouse-")} <= allowed


async def test_only_an_answer_that_is_not_streamed_has_a_deadline(fake: FakeSidecar, sidecar: Sidecar) -> None:
    for stream in (False, True):
        async with sidecar.open(replace(call(stream=stream), body=b'{"stream":true}'), TICKET) as asked:
            answer = await asked.answer()
            await answer.piece()
    whole, streamed = (received.headers for received in fake.received)
    assert whole[internal.DEADLINE_MS] == "30000"
    assert internal.DEADLINE_MS not in streamed
    assert (whole[internal.WEIGHT], whole[internal.CACHE_SCOPE]) == ("2.5", "a:acct_1")


@pytest.mark.parametrize(("weight", "told"), [(0.01, "0.01"), (1.0, "1"), (100.0, "100"), (1 / 3, "0.333333")])
def test_a_weight_is_told_as_the_sidecar_reads_it(weight: float, told: str) -> None:
    headers = replace(TICKET, weight=weight).headers(None)
    assert headers[internal.WEIGHT] == told
    assert read_ticket(headers, "req_own").weight == float(told)


async def test_an_answer_comes_in_pieces(sidecar: Sidecar) -> None:
    pieces = []
    async with sidecar.open(replace(call(), body=b'{"stream":true}'), TICKET) as asked:
        answer = await asked.answer()
        while piece := await answer.piece():
            pieces.append(piece)
    assert b"".join(pieces) == b"".join(step for step in STREAM if isinstance(step, bytes))


async def test_a_refusal_comes_in_as_it_was_said_with_its_retry_headers_only(
    fake: FakeSidecar, sidecar: Sidecar
) -> None:
    error = {"message": "m", "type": "t", "param": "p", "code": "c"}
    fake.refusal = (503, error, {"retry-after": "3", "x-other": "1"})
    with pytest.raises(UpstreamRefusedError) as refused:
        async with sidecar.open(call(), TICKET) as asked:
            await asked.answer()
    found = refused.value
    assert (found.status, found.message, found.type, found.param, found.code) == (503, "m", "t", "p", "c")
    assert found.headers() == {"retry-after": "3"}
    assert sidecar.outstanding_tokens == 0


async def test_a_redirect_is_no_answer(fake: FakeSidecar, sidecar: Sidecar) -> None:
    fake.refusal = (302, {}, {"location": "http://evil.example/"})
    with pytest.raises(UpstreamRefusedError) as refused:
        async with sidecar.open(call(), TICKET) as asked:
            await asked.answer()
    assert refused.value.status == 502
    assert "evil" not in str(refused.value.headers())


async def test_a_sidecar_that_is_not_there_ran_nothing(fake: FakeSidecar, sidecar: Sidecar) -> None:
    await fake.stop()
    with pytest.raises(ApiError) as refused:
        async with sidecar.open(call(), TICKET) as asked:
            await asked.answer()
    assert (refused.value.status, refused.value.code) == (503, "upstream_unavailable")


@pytest.mark.parametrize("place", ["head", "body"])
async def test_a_sidecar_that_goes_silent_is_lost(fake: FakeSidecar, place: str) -> None:
    never = asyncio.Event()
    if place == "head":
        told, timeouts = call(), replace(PATIENT, first_byte_s=0.1)
    else:
        told, timeouts = replace(call(), body=b'{"stream":true}'), replace(PATIENT, between_bytes_s=0.1)
    fake.script = [never]
    async with one(fake, timeouts=timeouts) as sidecar:
        with pytest.raises(UpstreamLostError) as lost:
            async with sidecar.open(told, TICKET) as asked:
                await (await asked.answer()).piece()
        assert lost.value.timed_out
        assert sidecar.outstanding_tokens == 0


async def test_leaving_early_breaks_the_connection_off(fake: FakeSidecar, sidecar: Sidecar) -> None:
    fake.script = [b"data: {}\n\n", asyncio.Event()]
    async with sidecar.open(replace(call(), body=b'{"stream":true}'), TICKET) as asked:
        answer = await asked.answer()
        await answer.piece()
    async with asyncio.timeout(30):
        await fake.left.wait()


async def test_a_connection_is_kept_for_the_next_request_and_closed_with_the_sidecar(
    fake: FakeSidecar, sidecar: Sidecar
) -> None:
    for _ in range(3):
        async with sidecar.open(call(stream=False), TICKET) as asked:
            await (await asked.answer()).whole()
        await sidecar.count(call())
    assert fake.connected == 1
    await sidecar.__aexit__()
    async with asyncio.timeout(30):
        while fake.connected:  # noqa: ASYNC110  # it is the loop that brings it
            await asyncio.sleep(0)


async def test_f2_a_sidecar_that_came_back_is_spoken_to_on_a_connection_of_its_own(tmp_path: Path) -> None:
    async with FakeSidecar(tmp_path / "s.sock") as first, one(first) as sidecar:
        assert sidecar.ready
        await first.stop()
        async with FakeSidecar(tmp_path / "s.sock") as second:
            async with sidecar.open(call(stream=False), TICKET) as asked:
                assert await (await asked.answer()).whole() == WHOLE
            assert len(second.received) == 1
    assert first.received == []


async def test_counting_and_cancelling(fake: FakeSidecar, sidecar: Sidecar) -> None:
    assert await sidecar.count(call()) == Count(7, 2048)
    assert fake.counted == [call().endpoint.value]
    assert not (await sidecar.cancel("req_9")).known
    fake.produced["req_9"] = 4
    assert (await sidecar.cancel("req_9")).completion_tokens == 4
    await fake.stop()
    with pytest.raises(ApiError):
        await sidecar.count(call())
    with pytest.raises(ApiError):
        await sidecar.cancel("req_9")


async def test_a_tokenizer_is_asked_under_the_request_s_id(fake: FakeSidecar, sidecar: Sidecar) -> None:
    asked = Question(TextEndpoint.DETOKENIZE, MODEL, b'{"tokens":[1]}')
    assert await sidecar.tokenizer(asked, "req_1") == (WHOLE, None)
    fake.ignored = "extra"
    assert (await sidecar.tokenizer(asked, "req_2"))[1] == "extra"
    assert [(got.path, got.body) for got in fake.received] == [("/detokenize", {"tokens": [1]})] * 2
    assert [got.headers[internal.REQUEST_ID] for got in fake.received] == ["req_1", "req_2"]


@pytest.mark.parametrize("why", ["refused", "silent", "away"])
async def test_a_tokenizer_that_gives_no_answer(fake: FakeSidecar, why: str) -> None:
    asked = Question(TextEndpoint.TOKENIZE, MODEL, b"{}")
    async with one(fake, timeouts=replace(PATIENT, count_s=0.05) if why == "silent" else PATIENT) as sidecar:
        if why == "refused":
            fake.refusal = (400, {"message": "m", "type": "t", "param": "tokens", "code": "invalid_value"}, {})
        elif why == "silent":
            fake.script = [asyncio.Event()]
        else:
            await fake.stop()
        with pytest.raises(ApiError) as caught:
            await sidecar.tokenizer(asked, "req_1")
    expected = (400, "invalid_value") if why == "refused" else (503, "upstream_unavailable")
    assert (caught.value.status, caught.value.code) == expected
    assert isinstance(caught.value, UpstreamRefusedError) == (why == "refused")


async def test_slots_are_read_beside_the_socket(fake: FakeSidecar, sidecar: Sidecar) -> None:
    with pytest.raises(SlotFileError):
        await sidecar.slots("req_9")
    writer = await asyncio.to_thread(SlotWriter, fake.socket.with_suffix(".slots"))
    writer.count(writer.claim("req_9", 0, 7), 5)
    slots = await sidecar.slots("req_9")
    assert slots.usage is not None
    assert (slots.usage.prompt_tokens, slots.usage.completion_tokens, slots.usage.running) == (7, 5, True)
    assert (await sidecar.slots("req_8")).usage is None
    writer.close()


async def test_slots_are_read_where_the_sidecar_says_if_they_are_not_beside_the_socket(
    fake: FakeSidecar, sidecar: Sidecar, tmp_path: Path
) -> None:
    fake.slots_path = tmp_path / "elsewhere.slots"
    await sidecar.refresh()
    writer = await asyncio.to_thread(SlotWriter, fake.slots_path)
    writer.end(writer.claim("req_9", 0, 7), 5)
    assert (await sidecar.slots("req_9")).usage is not None
    writer.close()


async def test_f2_an_encoder_s_slots_are_read_too(fake: FakeSidecar, sidecar: Sidecar) -> None:
    model = await asyncio.to_thread(SlotWriter, fake.socket.with_suffix(".slots"))
    encoder = await asyncio.to_thread(SlotWriter, embedding_slots(fake.socket), 1)
    encoder.end(encoder.claim("req_8", 0, 5), 0)
    encoder.end(encoder.claim("req_9", 0, 7), 0)
    slots = await sidecar.slots("req_9")
    assert slots.usage is not None
    assert (slots.usage.prompt_tokens, slots.usage.completion_tokens, slots.usage.running) == (7, 0, False)
    # The encoder had one place, and forgot who had it first: no trace is no proof that it never ran.
    lost, heard = await sidecar.slots("req_8"), time.time_ns()
    assert lost.usage is None
    assert heard - 60 * 10**9 < lost.evicted_ns <= heard
    model.close()
    encoder.close()


async def test_the_ready_sidecar_with_the_least_to_do_is_chosen(fake: FakeSidecar) -> None:
    async with one(fake) as first, one(fake) as second, one(fake) as third:
        first.outstanding_tokens, second.outstanding_tokens, third.outstanding_tokens = 20, 10, 0
        third.state = None
        upstreams = Upstreams([first, second, third])
        assert upstreams.choose(MODEL) is second
        second.state = None
        assert upstreams.choose(MODEL) is first
        with pytest.raises(ApiError) as refused:
            upstreams.choose("other")
        assert refused.value.status == 503


@pytest.mark.parametrize(
    ("reason", "code"),
    [("loading", "model_loading"), ("draining", "shutting_down"), ("stalled", "upstream_unavailable")],
)
async def test_a_model_that_is_not_ready_is_a_503_that_says_why(fake: FakeSidecar, reason: str, code: str) -> None:
    fake.ready, fake.reason = False, reason
    async with one(fake) as sidecar:
        with pytest.raises(ApiError) as refused:
            Upstreams([sidecar]).choose(MODEL)
        assert (refused.value.status, refused.value.code, refused.value.should_retry) == (503, code, True)


async def test_an_unknown_model_is_not_unknown_while_a_sidecar_has_not_spoken(fake: FakeSidecar) -> None:
    async with one(fake) as told:
        silent = Sidecar(Upstream(name="new", socket="/nowhere/s.sock"), PATIENT, JsonLog(io.StringIO()))
        Upstreams([told]).check_known("other")
        Upstreams([told, silent]).check_known(MODEL)
        Upstreams([told, silent]).check_told()
        with pytest.raises(ApiError):
            Upstreams([told, silent]).check_known("other")
        with pytest.raises(ApiError):
            Upstreams([silent]).check_told()


@pytest.mark.parametrize(
    "foreign",
    [
        BrokenOffError("cut"),
        ConnectionResetError(),
        BrokenPipeError(),
        OSError(5, "what"),
        TimeoutError(),
    ],
)
def test_every_foreign_error_is_a_lost_sidecar(foreign: Exception) -> None:
    with pytest.raises(UpstreamLostError) as lost, translated():
        raise foreign
    assert lost.value.timed_out == isinstance(foreign, TimeoutError)
    assert lost.value.__cause__ is foreign


def test_a_sidecar_is_told_what_is_stored_and_gone_on_from_only_where_there_is_such() -> None:
    names = (internal.STORED, internal.PREVIOUS_RESPONSE)
    assert not TICKET.headers(None).keys() & set(names)
    headers = replace(TICKET, stored=True, previous_id="resp_1").headers(None)
    assert [headers[name] for name in names] == ["1", "resp_1"]
