"""Stored responses: whether an answer of /v1/responses is kept, what a request goes on from, and the pages of both.

The tier says for how long content is kept, and by default it is not kept at all. What is stored is told to its own
account alone, and no line of the log has any of it.
"""

import asyncio
import contextlib
import datetime as dt
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final, Protocol

import msgspec
from msgspec.structs import replace

from proxy.asked import UpstreamRefusedError
from proxy.body import continued, conversation_too_long, own_items
from proxy.clock import Clock
from proxy.exchange import Call, Principal
from proxy.input_items import item_list
from proxy.policy.schema import Policy
from proxy.store.database import StorageError
from proxy.store.responses import ConversationTooLongError, Owned, StoredResponse, Turn
from proxy.usage import AnswerError, told_response
from sidecar.wire.errors import ApiError, bad_request, internal_error, unavailable
from sidecar.wire.internal import Endpoint

RESPONSE: Final = "/v1/responses/{id}"
INPUT_ITEMS: Final = "/v1/responses/{id}/input_items"
PURGE_EVERY_S: Final = 600.0
ID: Final = re.compile(r"resp_[A-Za-z0-9_-]{1,35}")
_ITEM: Final = re.compile(r"input\[(\d+)\]")


class Store(Protocol):
    """What this room needs of `proxy.store.responses.StoredResponses`."""

    def keep(self, new: StoredResponse) -> Awaitable[None]: ...
    async def find(self, wanted: Owned) -> Turn | None: ...
    async def conversation(self, last: Owned, most_bytes: int) -> list[Turn] | None: ...
    async def delete(self, wanted: Owned) -> bool: ...
    async def purge(self, now: dt.datetime) -> int: ...


class _Response(msgspec.Struct):
    id: str
    output: list[dict[str, Any]] = []


class Deleted(msgspec.Struct, frozen=True):
    """The answer to a DELETE, in OpenAI's shape."""

    id: str
    object: str = "response"
    deleted: bool = True


class Responses:
    """The room. Stateless. `most_bytes`: so large may a request be with its conversation before it."""

    def __init__(
        self, policy: Callable[[], Policy], store: Store, clock: Clock, *, most_bytes: int, storage_s: float
    ) -> None:
        self._policy = policy
        self._store = store
        self._clock = clock
        self._most_bytes = most_bytes
        self._storage_s = storage_s

    async def continued(self, principal: Principal, call: Call) -> Call:
        """The call with what leads up to it in its body, and `store` decided. Raises ApiError 400, 413 or 503."""
        if call.endpoint is not Endpoint.RESPONSES:
            return call
        if not self._retention(principal):
            _refuse_store(call)
            return replace(call, store=False)
        # OpenAI stores what says nothing of it.
        call = replace(call, store=call.store is not False)
        if call.previous_id is None:
            return call
        turns = await self._conversation(principal, call.previous_id)
        return continued(call, [item for turn in turns for item in _items(turn)], self._most_bytes)

    def keeping(self, principal: Principal, call: Call) -> Callable[[bytes], Awaitable[None]] | None:
        """What stores the answer, or the held end of its stream; None if it is not to be stored."""
        return partial(self._keep, principal, call) if call.store else None

    async def show(self, response_id: str, query: Mapping[str, str], principal: Principal) -> bytes:
        """The response object as it was answered. Raises ApiError 400, 404 or 503."""
        if query.get("stream", "false") != "false":
            raise bad_request("A stored response is not streamed.", param="stream", code="unsupported_value")
        return (await self._found(response_id, principal)).response.encode()

    async def items(self, response_id: str, query: Mapping[str, str], principal: Principal) -> bytes:
        """A page of the items of its own request. Raises ApiError 400, 404 or 503."""
        turn = await self._found(response_id, principal)
        return msgspec.json.encode(item_list(response_id, turn.input, query))

    async def delete(self, response_id: str, principal: Principal) -> bytes:
        """Raises ApiError 404 or 503."""
        async with self._storage():
            there = await self._store.delete(self._owned(principal, response_id))
        if not there:
            raise _not_found(response_id)
        return msgspec.json.encode(Deleted(response_id))

    async def _found(self, response_id: str, principal: Principal) -> Turn:
        async with self._storage():
            turn = await self._store.find(self._owned(principal, response_id))
        if turn is None:
            raise _not_found(response_id)
        return turn

    async def _conversation(self, principal: Principal, previous_id: str) -> list[Turn]:
        try:
            async with self._storage():
                turns = await self._store.conversation(self._owned(principal, previous_id), self._most_bytes)
        except ConversationTooLongError as exc:
            raise conversation_too_long() from exc
        if turns is None:
            raise bad_request(
                f"Previous response with id '{_shown(previous_id)}' not found, or one that it goes on from.",
                param="previous_response_id",
                code="previous_response_not_found",
            )
        return turns

    async def _keep(self, principal: Principal, call: Call, answer: bytes) -> None:
        """Return when it is on disk. Raises ApiError 500 or 503."""
        try:
            response = told_response(answer, stream=call.stream)
            response_id = msgspec.json.decode(response, type=_Response).id
        except (AnswerError, msgspec.MsgspecError) as exc:
            raise internal_error() from exc
        now = self._clock.now()
        stored = StoredResponse(
            id=response_id,
            account_id=principal.account_id,
            previous_id=call.previous_id,
            model=call.model,
            created=now,
            expires=now + self._retention(principal),
            turn=Turn(own_items(call).decode(), response.decode()),
        )
        async with self._storage():
            await self._store.keep(stored)

    def _retention(self, principal: Principal) -> dt.timedelta:
        return dt.timedelta(days=self._policy().tier(principal.tier).response_retention_days)

    def _owned(self, principal: Principal, response_id: str) -> Owned:
        """What is no id of a response is looked up as none."""
        return Owned(response_id if ID.fullmatch(response_id) else "", principal.account_id, self._clock.now())

    @contextlib.asynccontextmanager
    async def _storage(self) -> AsyncIterator[None]:
        """Raises ApiError 503 for a store that fails or takes too long."""
        try:
            async with asyncio.timeout(self._storage_s):
                yield
        except (StorageError, TimeoutError) as exc:
            raise unavailable(
                "Stored responses cannot be reached now.", code="storage_unavailable", retry_after_s=2
            ) from exc


