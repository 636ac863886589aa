"""How many connections a listener has room for, and for whom. Decides only; `proxy.door` acts on it.

All connections together are bounded, and apart from that those of one address whose key is not known yet. Honest
clients open many at once and are known within milliseconds, so an address that is at its bound waits a moment for a
seat before it is refused; how many may wait is bounded, too.
"""

import enum
from collections import deque
from collections.abc import Callable
from typing import Final

# Files that stay free for the database, the admin listeners and the log.
FILE_RESERVE: Final = 64
# A connection whose request runs has a second one, to the sidecar.
FILES_EACH: Final = 2
# How many of an address may wait for a seat, for each of those that may sit.
WAITING_EACH: Final = 8


class Full(enum.StrEnum):
    """Why a connection is refused; a label of a metric."""

    CONNECTIONS = "connections"
    ADDRESS = "address"
    MEMORY = "memory"


class Place:
    """One connection's room. Mutable: `seated`, whether it may be read from; `_stranger`, whose address it counts for,
    until its key is known; `_left`, once it is over.
    """

    def __init__(self, places: "Places", address: str | None, called: Callable[[], None], *, seated: bool) -> None:
        self._places = places
        self._called = called
        self._stranger = address
        self._left = False
        self.seated = seated

    def call(self) -> None:
        """For `Places` only: a seat is free now."""
        self.seated = True
        self._called()

    def known(self) -> None:
        """A key of ours came through: the connection is no stranger's any more."""
        if self._stranger is not None:
            address, self._stranger = self._stranger, None
            self._places.rise(address, self)

    def leave(self) -> None:
        """The connection is over; a second time does nothing."""
        if not self._left:
            self._left = True
            self._places.taken -= 1
            self.known()


class Places:
    """The places of one listener. `most_strangers` of None bounds no address; `full_memory` tells that none is left.

    Mutable: `taken`, how many connections there are; `_seated` and `_waiting`, the strangers, by address.
    """

    def __init__(
        self, most: int, most_strangers: int | None = None, full_memory: Callable[[], bool] = lambda: False
    ) -> None:
        self._most = most
        self._most_strangers = most_strangers
        self._full_memory = full_memory
        self._seated: dict[str, int] = {}
        self._waiting: dict[str, deque[Place]] = {}
        self.taken = 0

    def take(self, address: str | None, called: Callable[[], None]) -> Place | Full:
        """A place for a connection, or why there is none. `called` is when one that must wait may sit down.

        An `address` of None is not counted by address: it speaks for many.
        """
        if self._full_memory():
            return Full.MEMORY
        if self.taken >= self._most:
            return Full.CONNECTIONS
        if address is None or self._most_strangers is None:
            place = Place(self, None, called, seated=True)
        elif self._seated.get(address, 0) < self._most_strangers:
            self._seated[address] = self._seated.get(address, 0) + 1
            place = Place(self, address, called, seated=True)
        else:
            waiting = self._waiting.setdefault(address, deque())
            if len(waiting) >= WAITING_EACH * self._most_strangers:
                return Full.ADDRESS
            place = Place(self, address, called, seated=False)
            waiting.append(place)
        self.taken += 1
        return place

    def rise(self, address: str, place: Place) -> None:
        """For `Place` only: a stranger is known or gone, and its seat goes to the one that waits the longest."""
        waiting = self._waiting.get(address, deque())
        if not place.seated:
            waiting.remove(place)
        elif waiting:
            waiting.popleft().call()
        elif self._seated[address] > 1:
            self._seated[address] -= 1
        else:
            del self._seated[address]
        if not waiting:
            self._waiting.pop(address, None)

    @property
    def strangers(self) -> int:
        """How many are not known yet, those that wait among them."""
        return sum(self._seated.values()) + sum(map(len, self._waiting.values()))


def fitting(most: int, files: int) -> int:
    """How many of `most` connections a process may have that may open so many files; negative is no limit."""
    return most if files < 0 else max(1, min(most, (files - FILE_RESERVE) // FILES_EACH))
