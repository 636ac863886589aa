"""Whose requests run now, so that those of a key that is not good any more can be ended."""

import datetime as dt
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol

from proxy.exchange import Ending, Principal


class Leaves(Protocol):
    """A client whose exchange can be ended early; see `proxy.client.Client`."""

    def leave(self, ending: Ending) -> None: ...


class _Stay:
    """A client among those at work, from entering to leaving. Mutable: nothing of its own."""

    def __init__(self, every: dict[str, dict[Leaves, Principal]], principal: Principal, client: Leaves) -> None:
        self._every = every
        self._principal = principal
        self._client = client

    def __enter__(self) -> None:
        self._every.setdefault(self._principal.key_id, {})[self._client] = self._principal

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        clients = self._every[self._principal.key_id]
        del clients[self._client]
        if not clients:
            del self._every[self._principal.key_id]


class Running:
    """The requests at work. Mutable: `_clients`, by key's id, each with whom it was taken for."""

    def __init__(self) -> None:
        self._clients: dict[str, dict[Leaves, Principal]] = {}

    def at_work(self, principal: Principal, client: Leaves) -> AbstractContextManager[None]:
        """While this lasts, `cut` reaches the client."""
        return _Stay(self._clients, principal, client)

    @property
    def key_ids(self) -> set[str]:
        return set(self._clients)

    def cut(self, key_id: str, judge: Callable[[Principal], Principal | None]) -> int:
        """End the requests of a key whose principals are not good any more; how many.

        `judge` gives a principal as it is now, None if it is not good. Those that go on are kept as they are now.
        """
        clients, lost = self._clients.get(key_id, {}), 0
        for client, principal in list(clients.items()):
            now = judge(principal)
            if now is None:
                client.leave(Ending.REVOKED)
                lost += 1
            else:
                clients[client] = now
        return lost

    def cut_expired(self, now: dt.datetime) -> int:
        """End the requests whose key, or whose secret, has expired since they began; how many."""

        def judge(principal: Principal) -> Principal | None:
            return principal if principal.expires is None or now < principal.expires else None

        return sum(self.cut(key_id, judge) for key_id in self.key_ids)
