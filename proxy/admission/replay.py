"""Requests that may come once only: their nonces, by the tier's `replay`. `off` asks for none.

`duplicate`: an X-Request-Nonce that the client makes up, against accidents; whoever can send requests of the key can
send another. `signed`: a signature (`proxy.signature`) with a nonce in it, by a key that is in no request; such keys
sign under every tier. Cheap first, and nothing an outsider can use up: a nonce is spent with the reservation of a
request that was let in.
"""

import asyncio
import collections
import contextlib
import datetime as dt
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from proxy import twice
from proxy.clock import Clock
from proxy.exchange import Head, Principal
from proxy.policy.schema import Policy
from proxy.settings import Replay as Settings
from proxy.signature import NONCE, Signature, SignatureError, read_signature
from proxy.signing import PUBLIC_PREFIX, authority
from proxy.store.claims import Claim, ClaimTakenError, Nonce, NotRememberedError
from proxy.store.database import StorageError
from sidecar.wire.errors import ApiError

HEADER: Final = twice.NONCE_HEADER


class NonceStore(Protocol):
    """Where used nonces are kept. `in_reservation`: those of a request with a reservation travel with it."""

    @property
    def in_reservation(self) -> bool: ...

    async def seen(self, new: Nonce) -> bool:
        """Whether it was used, or may have been. Raises StorageError, and NotRememberedError if that cannot be told."""

    async def spend(self, new: Nonce, request_id: str) -> None:
        """Raises ClaimTakenError or StorageError."""

    async def release(self, new: Nonce) -> None:
        """Nothing came of the request that used it. Raises StorageError."""


@dataclass(frozen=True, slots=True)
class Seal:
    """What a request shows that may come once only, and where that is written down. `verify` is given the body as it
    was sent, and raises ApiError 401 or 429.
    """

    nonce: Nonce
    store: NonceStore
    storage_s: float
    verify: Callable[[bytes], None] | None = None

    @property
    def claims(self) -> tuple[Claim, ...]:
        """What travels with the request's reservation."""
        return (self.nonce,) if self.store.in_reservation else ()

    async def check_unseen(self) -> None:
        """Raises ApiError 401, 409 or 503."""
        async with self._storage():
            if await self.store.seen(self.nonce):
                raise twice.seen(self.nonce)

    async def spend(self, request_id: str) -> None:
        """Write it down on its own. Raises ApiError 401, 409 or 503."""
        async with self._storage():
            await self.store.spend(self.nonce, request_id)

    async def release(self) -> None:
        """Nothing came of the request. A signed nonce stays spent: who saw the request must not send it again."""
        if not self.nonce.signed:
            # What cannot be given back now is given back when it expires.
            with contextlib.suppress(ApiError):
                async with self._storage():
                    await self.store.release(self.nonce)

    @contextlib.asynccontextmanager
    async def _storage(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self.storage_s):
                yield
        except ClaimTakenError as exc:
            raise twice.taken(exc) from exc
        except NotRememberedError as exc:
            raise twice.store_unavailable(exc.wait_s) from exc
        except (StorageError, TimeoutError) as exc:
            raise twice.store_unavailable() from exc


