"""What keeps a request from running twice, put together for the hallway: replay protection.

A guard goes with a request from its head to its end. Most requests have none, and cost a look at their tier.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from typing import Final, Protocol

from prometheus_client import Gauge

from proxy.admission.replay import Forgets, Purge, Replay, Seal
from proxy.exchange import Arrival, Head, Principal
from proxy.signature import Signature
from proxy.store.claims import Claim
from proxy.store.database import StorageError
from sidecar.wire.errors import ApiError

PURGE_EVERY_S: Final = 60.0


class Durable(Protocol):
    """A grant, whose reservation the claims travel with."""

    def durable(self) -> Awaitable[None]:
        """Returns when it is on disk. Raises ApiError."""


@dataclass(frozen=True, slots=True)
class Guard:
    """What guards one request."""

    request_id: str
    seal: Seal

    def check(self, body: bytes) -> None:
        """`body` as it was sent. Raises ApiError 401 or 429."""
        if self.seal.verify is not None:
            self.seal.verify(body)

    @property
    def claims(self) -> tuple[Claim, ...]:
        return self.seal.claims

    async def spend(self) -> None:
        """For what runs nothing, and so has no reservation. Raises ApiError 401, 409 or 503."""
        await self.seal.spend(self.request_id)

    @contextlib.asynccontextmanager
    async def held(self, grant: Durable) -> AsyncIterator[None]:
        """Nothing runs before the claims are on disk. Raises ApiError; then nothing ran and they are given back."""
        if self.claims:
            await grant.durable()
        else:
            await self.spend()
        try:
            yield
        except ApiError:
            await self.seal.release()
            raise


class Once:
    """The room. Stateless."""

    def __init__(self, replay: Replay) -> None:
        self._replay = replay

    def read(self, head: Head, authorization: str | None, arrival: Arrival) -> Signature | None:
        """The signature in a request's head, if it is to be signed. Raises ApiError 401 or 429."""
        return self._replay.read(head, authorization, arrival.address)

    async def expect(
        self, principal: Principal, head: Head, signature: Signature | None, arrival: Arrival
    ) -> Guard | None:
        """The guard of a request, if it needs one. Raises ApiError 400, 401, 403, 409, 429 or 503."""
        seal = await self._replay.expect(principal, head, signature, arrival.address)
        return None if seal is None else Guard(arrival.request_id, seal)


def claims_of(guard: Guard | None) -> tuple[Claim, ...]:
    return () if guard is None else guard.claims


async def spent(guard: Guard | None) -> None:
    """For what has no reservation. Raises ApiError 401, 409 or 503."""
    if guard is not None:
        await guard.spend()


def held(guard: Guard | None, grant: Durable) -> contextlib.AbstractAsyncContextManager[None]:
    return contextlib.nullcontext() if guard is None else guard.held(grant)


async def purge(store: Forgets, expired: Purge, entries: Gauge) -> None:
    """Forget what has expired, for ever. What cannot be forgotten now may wait."""
    while True:
        with contextlib.suppress(StorageError):
            await expired.once()
            entries.set(await store.count())
        await asyncio.sleep(PURGE_EVERY_S)
