"""Used nonces outside the database: in the memory of this one process, or in a Valkey that several share.

Neither can say what it has forgotten: memory begins anew with the process, a Valkey when it is flushed or restarted.
So a signature that may have come before that is refused until it is too old, and what cannot be asked or written fails.
A client's clock may be ahead of ours: for as long, too, nothing that is signed is taken.
"""

import collections
import contextlib
import datetime as dt
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from proxy.clock import Clock
from proxy.settings import Proxy
from proxy.settings import Replay as Settings
from proxy.store.claims import ClaimTakenError, Nonce, NotRememberedError
from proxy.store.database import StorageError
from proxy.store.nonces import Nonces
from proxy.store.valkey import ValkeyAwayError, ValkeyExtraError, open_valkey
from sidecar.jsonlog import JsonLog

PREFIX: Final = "tollhouse:nonce:"
# Since when the Valkey remembers, in seconds of the Unix epoch. It goes with the rest when that is lost.
SINCE: Final = "tollhouse:nonces-since"
POLICY: Final = "maxmemory-policy"
NO_EVICTION: Final = "noeviction"
_REMEMBERED: Final = """
local since = redis.call('GET', KEYS[2])
if not since then
  redis.call('SET', KEYS[2], ARGV[1])
  since = ARGV[1]
end
"""
SEEN: Final = _REMEMBERED + "return {redis.call('EXISTS', KEYS[1]), since}"
# Whoever comes with the same request again has it already.
SPEND: Final = (
    _REMEMBERED
    + """
local new = redis.call('SET', KEYS[1], ARGV[2], 'NX', 'PX', ARGV[3])
if new or redis.call('GET', KEYS[1]) == ARGV[2] then return {1, since} end
return {0, since}
"""
)
RELEASE: Final = "return redis.call('DEL', KEYS[1])"


@dataclass(frozen=True, slots=True)
class _Used:
    """By which request, and until when a new one is refused."""

    request_id: str
    nonce: Nonce


class MemoryNonces:
    """One process's own. Mutable: `_used`, by their ids, the oldest first; `_floor`, when the latest one that was
    forgotten expired.
    """

    in_reservation: Final = False

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._most = settings.max_entries
        self._clock = clock
        # What was signed before that may have been used in another life of the process.
        self._since_s = clock.now().timestamp() + settings.ahead_s
        self._floor: dt.datetime | None = None
        self._used: collections.OrderedDict[str, _Used] = collections.OrderedDict()

    async def seen(self, new: Nonce) -> bool:
        """Raises NotRememberedError."""
        _check_remembered(new, self._since_s, self._clock)
        if new.signed and self._floor is not None and new.expires <= self._floor:
            return True
        return self._holder(new) is not None

    async def spend(self, new: Nonce, request_id: str) -> None:
        """Raises ClaimTakenError, or StorageError if there is no room: a nonce that lives is never forgotten."""
        holder = self._holder(new)
        if holder is not None and holder.request_id != request_id:
            raise ClaimTakenError(new)
        if holder is None and len(self._used) >= self._most:
            raise StorageError(f"{self._most} nonces are remembered already.")
        self._used[new.id] = _Used(request_id, new)

    async def release(self, new: Nonce) -> None:
        self._used.pop(new.id, None)

    async def forget(self, before: dt.datetime) -> None:
        for used in [used for used in self._used.values() if used.nonce.expires < before]:
            del self._used[used.nonce.id]
            if used.nonce.signed:
                self._floor = max(self._floor or used.nonce.expires, used.nonce.expires)

    async def count(self) -> int:
        return len(self._used)

    def _holder(self, new: Nonce) -> _Used | None:
        used = self._used.get(new.id)
        lives = used is not None and (used.nonce.signed or new.signed or used.nonce.expires > new.made)
        return used if lives else None


class Scripts(Protocol):
    """What this needs of `proxy.store.valkey.Valkey`. Both raise ValkeyAwayError."""

    async def run(self, script: str, keys: Sequence[str], arguments: Sequence[str]) -> Any: ...
    async def setting(self, name: str) -> str: ...


