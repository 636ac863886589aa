"""What is kept of refused requests: a row of the ledger for each, as long as one key does not fill it with them."""

from typing import Final, Protocol

from proxy.admission.rate import Allowance, Rate
from proxy.clock import Clock
from proxy.store.posting import Entry
from proxy.store.refusals import Refused
from proxy.verdict import RefusedError

# A key that is refused more often says nothing new by it; the metrics count on.
MOST_PER_MINUTE: Final = 60


class Shelf(Protocol):
    """Where the rows go; see `proxy.store.refusals.Refusals`."""

    def put(self, refused: Refused) -> bool: ...


class RefusalLog:
    """Mutable: `_allowance`, how many rows each key has left for the moment."""

    def __init__(self, shelf: Shelf, clock: Clock) -> None:
        self._shelf = shelf
        self._clock = clock
        self._allowance = Allowance(clock, Rate(MOST_PER_MINUTE))

    def note(self, entry: Entry, error: RefusedError, begun_s: float) -> bool:
        """Keep a refusal, if its key has not too many. `begun_s` is when the request came, in monotonic seconds."""
        if self._allowance.take(entry.key_id) > 0:
            return False
        now, took_s = self._clock.now(), self._clock.monotonic() - begun_s
        return self._shelf.put(Refused(entry, error.rule, error.status, error.code, now, round(took_s * 1000)))
