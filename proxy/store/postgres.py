"""A database that is a Postgres server: the pool of connections to it, which several processes may have. No query.

Locks and statements have their time: a server that hangs, or another process that holds a row, costs an error and not a
request that waits for ever.
"""

import importlib.util
from typing import Final

from sqlalchemy import event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from proxy.settings import Database as DatabaseSettings
from proxy.store import address
from proxy.store.failure import POSTGRES_DRIVER, StorageError, translated

# What the server calls us, in pg_stat_activity.
APPLICATION: Final = "tollhouse"
MISSING: Final = "Postgres needs a driver that is not installed here: pip install 'tollhouse[postgres]'."


def engine_of(settings: DatabaseSettings) -> AsyncEngine:
    """A pool of connections, none of them made yet. Raises StorageError."""
    if importlib.util.find_spec(POSTGRES_DRIVER) is None:
        raise StorageError(MISSING)
    with translated():
        engine = create_async_engine(
            address.url_of(settings),
            pool_size=settings.pool_size,
            max_overflow=0,
            pool_timeout=settings.busy_timeout_s,
            connect_args={
                "timeout": settings.connect_timeout_s,
                # The server keeps the time of a statement, this keeps the server's: it may be gone without a word.
                "command_timeout": settings.statement_timeout_s + settings.connect_timeout_s,
                "server_settings": {
                    "application_name": APPLICATION,
                    "statement_timeout": _milliseconds(settings.statement_timeout_s),
                    "lock_timeout": _milliseconds(settings.busy_timeout_s),
                    # A process that hangs in a transaction must not keep the rows that it has locked.
                    "idle_in_transaction_session_timeout": _milliseconds(settings.statement_timeout_s),
                },
            },
            hide_parameters=True,
        )
    event.listen(engine.sync_engine.pool, "checkout", _refuse_closed)
    return engine


def _refuse_closed(connection: DBAPIConnection, _record: ConnectionPoolEntry, _proxied: PoolProxiedConnection) -> None:
    """A connection that the server has closed meanwhile is made anew. To know that costs no round trip."""
    if connection.driver_connection.is_closed():
        raise DisconnectionError


def _milliseconds(seconds: float) -> str:
    return str(max(1, round(seconds * 1000)))
