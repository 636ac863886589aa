import asyncio
import datetime as dt
import os
import subprocess
import sys
from typing import Any

import pytest
from sqlalchemy import select, text, update

from proxy.store.boots import Boot, Boots, Other, here, is_gone
from proxy.store.ledger import Ledger
from proxy.store.tables import boot


async def age(store: Any, boot_id: str, seconds: int) -> None:
    """As if it had been seen so long ago, by the server's clock."""
    statement = text(f"UPDATE boot SET seen = seen - interval '{seconds} seconds' WHERE id = :id")  # noqa: S608
    async with store.database.write() as connection:
        await connection.execute(statement, {"id": boot_id})


async def test_a_boot_begins_and_ends(store: Any, make: Any) -> None:
    for _ in range(2):
        await store.boots.begin(make.boot("boot_1"))
    await store.boots.begin(make.boot("boot_2"))
    ended = make.now + dt.timedelta(hours=1)
    await store.boots.end("boot_1", ended)
    columns = (boot.c.id, boot.c.pid, boot.c.started, boot.c.ended)
    rows = await store.writer.read(select(*columns).order_by(boot.c.id))
    assert [tuple(row) for row in rows] == [("boot_1", 7, make.now, ended), ("boot_2", 7, make.now, None)]
    assert [other.id for other in await store.boots.others("boot_3")] == ["boot_2"]
    assert await store.boots.others("boot_2") == []


async def test_f1_who_does_not_share_the_database_is_dead(sqlite_store: Any, make: Any) -> None:
    await sqlite_store.boots.begin(make.boot("boot_1"))
    (other,) = await sqlite_store.boots.others("boot_2")
    assert other.lapsed


async def test_f1_a_lease_lapses_after_15_s_by_the_server_s_clock(postgres_store: Any, make: Any) -> None:
    boots = Boots(postgres_store.writer, shared=True)
    await boots.begin(make.boot("boot_1"))
    for seconds, lapsed in ((0, False), (8, False), (8, True)):
        await age(postgres_store, "boot_1", seconds)
        (other,) = await boots.others("boot_2")
        assert other.lapsed is lapsed
    await boots.beat("boot_1")
    (other,) = await boots.others("boot_2")
    assert not other.lapsed


async def test_f1_one_alone_becomes_the_keeper_of_the_dead(store: Any, make: Any) -> None:
    await store.boots.begin(make.boot("boot_1"))
    seen = await asyncio.gather(*(store.boots.others(f"boot_{number}") for number in (2, 3)))
    await asyncio.gather(*(store.boots.keep(found[0], f"boot_{number}") for number, found in enumerate(seen, 2)))
    (other,) = await store.boots.others("boot_9")
    assert other.keeper in {"boot_2", "boot_3"}
    # The other one finds it changed, and a living one shows that it lives.
    await store.boots.keep(seen[0][0], "boot_4")
    assert [found.keeper for found in await store.boots.others("boot_9")] == [other.keeper]
    await store.boots.beat("boot_1")
    assert [found.keeper for found in await store.boots.others("boot_9")] == [None]


async def test_f1_one_that_was_seen_since_has_not_lapsed(store: Any, make: Any) -> None:
    await store.boots.begin(make.boot("boot_1"))
    # On a quick machine the clock may say the same at the beat as at the beginning.
    async with store.database.write() as connection:
        await connection.execute(update(boot).values(seen=boot.c.started))
    (as_it_was,) = await store.boots.others("boot_2")
    await store.boots.beat("boot_1")
    await store.boots.keep(as_it_was, "boot_2")
    assert [found.keeper for found in await store.boots.others("boot_2")] == [None]


async def test_the_rows_of_the_dead_are_their_keeper_s_and_end_with_the_last(store: Any, make: Any) -> None:
    await store.boots.begin(make.boot("boot_0"))
    await Ledger(store.writer, "boot_0").reserve(make.entry("req_a", 100))
    assert await store.ledger.open_rows() == []
    (other,) = await store.boots.others("boot_1")
    await store.boots.keep(other, "boot_1")
    assert [entry.request_id for entry in await store.ledger.open_rows()] == ["req_a"]
    assert await Ledger(store.writer, "boot_2").open_rows() == []
    await store.boots.end_kept("boot_1", make.now)
    assert len(await store.boots.others("boot_1")) == 1
    await store.ledger.settle(make.settled("req_a", 10, 5, reason="internal", status=500))
    await store.boots.end_kept("boot_1", make.now)
    assert await store.boots.others("boot_1") == []
    assert await store.ledger.check() == []


def test_a_process_that_ended_here_is_known_to_be_gone() -> None:
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], check=True, stdout=subprocess.PIPE)
    gone = Other("boot_1", int(ended.stdout), here(), None, None, lapsed=False)
    assert is_gone(gone, here())
    assert not is_gone(gone, "elsewhere")
    assert not is_gone(gone, None)
    for pid in (os.getpid(), 1):
        assert not is_gone(Other("boot_1", pid, here(), None, None, lapsed=False), here())


@pytest.mark.parametrize("place", ["here", None])
async def test_a_boot_remembers_where_its_pid_means_something(store: Any, make: Any, place: str | None) -> None:
    await store.boots.begin(Boot("boot_1", 7, make.now, place))
    (other,) = await store.boots.others("boot_2")
    assert (other.pid, other.place) == (7, place)
