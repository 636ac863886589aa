import datetime as dt
from typing import Any

from sqlalchemy import select

from proxy.store.tables import boot


async def test_a_boot_begins_and_ends(store: Any, make: Any) -> None:
    await store.boots.begin(make.boot("boot_1"))
    await store.boots.begin(make.boot("boot_2"))
    ended = make.now + dt.timedelta(hours=1)
    await store.boots.end("boot_1", ended)
    rows = await store.writer.read(select(boot).order_by(boot.c.id))
    assert [tuple(row) for row in rows] == [("boot_1", 7, make.now, ended), ("boot_2", 7, make.now, None)]
