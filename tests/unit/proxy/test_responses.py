"""Stored responses: what the tier and the body decide, what a failing store is told as, and where a refusal points."""

import asyncio
import datetime as dt
import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from proxy.asked import UpstreamRefusedError
from proxy.exchange import Call, Principal
from proxy.policy.schema import Policy, Tier
from proxy.responses import Responses, own_place, purge
from proxy.store.database import StorageError
from proxy.store.responses import ConversationTooLongError, Owned, StoredResponse, Turn
from sidecar.wire.errors import ApiError, bad_request
from sidecar.wire.internal import Endpoint
from tests.fakes.proxy import NOON, FakeClock

OPEN: Any = dict.fromkeys(
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
MINE = Principal("acct_1", "key1", "keeps", None)
FORGOTTEN = Principal("acct_1", "key1", "forgets", None)
ANSWER = b'{"id":"resp_9","output":[]}'


def call(**fields: Any) -> Call:
    body = json.dumps({"model": "m", "input": "Hi"}).encode()
    return replace(Call(Endpoint.RESPONSES, "m", False, 1, 8, "max_output_tokens", 1, body), **fields)


class FakeStore:
    """Remembers what is kept. `error` is what each method raises, `gate` what each waits at."""

    def __init__(self) -> None:
        self.kept: list[StoredResponse] = []
        self.asked: list[Owned] = []
        self.turns: list[Turn] | None = []
        self.purged = [2, 1, 0]
        self.moments: list[dt.datetime] = []
        self.error: Exception | None = None
        self.gate: asyncio.Event | None = None

    async def keep(self, new: StoredResponse) -> None:
        await self._reach()
        self.kept.append(new)

    async def find(self, wanted: Owned) -> Turn | None:
        self.asked.append(wanted)
        await self._reach()
        return self.turns[-1] if self.turns else None

    async def conversation(self, last: Owned, most_bytes: int) -> list[Turn] | None:
        assert most_bytes == 1000
        self.asked.append(last)
        await self._reach()
        return self.turns

    async def delete(self, wanted: Owned) -> bool:
        self.asked.append(wanted)
        await self._reach()
        return bool(self.turns)

    async def purge(self, now: dt.datetime) -> int:
        self.moments.append(now)
        await self._reach()
        return self.purged.pop(0)

    async def _reach(self) -> None:
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error


class Room:
    def __init__(self) -> None:
        tiers = {
            name: Tier(name=name, models=frozenset({"*"}), priority=0, response_retention_days=days, **OPEN)
            for name, days in (("keeps", 30), ("forgets", 0))
        }
        self.store, self.clock = FakeStore(), FakeClock()
        policy = Policy(tiers=tiers, revision="r")
        self.responses = Responses(lambda: policy, self.store, self.clock, most_bytes=1000, storage_s=60.0)


@pytest.mark.parametrize(
    ("tier", "store", "decided"),
    [
        ("keeps", None, True),
        ("keeps", True, True),
        ("keeps", False, False),
        ("forgets", None, False),
        ("forgets", False, False),
    ],
)
async def test_what_is_stored_is_the_tier_s_and_then_the_body_s_to_say(
    tier: str, store: bool | None, decided: bool
) -> None:
    room, principal = Room(), replace(MINE, tier=tier)
    found = await room.responses.continued(principal, call(store=store))
    assert found == call(store=decided)
    assert (room.responses.keeping(principal, found) is not None) is decided


async def test_other_endpoints_have_no_store() -> None:
    room, chat = Room(), call(endpoint=Endpoint.CHAT)
    assert await room.responses.continued(MINE, chat) is chat
    assert room.responses.keeping(MINE, chat) is None


@pytest.mark.parametrize(
    ("fields", "param"), [({"store": True}, "store"), ({"previous_id": "resp_1"}, "previous_response_id")]
)
async def test_a_tier_without_a_store_refuses_what_needs_one(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        await Room().responses.continued(FORGOTTEN, call(**fields))
    assert (caught.value.status, caught.value.param) == (400, param)


async def test_a_conversation_comes_before_the_request_without_its_log_probabilities() -> None:
    room = Room()
    part = {"type": "output_text", "text": "b", "annotations": [], "logprobs": [{"token": "b"}]}
    output = [{"type": "message", "content": [part]}, {"type": "function_call", "arguments": "{}"}]
    room.store.turns = [Turn('[{"content":"a"}]', json.dumps({"id": "resp_1", "output": output}))]
    found = await room.responses.continued(MINE, call(previous_id="resp_1"))
    first, second, third, own = json.loads(found.body)["input"]
    assert first == {"content": "a"}
    assert second["content"] == [{"type": "output_text", "text": "b", "annotations": []}]
    assert third == output[1]
    assert own["role"] == "user"
    assert (found.earlier_items, found.messages, found.store) == (3, 4, True)
    assert room.store.asked == [Owned("resp_1", "acct_1", NOON)]


@pytest.mark.parametrize(
    ("turns", "error", "status", "code"),
    [
        (None, None, 400, "previous_response_not_found"),
        (None, ConversationTooLongError(), 413, "request_too_large"),
        (None, StorageError("gone"), 503, "storage_unavailable"),
        (None, TimeoutError(), 503, "storage_unavailable"),
    ],
)
async def test_a_conversation_that_cannot_be_had_is_refused(
    turns: Any, error: Exception | None, status: int, code: str
) -> None:
    room = Room()
    room.store.turns, room.store.error = turns, error
    with pytest.raises(ApiError) as caught:
        await room.responses.continued(MINE, call(previous_id="resp_1"))
    assert (caught.value.status, caught.value.code) == (status, code)


async def test_an_answer_is_kept_as_long_as_the_tier_says() -> None:
    room = Room()
    keep = room.responses.keeping(MINE, call(store=True, previous_id="resp_8"))
    assert keep is not None
    await keep(ANSWER)
    (kept,) = room.store.kept
    assert (kept.id, kept.account_id, kept.previous_id, kept.model) == ("resp_9", "acct_1", "resp_8", "m")
    assert (kept.created, kept.expires) == (NOON, NOON + dt.timedelta(days=30))
    assert kept.turn.response == ANSWER.decode()
    assert json.loads(kept.turn.input)[0]["content"] == [{"type": "input_text", "text": "Hi"}]


@pytest.mark.parametrize("answer", [b"", b"{}", b'{"id":1}', b"\xff"])
async def test_an_answer_that_is_no_response_is_a_fault_and_not_kept(answer: bytes) -> None:
    room = Room()
    keep = room.responses.keeping(MINE, call(store=True))
    assert keep is not None
    with pytest.raises(ApiError) as caught:
        await keep(answer)
    assert (caught.value.status, room.store.kept) == (500, [])


async def test_a_page_is_of_the_key_s_account_and_of_now() -> None:
    room = Room()
    room.store.turns = [Turn("[]", '{"id":"resp_1"}')]
    assert await room.responses.show("resp_1", {}, MINE) == b'{"id":"resp_1"}'
    deleted = msgspec.json.decode(await room.responses.delete("resp_1", MINE))
    assert deleted == {"id": "resp_1", "object": "response", "deleted": True}
    items = msgspec.json.decode(await room.responses.items("resp_1", {}, MINE))
    assert items == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
    assert room.store.asked == 3 * [Owned("resp_1", "acct_1", NOON)]


@pytest.mark.parametrize("response_id", ["resp_", "resp_" + "a" * 36, "resp_ü", "resp_a\n", "msg_1", ""])
async def test_what_is_no_id_is_looked_up_as_none(response_id: str) -> None:
    room = Room()
    with pytest.raises(ApiError) as caught:
        await room.responses.show(response_id, {}, MINE)
    assert (caught.value.status, caught.value.code) == (404, "response_not_found")
    assert room.store.asked[0].id == ""


@pytest.mark.parametrize("error", [StorageError("gone"), TimeoutError()])
async def test_a_store_that_fails_is_told_as_one(error: Exception) -> None:
    room = Room()
    room.store.error = error
    keep = room.responses.keeping(MINE, call(store=True))
    assert keep is not None
    asks: list[Callable[[], Any]] = [
        lambda: room.responses.show("resp_1", {}, MINE),
        lambda: room.responses.items("resp_1", {}, MINE),
        lambda: room.responses.delete("resp_1", MINE),
        lambda: keep(ANSWER),
    ]
    for ask in asks:
        with pytest.raises(ApiError) as caught:
            await ask()
        assert (caught.value.status, caught.value.code) == (503, "storage_unavailable")


async def test_a_store_that_hangs_has_so_long_and_no_longer() -> None:
    room = Room()
    room.store.gate = asyncio.Event()
    policy = room.responses._policy
    hasty = Responses(policy, room.store, room.clock, most_bytes=1000, storage_s=0.0)
    with pytest.raises(ApiError) as caught:
        await hasty.show("resp_1", {}, MINE)
    assert caught.value.code == "storage_unavailable"


@pytest.mark.parametrize(
    ("param", "message", "told", "said"),
    [
        (
            "input[3].content[0].type",
            "Bad 'input[3].content[0].type'.",
            "input[1].content[0].type",
            "Bad 'input[1].content[0].type'.",
        ),
        ("input[2]", "Bad 'input[2]'.", "input[0]", "Bad 'input[0]'."),
        ("input", "Too long.", "input", "Too long."),
        ("model", "Bad.", "model", "Bad."),
        (None, "Bad.", None, "Bad."),
    ],
)
def test_a_refusal_points_into_the_client_s_own_input(
    param: str | None, message: str, told: str | None, said: str
) -> None:
    headers = {"x-should-retry": "false"}
    error = UpstreamRefusedError(400, message, code="c", param=param, headers=headers)
    found = own_place(error, call(earlier_items=2))
    assert isinstance(found, UpstreamRefusedError)
    assert (found.status, found.code, found.param, found.message) == (400, "c", told, said)
    assert found.headers() == headers
    assert own_place(error, call()) is own_place(error, None) is error


def test_a_refusal_of_an_earlier_item_blames_the_conversation() -> None:
    found = own_place(bad_request("Bad 'input[1]'.", param="input[1]"), call(earlier_items=2))
    assert found.param == "previous_response_id"
    assert "Bad 'input[1]'." in found.message


async def test_what_has_expired_is_purged_until_none_is_left_and_then_again_later() -> None:
    store, clock = FakeStore(), FakeClock()
    task = asyncio.create_task(purge(store, clock))
    for _ in range(20):
        await asyncio.sleep(0)
    assert store.moments == 3 * [NOON]
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_purge_that_fails_is_tried_again_later() -> None:
    store, clock = FakeStore(), FakeClock()
    store.error = StorageError("gone")
    task = asyncio.create_task(purge(store, clock))
    for _ in range(20):
        await asyncio.sleep(0)
    assert (len(store.moments), task.done()) == (1, False)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
