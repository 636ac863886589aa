"""A proxy that starts after another one died: the rows it left open are settled before anybody is served."""

import asyncio
import datetime as dt
from pathlib import Path

import msgspec
import pytest

from proxy.clock import SystemClock
from proxy.settings import Database
from proxy.store.accounts import Account, Accounts
from proxy.store.database import open_database
from proxy.store.keys import KeyRecord, Keys
from proxy.store.ledger import Ledger
from proxy.store.posting import Entry
from proxy.store.writer import Writer
from sidecar.wire.slots import SlotWriter
from tests.fakes.sidecar import FakeSidecar
from tests.wire.proxy.conftest import Build, on_both

pytestmark = on_both

NOW = dt.datetime.now(dt.UTC)
ENTRY = Entry(
    request_id="req_orphan", key_id="k", account_id="a", tier="open", period="2026-11", endpoint="/v1/completions",
    model="m", upstream="local", stream=True, choices=1, priority=0, est_tokens=50, created=NOW,
)  # fmt: skip


async def leave_an_orphan(settings: Database, entry: Entry) -> None:
    """What a proxy leaves that is killed with a request running."""
    async with open_database(settings) as database, Writer(database, SystemClock()) as writer:
        await Accounts(writer).create(Account("a", "a", NOW))
        await Keys(writer).create(KeyRecord("k", "a", "k", "open", None, b"m" * 32, 1, NOW))
        await Ledger(writer, "boot_dead").reserve(entry)


async def test_f1_an_orphan_is_settled_by_the_sidecar_before_the_listeners_open(
    build: Build, database: Database
) -> None:
    await leave_an_orphan(database, ENTRY)

    def knows(sidecar: FakeSidecar) -> None:
        sidecar.produced["req_orphan"] = 9

    async with build(prepare=knows) as house:
        (row,) = house.rows()
        assert (row["state"], row["completion_tokens"], row["boot_id"]) == ("settled", 9, "boot_dead")
        events = [line["event"] for line in house.lines("orphans_settled") + house.lines("ready")]
        assert events == ["orphans_settled", "ready"]
        assert house.log.getvalue().index("orphans_settled") < house.log.getvalue().index('"ready"')


async def test_f1_slots_settle_an_orphan_while_the_sidecar_is_away(
    build: Build, database: Database, tmp_path: Path
) -> None:
    await leave_an_orphan(database, ENTRY)

    def counted() -> None:
        slots = SlotWriter(tmp_path / "s.slots")
        slots.end(slots.claim("req_orphan", 0, 7), 6)
        slots.close()

    await asyncio.to_thread(counted)

    def away(sidecar: FakeSidecar) -> None:
        sidecar.deaf = True

    async with build(prepare=away) as house:
        (row,) = house.rows()
        assert (row["state"], row["prompt_tokens"], row["completion_tokens"]) == ("settled", 7, 6)


@pytest.mark.parametrize(
    ("upstream", "created", "state"),
    [
        ("local", NOW + dt.timedelta(hours=1), "void"),
        ("local", NOW - dt.timedelta(hours=1), "forced"),
        ("gone", NOW - dt.timedelta(hours=1), "forced"),
    ],
    ids=["slots older than it: it never ran", "slots younger than it", "sidecar no longer known"],
)
async def test_an_orphan_without_a_trace(
    build: Build, database: Database, upstream: str, created: dt.datetime, state: str
) -> None:
    await leave_an_orphan(database, msgspec.structs.replace(ENTRY, upstream=upstream, created=created))
    async with build() as house:
        (row,) = house.rows()
        assert row["state"] == state
