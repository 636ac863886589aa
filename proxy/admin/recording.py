"""What a simulation needs of the ledger, a page at a time: recorded requests, and the keys they came from.

The simulation itself is the command's: it takes a processor's time, which is the server's last thing to give away.
"""

import datetime as dt
from typing import Final

import msgspec

from proxy.admin.desk import Desk, Order, explained
from proxy.simulation.request import Caller
from proxy.store.recordings import Recorded
from sidecar.wire.errors import bad_request

PAGE: Final = 5000


class WantedRecording(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Of which time and key; `after`: the last request of the page before. The times have their time zone."""

    since: dt.datetime
    until: dt.datetime
    after: Recorded | None = None
    key_id: str | None = None


class Recording(msgspec.Struct, frozen=True):
    """A page. `callers`, all keys, are on the first one only; `more`: there is another page."""

    rows: list[Recorded]
    callers: list[Caller]
    more: bool


async def recording(desk: Desk, order: Order[WantedRecording]) -> Recording:
    """Raises ApiError 400 for a time without its zone, or an end before the beginning."""
    wanted = order.given
    if wanted.since.tzinfo is None or wanted.until.tzinfo is None or wanted.since >= wanted.until:
        raise bad_request("'since' must be before 'until', both with their time zone.", param="since")
    with explained():
        rows = await desk.recordings.page(
            wanted.since, wanted.until, after=wanted.after, limit=PAGE, key_id=wanted.key_id
        )
        callers = await _callers(desk, wanted.since) if wanted.after is None else []
    return Recording(rows, callers, len(rows) == PAGE)


async def _callers(desk: Desk, since: dt.datetime) -> list[Caller]:
    used = {one.key_id: one for one in await desk.recordings.used_before(since)}
    found = []
    for key in await desk.keys.list():
        before = used.get(key.key_id)
        found.append(
            Caller(
                key_id=key.key_id,
                account_id=key.account_id,
                models=None if key.models is None else sorted(key.models),
                limits=key.limits,
                account_limits=key.account_limits,
                used_tokens=before.tokens if before else 0,
                used_requests=before.requests if before else 0,
            )
        )
    return found
