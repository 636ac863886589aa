"""What viewers are told of requests: all of it, or how much they missed, and never what is in them."""

import asyncio

import msgspec
import pytest
from msgspec.structs import replace

from proxy.console import feed as module
from proxy.console.feed import MOST_PENDING, MOST_RECENT, MOST_VIEWERS, Feed
from proxy.exchange import Ending, Outcome
from proxy.record import Ended
from proxy.verdict import RefusedError
from sidecar.wire.errors import ApiError
from sidecar.wire.internal import Usage
from tests.fakes.proxy import ARRIVAL, NOON, PRINCIPAL, call

DONE = Ended(
    arrival=ARRIVAL,
    endpoint="/v1/chat/completions",
    outcome=Outcome(200, Ending.COMPLETE, Usage(7, 3, 2), "stop"),
    principal=PRINCIPAL,
    call=call(),
    known_model="m",
    first_byte_s=ARRIVAL.monotonic_s + 0.25,
)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOGETHER_S", 0.0)


def numbered(number: int) -> Ended:
    return replace(DONE, arrival=replace(ARRIVAL, request_id=f"req_{number}"))


async def test_a_request_is_told_when_it_begins_and_when_it_ends() -> None:
    feed = Feed()
    with feed.viewer() as viewer:
        feed.began(ARRIVAL, PRINCIPAL, call(), "m")
        feed.ended(DONE, 1.5)
        news = await viewer.news()
    began, ended = news.requests
    assert (news.whole, news.lost) == (False, 0)
    assert (began.id, began.key_id, began.model, began.ended) == ("req_1", "key1", "m", None)
    assert (ended.status, ended.ending, ended.ttft_ms, ended.duration_ms) == (200, "complete", 250.0, 1500.0)
    assert (ended.prompt_tokens, ended.completion_tokens, ended.ended) == (7, 3, NOON.timestamp() + 1.5)


async def test_a_newcomer_is_shown_what_runs_and_what_ended_last() -> None:
    feed = Feed()
    for number in range(MOST_RECENT + 5):
        feed.ended(numbered(number), 0.1)
    feed.began(ARRIVAL, PRINCIPAL, call(), "m")
    whole = feed.whole()
    assert len(whole) == MOST_RECENT + 1
    assert (whole[0].id, whole[-1].id, whole[-1].ended) == ("req_5", "req_1", None)
    feed.ended(DONE, 0.1)
    assert all(seen.ended for seen in feed.whole())


async def test_a_slow_viewer_loses_events_and_is_told_so_and_sees_the_whole_anew() -> None:
    feed = Feed()
    with feed.viewer() as slow, feed.viewer() as quick:
        for number in range(MOST_PENDING + 20):
            feed.ended(numbered(number), 0.1)
            if number == MOST_PENDING // 2:
                assert len((await quick.news()).requests) == number + 1
        feed.began(ARRIVAL, PRINCIPAL, call(), "m")
        late, prompt = await slow.news(), await quick.news()
        assert (late.whole, late.lost, late.requests) == (True, 21, feed.whole())
        assert (prompt.whole, prompt.lost) == (False, 0)
        feed.ended(DONE, 0.1)
        after = await slow.news()
    assert (after.whole, after.lost, [seen.id for seen in after.requests]) == (False, 0, ["req_1"])


async def test_nothing_of_a_request_but_numbers_and_names_of_ours_is_told() -> None:
    feed = Feed()
    secret = replace(call(), body=b'{"messages": "SECRET"}')
    refusal = RefusedError("models", 403, "SECRET", code="model_not_found")
    feed.began(ARRIVAL, PRINCIPAL, secret, "m")
    feed.ended(replace(DONE, call=secret, error=refusal, known_model="_other"), 0.1)
    told = msgspec.json.encode(feed.whole()).decode()
    assert "SECRET" not in told
    assert feed.whole()[0].rule == "models"


async def test_there_are_so_many_viewers_and_no_more() -> None:
    feed = Feed()
    seats = [feed.viewer() for _ in range(MOST_VIEWERS)]
    for seat in seats:
        seat.__enter__()
    with pytest.raises(ApiError) as full, feed.viewer():
        pass
    assert (full.value.status, full.value.code) == (503, "too_many_viewers")
    seats[0].__exit__(None, None, None)
    with feed.viewer():
        pass
    for seat in seats[1:]:
        seat.__exit__(None, None, None)


async def test_the_end_of_the_server_ends_the_wait() -> None:
    feed = Feed()
    with feed.viewer() as viewer:
        waiting = asyncio.ensure_future(viewer.news())
        await asyncio.sleep(0)
        feed.close()
        assert (await waiting).requests == []
    with pytest.raises(ApiError), feed.viewer():
        pass
