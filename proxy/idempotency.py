"""Requests with an Idempotency-Key: run once, and answered once more from what is known of the first.

The key is a client's word for one piece of work, within an API key and a path. Refused before work began, or ended
without a whole answer: the word is free again. Answers are kept only where the tier says so, and for a day.
"""

import asyncio
import contextlib
import datetime as dt
import hashlib
import hmac
import re
from collections.abc import AsyncIterator, Callable
from typing import Final, Protocol

import msgspec

from proxy import twice
from proxy.clock import Clock
from proxy.exchange import Head, Principal
from proxy.policy.schema import Policy
from proxy.signing import IDEMPOTENCY_KEY
from proxy.store.claims import IdempotencyKey
from proxy.store.database import StorageError
from proxy.store.idempotency import Earlier
from sidecar.wire.errors import ApiError, unavailable

REPLAYED: Final = {"idempotent-replayed": "true"}
LIFE: Final = dt.timedelta(hours=24)
MOST_ANSWER_BYTES: Final = 256 * 1024
PURGE_EVERY_S: Final = 600.0
_WORD: Final = re.compile(r"[\x21-\x7e]{1,255}")
_decoder: Final = msgspec.json.Decoder()
# The same fields in another order, or other blanks, are the same request.
_encoder: Final = msgspec.json.Encoder(order="deterministic")


class Store(Protocol):
    """What this room needs of `proxy.store.idempotency.IdempotencyKeys`. All raise StorageError."""

    async def find(self, new: IdempotencyKey) -> Earlier | None: ...
    async def keep(self, key: IdempotencyKey, request_id: str, answer: bytes) -> None: ...
    async def purge(self, now: dt.datetime) -> int: ...


class Idempotency:
    """The room. Stateless. `secret` makes digests that tell nothing of a client's words and payloads."""

    def __init__(
        self, policy: Callable[[], Policy], store: Store, secret: bytes, clock: Clock, *, storage_s: float
    ) -> None:
        self._policy = policy
        self._store = store
        self._secret = secret
        self._clock = clock
        self._storage_s = storage_s

    async def claim(self, principal: Principal, template: str, head: Head, body: bytes) -> IdempotencyKey | bytes:
        """What the request is to claim, or the answer that an earlier one like it was given.

        Raises ApiError 400 for what is no key, 409, 422 or 503.
        """
        given = head.values(IDEMPOTENCY_KEY)
        if len(given) != 1 or _WORD.fullmatch(given[0]) is None:
            raise twice.bad_idempotency_key()
        scope = [principal.key_id.encode(), template.encode(), given[0].encode()]
        fingerprint = self._digest(head.method.encode(), head.target.encode(errors="surrogateescape"), _canonical(body))
        now = self._clock.now()
        new = IdempotencyKey(self._digest(*scope).hex(), fingerprint, now, now + LIFE)
        async with self._storage():
            earlier = await self._store.find(new)
        return new if earlier is None else _told_again(earlier, fingerprint)

    def keeps_answers(self, principal: Principal) -> bool:
        return self._policy().tier(principal.tier).idempotency_bodies

    async def keep(self, key: IdempotencyKey, request_id: str, answer: bytes) -> None:
        """Keep an answer to be given again. One that cannot be kept is given this once all the same."""
        if len(answer) <= MOST_ANSWER_BYTES:
            # The writer has told of its failure.
            with contextlib.suppress(ApiError):
                async with self._storage():
                    await self._store.keep(key, request_id, answer)

    def _digest(self, *parts: bytes) -> bytes:
        """32 bytes over the parts, of which none can be taken for a piece of another."""
        lengths = b"".join(len(part).to_bytes(8, "big") for part in parts)
        return hmac.digest(self._secret, lengths + b"".join(parts), hashlib.sha256)

    @contextlib.asynccontextmanager
    async def _storage(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._storage_s):
                yield
        except (StorageError, TimeoutError) as exc:
            raise unavailable(
                "Whether this Idempotency-Key was used cannot be told now.",
                code="storage_unavailable",
                retry_after_s=2,
            ) from exc


async def purge(store: Store, clock: Clock) -> None:
    """Delete what has expired, for ever. It answers nothing any more in any case, so a failure may wait."""
    while True:
        with contextlib.suppress(StorageError):
            while await store.purge(clock.now()):
                pass
        await asyncio.sleep(PURGE_EVERY_S)


def _canonical(body: bytes) -> bytes:
    try:
        return _encoder.encode(_decoder.decode(body))
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError):
        # Whoever reads it will refuse it.
        return body


def _told_again(earlier: Earlier, fingerprint: bytes) -> bytes:
    """The answer of an earlier request, or what there is to say of it. Raises ApiError 409 or 422."""
    if not hmac.compare_digest(earlier.fingerprint, fingerprint):
        raise twice.idempotency_mismatch()
    if earlier.running:
        raise twice.idempotency_in_progress()
    if earlier.answer is not None:
        return earlier.answer
    raise twice.idempotency_stream_done() if earlier.stream else twice.idempotency_done()
