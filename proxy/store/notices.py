"""Word of a change from one process on a Postgres to the others, the moment it is committed. SQLite has one process.

Nothing depends on it: who misses a notice finds the change when it next asks, a second later (`proxy.keywatch`).
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.settings import Database as DatabaseSettings
from proxy.store import address
from proxy.store.database import StorageError, open_database

CHANNEL: Final = "tollhouse_keys"
# How long a server that went away is left alone.
AGAIN_S: Final = 1.0
NOTIFY: Final = text(f"NOTIFY {CHANNEL}")


async def notify(connection: AsyncConnection) -> None:
    """Tell the others when the transaction is committed."""
    if connection.dialect.name == "postgresql":
        await connection.execute(NOTIFY)


async def listen(settings: DatabaseSettings, heard: Callable[[], None]) -> None:
    """Call `heard` at each notice, for ever, on a connection of its own; at once, too, for what was missed before."""
    if address.is_file(settings):
        return
    while True:
        # Whoever asks every second says that the database is away.
        with contextlib.suppress(StorageError):
            await _listen(settings, heard)
        await asyncio.sleep(AGAIN_S)


async def _listen(settings: DatabaseSettings, heard: Callable[[], None]) -> None:
    """Until the connection is lost."""
    lost = asyncio.Event()
    async with open_database(settings) as database, database.read() as connection:
        # It is in no transaction: one that is idle is ended by the server.
        await connection.rollback()
        driver: Any = (await connection.get_raw_connection()).driver_connection
        driver.add_termination_listener(lambda *_: lost.set())
        await driver.add_listener(CHANNEL, lambda *_: heard())
        heard()
        try:
            await lost.wait()
        finally:
            # Its listener must not come back with it from a pool.
            await connection.invalidate()
