"""What keeps a request from running twice, put together for the hallway: replay protection and idempotency keys.

A guard goes with a request from its head to its end. Most requests have none, and cost a look at their tier.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol

from prometheus_client import Gauge

from proxy.admission.replay import Forgets, Purge, Replay, Seal
from proxy.exchange import Arrival, Head, Principal
from proxy.idempotency import Idempotency
from proxy.signature import Signature
from proxy.signing import IDEMPOTENCY_KEY
from proxy.store.claims import Claim, IdempotencyKey
from proxy.store.database import StorageError
from sidecar.wire.errors import ApiError

PURGE_EVERY_S: Final = 60.0
_UNGUARDED: Final = contextlib.nullcontext()
# Given an answer, returns when it is on disk.
Keep = Callable[[bytes], Awaitable[None]]


class Durable(Protocol):
    """A grant, whose reservation the claims travel with."""

    def durable(self) -> Awaitable[None]:
        """Returns when it is on disk. Raises ApiError."""


@dataclass(slots=True)
class Guard:
    """What guards one request. Mutable: `key`, the idempotency key that it claims, once its body is here."""

    principal: Principal
    head: Head
    request_id: str
    seal: Seal | None
    idempotency: Idempotency
    key: IdempotencyKey | None = None

    def check(self, body: bytes) -> None:
        """`body` as it was sent. Raises ApiError 401 or 429."""
        if self.seal is not None and self.seal.verify is not None:
            self.seal.verify(body)

    @property
    def claims(self) -> tuple[Claim, ...]:
        """What travels with the request's reservation."""
        nonces = () if self.seal is None else self.seal.claims
        return nonces if self.key is None else (*nonces, self.key)

    async def spend(self) -> None:
        """For what runs nothing, and so has no reservation. Raises ApiError 401, 409 or 503."""
        if self.seal is not None:
            await self.seal.spend(self.request_id)

    async def answered(self, template: str, body: bytes) -> bytes | None:
        """What an earlier request with the same idempotency key was answered; None if this is the first.

        Raises ApiError 400, 401, 409, 422 or 503.
        """
        if not self.head.values(IDEMPOTENCY_KEY):
            return None
        found = await self.idempotency.claim(self.principal, template, self.head, body)
        if isinstance(found, IdempotencyKey):
            self.key = found
            return None
        await self.spend()
        return found

    def keeping(self, keep: Keep | None, *, stream: bool) -> Keep | None:
        """What keeps the answer: `keep` for its own ends, and the idempotency key for those of a repetition."""
        key = self.key
        if key is None or stream or not self.idempotency.keeps_answers(self.principal):
            return keep

        async def kept(answer: bytes) -> None:
            if keep is not None:
                await keep(answer)
            await self.idempotency.keep(key, self.request_id, answer)

        return kept

    @contextlib.asynccontextmanager
    async def held(self, grant: Durable) -> AsyncIterator[None]:
        """Nothing runs before the claims are on disk. Raises ApiError; then nothing ran and they are given back."""
        if self.claims:
            await grant.durable()
        if self.seal is None or self.seal.claims:
            yield
            return
        await self.spend()
        try:
            yield
        except ApiError:
            await self.seal.release()
            raise


class Once:
    """The room. Stateless."""

    def __init__(self, replay: Replay, idempotency: Idempotency) -> None:
        self._replay = replay
        self._idempotency = idempotency

    def read(self, head: Head, authorization: str | None, arrival: Arrival) -> Signature | None:
        """The signature in a request's head, if it is to be signed. Raises ApiError 401 or 429."""
        return self._replay.read(head, authorization, arrival.address)

    async def expect(
        self, principal: Principal, head: Head, signature: Signature | None, arrival: Arrival
    ) -> Guard | None:
        """The guard of a request, if it needs one. Raises ApiError 400, 401, 403, 409, 429 or 503."""
        seal = await self._replay.expect(principal, head, signature, arrival.address)
        if seal is None and not head.values(IDEMPOTENCY_KEY):
            return None
        return Guard(principal, head, arrival.request_id, seal, self._idempotency)


def claims_of(guard: Guard | None) -> tuple[Claim, ...]:
    return () if guard is None else guard.claims


async def spent(guard: Guard | None) -> None:
    """For what has no reservation. Raises ApiError 401, 409 or 503."""
    if guard is not None:
        await guard.spend()


async def answered(guard: Guard | None, template: str, body: bytes) -> bytes | None:
    """What an earlier request like this was answered. Raises ApiError 400, 401, 409, 422 or 503."""
    return None if guard is None else await guard.answered(template, body)


def keeping(guard: Guard | None, keep: Keep | None, *, stream: bool) -> Keep | None:
    return keep if guard is None else guard.keeping(keep, stream=stream)


def held(guard: Guard | None, grant: Durable) -> contextlib.AbstractAsyncContextManager[None]:
    return _UNGUARDED if guard is None else guard.held(grant)


async def purge(store: Forgets, expired: Purge, entries: Gauge) -> None:
    """Forget what has expired, for ever. What cannot be forgotten now may wait."""
    while True:
        with contextlib.suppress(StorageError):
            await expired.once()
            entries.set(await store.count())
        await asyncio.sleep(PURGE_EVERY_S)
