"""Whose requests run now, so that those of a key that is not good any more can be ended."""

import contextlib
import datetime as dt
from collections.abc import Callable, Iterator
from typing import Protocol

from proxy.exchange import Ending, Principal


class Leaves(Protocol):
    """A client whose exchange can be ended early; see `proxy.client.Client`."""

    def leave(self, ending: Ending) -> None: ...


class Running:
    """The requests at work. Mutable: `_clients`, by key's id, each with whom it was taken for."""

    def __init__(self) -> None:
        self._clients: dict[str, dict[Leaves, Principal]] = {}

    @contextlib.contextmanager
    def at_work(self, principal: Principal, client: Leaves) -> Iterator[None]:
        """While this lasts, `cut` reaches the client."""
        clients = self._clients.setdefault(principal.key_id, {})
        clients[client] = principal
        try:
            yield
        finally:
            del clients[client]
            if not clients:
                del self._clients[principal.key_id]

    @property
    def key_ids(self) -> set[str]:
        return set(self._clients)

    def cut(self, key_id: str, is_good: Callable[[Principal], bool]) -> int:
        """End the requests of a key whose principals are not good any more; how many."""
        lost = [client for client, principal in self._clients.get(key_id, {}).items() if not is_good(principal)]
        for client in lost:
            client.leave(Ending.REVOKED)
        return len(lost)

    def cut_expired(self, now: dt.datetime) -> int:
        """End the requests whose key, or whose secret, has expired since they began; how many."""
        return sum(
            self.cut(key_id, lambda principal: principal.expires is None or now < principal.expires)
            for key_id in self.key_ids
        )