def own_place(error: ApiError, call: Call | None) -> ApiError:
    """A sidecar's refusal of an item, by its place in the client's `input` instead of in the whole conversation."""
    found = _ITEM.match(error.param or "")
    if call is None or not call.earlier_items or error.param is None or found is None:
        return error
    at = int(found[1]) - call.earlier_items
    if at < 0:
        param = "previous_response_id"
        message = f"An item of the conversation that '{param}' leads to is refused: {error.message}"
    else:
        param = f"input[{at}]" + error.param[found.end() :]
        message = error.message.replace(found[0], f"input[{at}]")
    return UpstreamRefusedError(
        error.status, message, type=error.type, code=error.code, param=param, headers=error.headers()
    )


async def purge(store: Store, clock: Clock) -> None:
    """Delete what has expired, for ever. It is not found any more in any case, so a failure may wait."""
    while True:
        with contextlib.suppress(StorageError):
            while await store.purge(clock.now()):
                pass
        await asyncio.sleep(PURGE_EVERY_S)


def _items(turn: Turn) -> list[msgspec.Raw]:
    """What was asked and answered, as items of an input. Log-probabilities are no part of a prompt."""
    output = msgspec.json.decode(turn.response, type=_Response).output
    for item in output:
        for part in item.get("content") or ():
            part.pop("logprobs", None)
    asked = msgspec.json.decode(turn.input, type=list[msgspec.Raw])
    return [*asked, *(msgspec.Raw(msgspec.json.encode(item)) for item in output)]


def _refuse_store(call: Call) -> None:
    """Raises ApiError 400 for a call that needs a store."""
    if call.store:
        raise bad_request("This API key's tier stores no responses.", param="store", code="unsupported_value")
    if call.previous_id is not None:
        raise bad_request(
            "This API key's tier stores no responses to go on from; send the earlier items in 'input'.",
            param="previous_response_id",
            code="unsupported_parameter",
        )


def _not_found(response_id: str) -> ApiError:
    return ApiError(404, f"Response with id '{_shown(response_id)}' not found.", code="response_not_found")


def _shown(response_id: str) -> str:
    return response_id[:64]
