"""The database's rooms, opened and put together on behalf of one boot; `house` puts the rest together."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass

from proxy.clock import Clock
from proxy.settings import Proxy
from proxy.store import migrate
from proxy.store.accounts import Accounts
from proxy.store.boots import Boots
from proxy.store.database import open_database
from proxy.store.events import AuditLog
from proxy.store.generation import Generations
from proxy.store.idempotency import IdempotencyKeys
from proxy.store.keys import Keys
from proxy.store.ledger import Ledger
from proxy.store.nonces import Nonces
from proxy.store.responses import StoredResponses
from proxy.store.valkey import Valkey, open_valkey
from proxy.store.writer import Observer, Writer


@dataclass(frozen=True, slots=True)
class Stores:
    """The database's rooms, on behalf of one boot. `shared`: other processes may write to them too."""

    boot_id: str
    shared: bool
    writer: Writer
    accounts: Accounts
    keys: Keys
    generations: Generations
    audit: AuditLog
    ledger: Ledger
    boots: Boots
    responses: StoredResponses
    nonces: Nonces
    idempotency: IdempotencyKeys
    valkey: Valkey | None


@contextlib.asynccontextmanager
async def open_stores(settings: Proxy, clock: Clock, observer: Observer) -> AsyncIterator[Stores]:
    """Raises StorageError, StorageLockedError, SchemaError."""
    async with open_database(settings.database) as database:
        await asyncio.to_thread(migrate.require_head, settings.database)
        async with Writer(database, clock, observer) as writer, _valkey(settings) as valkey:
            boot_id = f"boot_{secrets.token_hex(12)}"
            yield Stores(
                boot_id,
                database.shared,
                writer,
                Accounts(writer),
                Keys(writer),
                Generations(writer),
                AuditLog(writer),
                Ledger(writer, boot_id),
                Boots(writer, shared=database.shared),
                StoredResponses(writer, settings.limits.max_stored_bytes),
                Nonces(writer),
                IdempotencyKeys(writer),
                valkey,
            )


def _valkey(settings: Proxy) -> contextlib.AbstractAsyncContextManager[Valkey | None]:
    url = settings.valkey.url
    return contextlib.nullcontext() if url is None else open_valkey(url, timeout_s=settings.valkey.timeout_s)