class Replay:
    """The room. Stateless. `failed` counts a failure of an address and says what it is told, `authorities` are the
    names that requests may be for.
    """

    def __init__(
        self,
        policy: Callable[[], Policy],
        store: NonceStore,
        settings: Settings,
        clock: Clock,
        failed: Callable[[str, ApiError], ApiError],
        *,
        authorities: frozenset[str],
        storage_s: float,
    ) -> None:
        self._policy = policy
        self._store = store
        self._clock = clock
        self._failed = failed
        self._authorities = authorities
        self._storage_s = storage_s
        self._window_s = settings.window_s
        self._ahead_s = settings.ahead_s
        self._life = dt.timedelta(seconds=settings.window_s + settings.ahead_s)

    def read(self, head: Head, authorization: str | None, address: str) -> Signature | None:
        """The signature in a request's head; None if it shows another kind of key. Raises ApiError 401 or 429."""
        _, _, shown = (authorization or "").strip().partition(" ")
        if not shown.lstrip().startswith(PUBLIC_PREFIX):
            return None
        try:
            signature = read_signature(head.method, head.target, head.values)
        except SignatureError as exc:
            raise self._failed(address, twice.invalid_signature(str(exc))) from exc
        if signature.authority not in self._authorities:
            raise self._failed(address, twice.invalid_signature("The Host header is not a name of this server."))
        return signature

    async def expect(self, principal: Principal, head: Head, signature: Signature | None, address: str) -> Seal | None:
        """The seal of a request that was not seen yet; None if it needs none.

        Raises ApiError 400, 401, 403, 409, 429 or 503.
        """
        mode = self._policy().tier(principal.tier).replay
        if principal.signed:
            seal = self._signed(principal, signature, address)
        elif mode == "signed":
            raise twice.invalid_signature("This API key's tier takes signed requests only, of keys made for that.")
        elif mode == "duplicate":
            seal = self._duplicate(principal, head)
        else:
            return None
        await seal.check_unseen()
        return seal

    def _signed(self, principal: Principal, signature: Signature | None, address: str) -> Seal:
        if signature is None or signature.key_id != principal.key_id:
            raise self._failed(address, twice.invalid_signature("There is none."))
        now = self._clock.now()
        age_s = now.timestamp() - signature.created_s
        if age_s > self._window_s:
            raise self._failed(address, twice.signature_expired(f"It may be {self._window_s} s old.", now))
        if -age_s > self._ahead_s:
            raise self._failed(address, twice.signature_expired(f"It may be {self._ahead_s} s ahead.", now))
        made = dt.datetime.fromtimestamp(signature.created_s, dt.UTC)

        def verify(body: bytes) -> None:
            try:
                signature.check(body, principal.public_keys)
            except SignatureError as exc:
                raise self._failed(address, twice.invalid_signature(str(exc))) from exc

        nonce = Nonce(principal.key_id, signature.nonce, made, made + self._life, signed=True)
        return Seal(nonce, self._store, self._storage_s, verify)

    def _duplicate(self, principal: Principal, head: Head) -> Seal:
        given = head.values(HEADER)
        if not given:
            raise twice.missing_nonce()
        if len(given) != 1 or NONCE.fullmatch(given[0]) is None:
            raise twice.bad_nonce()
        now = self._clock.now()
        return Seal(Nonce(principal.key_id, given[0], now, now + self._life), self._store, self._storage_s)


def authorities(names: Sequence[str], host: str, port: int) -> frozenset[str]:
    """What the Host of a signed request may be: the configured names, else the address that is listened on."""
    own = [f"{name}:{port}" for name in (host, "localhost", "127.0.0.1", "[::1]")]
    return frozenset(authority(name) for name in (names or own))


class Forgets(Protocol):
    """What the purge needs of a store."""

    async def forget(self, before: dt.datetime) -> None:
        """Delete what expired before that moment. Raises StorageError."""

    async def count(self) -> int:
        """How many nonces it holds. Raises StorageError."""


class Purge:
    """Forgets what has expired by both clocks (GUARDS F9): a nonce that the wall clock calls expired is kept for the
    length of a nonce's life on the other clock, too. A wall clock that jumps ahead and back loses nothing.

    Mutable: `_marks`, moments of the past on both clocks, the oldest first.
    """

    def __init__(self, store: Forgets, settings: Settings, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._life_s = settings.window_s + settings.ahead_s
        self._marks: collections.deque[tuple[float, dt.datetime]] = collections.deque()

    async def once(self) -> None:
        """Raises StorageError."""
        now_s, now = self._clock.monotonic(), self._clock.now()
        self._marks.append((now_s, now))
        cutoff: dt.datetime | None = None
        while self._marks and self._marks[0][0] <= now_s - self._life_s:
            cutoff = self._marks.popleft()[1]
        if cutoff is not None:
            await self._store.forget(min(cutoff, now))
