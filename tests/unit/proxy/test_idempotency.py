"""Idempotency keys: what is one, what is the same request, and what a repetition is told."""

import asyncio
import datetime as dt
from typing import Any

import pytest

from proxy.exchange import Principal
from proxy.idempotency import MOST_ANSWER_BYTES, Idempotency
from proxy.policy.schema import Policy, Tier
from proxy.store.claims import IdempotencyKey
from proxy.store.database import StorageError
from proxy.store.idempotency import Earlier
from sidecar.wire.errors import ApiError
from tests.fakes.proxy import NOON, FakeClient, FakeClock

CHAT = "/v1/chat/completions"
ME = Principal("acc", "key", "t", None)


class FakeStore:
    def __init__(self) -> None:
        self.earlier: Earlier | None = None
        self.asked: list[IdempotencyKey] = []
        self.kept: list[bytes] = []
        self.away = self.stuck = False

    async def find(self, new: IdempotencyKey) -> Earlier | None:
        self.asked.append(new)
        await self._answer()
        return self.earlier

    async def keep(self, _key: IdempotencyKey, _request_id: str, answer: bytes) -> None:
        await self._answer()
        self.kept.append(answer)

    async def purge(self, _now: dt.datetime) -> int:
        return 0

    async def _answer(self) -> None:
        if self.stuck:
            await asyncio.Event().wait()
        if self.away:
            raise StorageError("away")


class Room:
    def __init__(self, *, bodies: bool = False) -> None:
        limits: Any = dict.fromkeys(
            (
                "requests_per_minute",
                "tokens_per_minute",
                "concurrency",
                "monthly_requests",
                "monthly_tokens",
                "max_output_tokens",
                "default_output_tokens",
            )
        )
        tier = Tier(name="t", models=frozenset({"*"}), priority=0, idempotency_bodies=bodies, **limits)
        policy = Policy(tiers={"t": tier}, revision="0" * 12)
        self.store = FakeStore()
        self.room = Idempotency(lambda: policy, self.store, b"s" * 32, FakeClock(), storage_s=0.01)

    async def claim(
        self, *words: str, body: bytes = b"{}", template: str = CHAT, who: Principal = ME, **head: str
    ) -> IdempotencyKey | bytes:
        client: Any = FakeClient()
        client.method, client.target = head.get("method", "POST"), head.get("target", CHAT)
        client.sent_headers = {"idempotency-key": words}
        return await self.room.claim(who, template, client, body)

    async def new(self, *words: str, **options: Any) -> IdempotencyKey:
        claimed = await self.claim(*(words or ("order-7",)), **options)
        assert isinstance(claimed, IdempotencyKey)
        return claimed

    async def refused(self, *words: str, **options: Any) -> ApiError:
        with pytest.raises(ApiError) as caught:
            await self.claim(*(words or ("order-7",)), **options)
        return caught.value


@pytest.mark.parametrize("words", [("",), ("a b",), ("x" * 256,), ("é",), ("a\x7f",), ("one", "two")])
async def test_what_is_no_key_is_a_400(words: tuple[str, ...]) -> None:
    error = await Room().refused(*words)
    assert (error.status, error.code, error.param) == (400, "invalid_value", "idempotency-key")


@pytest.mark.parametrize("word", ["!", "x" * 255, "stainless-python-retry-0b0a"])
async def test_a_key_is_visible_ascii(word: str) -> None:
    key = await Room().new(word)
    assert (key.made, key.expires) == (NOON, NOON + dt.timedelta(days=1))
    assert word not in key.id or len(word) == 1


async def test_a_key_is_one_api_key_s_and_one_path_s() -> None:
    room = Room()
    other = Principal("acc", "other", "t", None)
    ids = {
        (await room.new()).id,
        (await room.new("order-8")).id,
        (await room.new(who=other)).id,
        (await room.new(template="/v1/completions")).id,
    }
    assert len(ids) == 4
    assert all(len(found) == 64 for found in ids)
    assert (await room.new()).id == (await room.new(body=b"[]")).id


async def test_the_same_request_is_the_same_whatever_its_blanks_and_order() -> None:
    room = Room()
    first = await room.new(body=b'{"a": 1, "b": {"c": 2, "d": [1, 2]}}')
    assert (await room.new(body=b'{"b":{"d":[1,2],"c":2},"a":1}')).fingerprint == first.fingerprint
    others = [
        await room.new(body=b'{"a":1,"b":{"c":2,"d":[2,1]}}'),
        await room.new(body=b'{"a":1}'),
        await room.new(body=b"no json"),
        await room.new(body=b'{"a": 1, "b": {"c": 2, "d": [1, 2]}}', target=f"{CHAT}?x=1"),
        await room.new(body=b'{"a": 1, "b": {"c": 2, "d": [1, 2]}}', method="PUT"),
    ]
    assert len({first.fingerprint, *(one.fingerprint for one in others)}) == 6


async def test_bytes_of_a_url_that_are_no_text_are_part_of_the_request() -> None:
    room = Room()
    odd = await room.new(target=f"{CHAT}?x=\udcff")
    assert odd.fingerprint != (await room.new(target=CHAT)).fingerprint


async def repeated(**earlier: Any) -> tuple[Room, ApiError]:
    room = Room()
    same = (await room.new()).fingerprint
    room.store.earlier = Earlier(**{"fingerprint": same, "running": False, "stream": False, "answer": None, **earlier})
    return room, await room.refused()


async def test_a_running_one_is_a_409_that_may_be_tried_again() -> None:
    _, error = await repeated(running=True)
    assert (error.status, error.code, error.headers()["retry-after"]) == (409, "idempotency_in_progress", "1")
    assert error.should_retry is None


@pytest.mark.parametrize(("stream", "code"), [(True, "idempotency_stream_done"), (False, "idempotency_done")])
async def test_a_done_one_without_an_answer_is_a_409_for_good(*, stream: bool, code: str) -> None:
    _, error = await repeated(stream=stream)
    assert (error.status, error.code, error.headers()["x-should-retry"]) == (409, code, "false")


@pytest.mark.parametrize("running", [True, False])
async def test_another_payload_is_a_422(*, running: bool) -> None:
    _, error = await repeated(fingerprint=b"0" * 32, running=running, answer=b"secret")
    assert (error.status, error.code, error.headers()["x-should-retry"]) == (422, "idempotency_mismatch", "false")


async def test_a_kept_answer_is_given_again() -> None:
    room = Room()
    same = (await room.new()).fingerprint
    room.store.earlier = Earlier(same, running=False, stream=False, answer=b'{"id":"x"}')
    assert await room.claim("order-7") == b'{"id":"x"}'


async def test_answers_are_kept_where_the_tier_says_so_up_to_a_size() -> None:
    assert not Room().room.keeps_answers(ME)
    here = Room(bodies=True)
    assert here.room.keeps_answers(ME)
    key = await here.new()
    await here.room.keep(key, "req_1", b"x" * MOST_ANSWER_BYTES)
    await here.room.keep(key, "req_1", b"x" * (MOST_ANSWER_BYTES + 1))
    assert [len(answer) for answer in here.store.kept] == [MOST_ANSWER_BYTES]


@pytest.mark.parametrize("how", ["away", "stuck"])
async def test_a_database_that_is_down_is_a_503_before_and_nothing_after(how: str) -> None:
    room = Room(bodies=True)
    key = await room.new()
    setattr(room.store, how, True)
    error = await room.refused()
    assert (error.status, error.code) == (503, "storage_unavailable")
    await room.room.keep(key, "req_1", b"x")
