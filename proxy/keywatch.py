"""Revocation, wherever it was done (GUARDS A12): each process asks the database every second which keys were changed.

A key that was is looked up again when it next comes, and what runs on one that is not good any more is ended; also what
runs on one that has expired meanwhile. While the database is away, known keys are good for as long as `proxy.identity`
keeps them.
"""

import asyncio
import contextlib
import datetime as dt
from collections.abc import Callable
from typing import Final, Protocol

from msgspec import structs

from proxy.clock import Clock
from proxy.exchange import Principal
from proxy.identity import ends, good, public_keys
from proxy.running import Running
from proxy.store.database import StorageError
from proxy.store.generation import Changed
from proxy.store.keys import KeyRecord
from sidecar.jsonlog import JsonLog

EVERY_S: Final = 1.0


class Generations(Protocol):
    """See `proxy.store.generation.Generations`."""

    async def number(self) -> int: ...
    async def since(self, number: int) -> Changed: ...


class LooksUp(Protocol):
    """See `proxy.store.keys.Keys`."""

    async def lookup(self, key_id: str) -> KeyRecord | None: ...


class Forgets(Protocol):
    """What knows keys; see `proxy.identity.Identify`."""

    def forget(self, *key_ids: str) -> None: ...
    def forget_all(self) -> None: ...


class KeyWatch:
    """`checked` is told when the database last answered, in seconds since 1970.

    Mutable: `_seen`, the last number that was acted on; `_away`, whether the database did not answer last time;
    `_told`, set when there may be something to see.
    """

    def __init__(
        self,
        generations: Generations,
        keys: LooksUp,
        known: Forgets,
        running: Running,
        *,
        checked: Callable[[float], None],
        clock: Clock,
        log: JsonLog,
    ) -> None:
        self._generations = generations
        self._keys = keys
        self._known = known
        self._running = running
        self._checked = checked
        self._clock = clock
        self._log = log
        self._seen = 0
        self._away = False
        self._told = asyncio.Event()
        # Two looks at once might act on what the other has not seen yet.
        self._one_at_a_time = asyncio.Lock()

    async def begin(self) -> None:
        """Before the first key comes: what was changed so far is nobody's news. Raises StorageError."""
        self._seen = await self._generations.number()

    async def run(self) -> None:
        """Look every second, and whenever told, for ever."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EVERY_S):
                    await self._told.wait()
            self._told.clear()
            try:
                await self.look()
            except Exception as exc:  # noqa: BLE001 - a watch that ended unseen would let revoked keys in for ever
                self._log.exception("key_watch_failed", exc)

    def tell(self) -> None:
        """There may be something to see now."""
        self._told.set()

    async def look(self) -> None:
        """Act on what was changed since the last look. A database that is away is asked again the next time."""
        self._note(self._running.cut_expired(self._clock.now()), "expired")
        async with self._one_at_a_time:
            try:
                await self._act(await self._generations.since(self._seen))
            except StorageError as exc:
                if not self._away:
                    self._log.exception("keys_unwatched", exc)
                self._away = True
                return
        self._away = False
        self._checked(self._clock.now().timestamp())

    async def _act(self, changed: Changed) -> None:
        if changed.number < self._seen:
            # The database is an older one, restored: nothing that is known can be relied upon.
            self._known.forget_all()
            changed = Changed(changed.number, sorted(self._running.key_ids))
        # First what is known: a request that is cut may come again at once.
        self._known.forget(*changed.key_ids)
        for key_id in self._running.key_ids.intersection(changed.key_ids):
            record, now = await self._keys.lookup(key_id), self._clock.now()
            self._note(self._running.cut(key_id, _judge(record, now)), "changed", key_id)
        self._seen = changed.number

    def _note(self, cut: int, reason: str, key_id: str | None = None) -> None:
        if cut:
            self._log.info("requests_cut", count=cut, reason=reason, key_id=key_id)


def _judge(record: KeyRecord | None, now: dt.datetime) -> Callable[[Principal], Principal | None]:
    """Whether what a principal showed, a secret or a signature, is good yet, and until when it is now."""
    if record is None:
        return lambda _: None
    signing = public_keys(record, now)

    def judge(principal: Principal) -> Principal | None:
        # The newest of those that it may have signed with.
        shown = next((key for key in signing if key in principal.public_keys), principal.mac)
        signs = not principal.public_keys or shown in principal.public_keys
        if not signs or not good(record, shown, now):
            return None
        return structs.replace(principal, expires=ends(record, shown))

    return judge