class ValkeyNonces:
    """Those of all proxies on one Valkey. Mutable: `_checked`, once it is known that this one evicts nothing;
    `_latest`, when the last of those that this proxy used expires; `_floor`, when the latest forgotten one expired.
    """

    in_reservation: Final = False

    def __init__(self, valkey: Scripts, settings: Settings, clock: Clock) -> None:
        self._valkey = valkey
        self._clock = clock
        # From what is as far ahead as may be until it is too old, whatever the clocks do.
        self._life_ms = (settings.window_s + 2 * settings.ahead_s) * 1000
        self._ahead_s = settings.ahead_s
        self._checked = False
        self._latest = self._floor = dt.datetime.min.replace(tzinfo=dt.UTC)

    async def check(self) -> None:
        """Raises StorageError: it is away, or would forget nonces when its memory is full."""
        with _told():
            policy = await self._valkey.setting(POLICY)
        if policy != NO_EVICTION:
            raise EvictsError(f"Valkey's {POLICY} is '{policy}': it must be '{NO_EVICTION}', or used nonces get lost.")
        self._checked = True

    async def seen(self, new: Nonce) -> bool:
        """Raises StorageError."""
        used, since_s = await self._ask(SEEN, new)
        if used or (new.signed and new.expires <= self._floor):
            return True
        _check_remembered(new, since_s + self._ahead_s, self._clock)
        return False

    async def spend(self, new: Nonce, request_id: str) -> None:
        """Raises ClaimTakenError or StorageError."""
        mine, since_s = await self._ask(SPEND, new, request_id, str(self._life_ms))
        if not mine:
            raise ClaimTakenError(new)
        # It may have been flushed since it was asked.
        _check_remembered(new, since_s + self._ahead_s, self._clock)
        if new.signed:
            self._latest = max(self._latest, new.expires)

    async def release(self, new: Nonce) -> None:
        with _told():
            await self._valkey.run(RELEASE, [PREFIX + new.id], [])

    async def forget(self, before: dt.datetime) -> None:
        """It does so by itself; this notes what it cannot tell any more."""
        self._floor = max(self._floor, min(before, self._latest))

    async def count(self) -> int:
        """Nobody has counted them: what else is in there is not ours."""
        return 0

    async def _ask(self, script: str, new: Nonce, *more: str) -> tuple[int, float]:
        if not self._checked:
            await self.check()
        now_s = f"{self._clock.now().timestamp():.3f}"
        with _told():
            answer, since = await self._valkey.run(script, [PREFIX + new.id, SINCE], [now_s, *more])
        return int(answer), float(since)


def _check_remembered(new: Nonce, since_s: float, clock: Clock) -> None:
    """Raises NotRememberedError for what was signed before that."""
    if new.signed and new.made.timestamp() < since_s:
        raise NotRememberedError(max(1.0, since_s - clock.now().timestamp()))


class EvictsError(StorageError):
    """The Valkey is set to forget what it should remember: the operator's to mend."""


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except ValkeyAwayError as exc:
        raise StorageError(str(exc)) from exc


@contextlib.asynccontextmanager
async def open_nonces(
    settings: Proxy, database: Nonces, clock: Clock, log: JsonLog, *, shared: bool
) -> AsyncIterator[Nonces | MemoryNonces | ValkeyNonces]:
    """The store that is set. `shared`: other proxies may work on the same database.

    A Valkey that is away is asked again with the first request. Raises StorageError for what can never be right.
    """
    if settings.replay.store == "database":
        yield database
    elif settings.replay.store == "memory":
        if shared:
            raise StorageError(
                "replay.store is 'memory', which is for one process, and several may share a Postgres: "
                "set it to 'database' or 'valkey'."
            )
        yield MemoryNonces(settings.replay, clock)
    else:
        async with _opened(settings, clock, log) as nonces:
            yield nonces


@contextlib.asynccontextmanager
async def _opened(settings: Proxy, clock: Clock, log: JsonLog) -> AsyncIterator[ValkeyNonces]:
    url = settings.replay.valkey_url or settings.valkey.url
    if url is None:
        raise StorageError("replay.store is 'valkey', and neither replay.valkey_url nor valkey.url says where that is.")
    try:
        async with open_valkey(url, timeout_s=settings.replay.valkey_timeout_s) as valkey:
            nonces = ValkeyNonces(valkey, settings.replay, clock)
            try:
                await nonces.check()
            except EvictsError:
                raise
            except StorageError as exc:
                log.warning("replay_store_away", reason=str(exc))
            yield nonces
    except ValkeyExtraError as exc:
        raise StorageError(str(exc)) from exc
