"""A migrated database for each test, the stores on it, and the records to put in."""

import contextlib
import datetime as dt
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from proxy.settings import Database as DatabaseSettings
from proxy.store.accounts import Account, Accounts
from proxy.store.boots import Boot, Boots
from proxy.store.database import Database, open_database
from proxy.store.idempotency import IdempotencyKeys
from proxy.store.keys import KeyRecord, Keys
from proxy.store.ledger import Ledger
from proxy.store.nonces import Nonces
from proxy.store.posting import Entry, Settled, Voided
from proxy.store.responses import Owned, StoredResponse, StoredResponses, Turn
from proxy.store.writer import Writer

NOW = dt.datetime(2026, 11, 25, 12, 0, tzinfo=dt.UTC)
PERIOD = "2026-11"
# Of stored responses, for each account.
MOST_BYTES = 60


class FakeClock:
    def __init__(self) -> None:
        self.monotonic_s = 100.0

    def monotonic(self) -> float:
        return self.monotonic_s

    def now(self) -> dt.datetime:
        return NOW


class Records:
    """Records with what a test does not care about filled in."""

    now = NOW
    period = PERIOD

    def key(self, key_id: str = "key_a", **changes: Any) -> KeyRecord:
        record = {"account_id": "acc", "name": key_id, "tier": "free", "models": None, "mac": b"m" * 32}
        return KeyRecord(**{"key_id": key_id, **record, "mac_version": 1, "created": NOW, **changes})

    def entry(self, request_id: str, est_tokens: int = 100, key_id: str = "key_a", **changes: Any) -> Entry:
        return Entry(
            **{
                "request_id": request_id,
                "key_id": key_id,
                "account_id": "acc",
                "tier": "free",
                "period": PERIOD,
                "endpoint": "/v1/chat/completions",
                "model": "small",
                "upstream": "local",
                "stream": True,
                "choices": 1,
                "priority": 0,
                "est_tokens": est_tokens,
                "created": NOW,
                **changes,
            }
        )

    def settled(self, request_id: str, prompt: int = 10, completion: int = 5, **changes: Any) -> Settled:
        times = {"ended": NOW, "duration_ms": 7, "ttft_ms": 3, "status": 200, "reason": "complete"}
        return Settled(
            **{
                "request_id": request_id,
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "cached_tokens": 0,
                **times,
                **changes,
            }
        )

    def boot(self, boot_id: str) -> Boot:
        return Boot(boot_id, 7, NOW)

    def stored(self, name: str, previous: str | None = None, **changes: Any) -> StoredResponse:
        """By default it expires a day later, and a name of one letter makes it 5 bytes long."""
        record = {"account_id": "acc", "model": "small", "created": NOW, "expires": NOW + dt.timedelta(days=1)}
        turn = Turn(f'["{name}"]', "")
        return StoredResponse(**{"id": name, "previous_id": previous, **record, "turn": turn, **changes})

    def owned(self, name: str, account_id: str = "acc", now: dt.datetime = NOW) -> Owned:
        return Owned(name, account_id, now)

    def voided(self, request_id: str) -> Voided:
        return Voided(request_id, ended=NOW, duration_ms=1, status=503, reason="upstream_refused", error_code="busy")


@dataclass(frozen=True, slots=True)
class Store:
    """An open store with an account `acc` and the keys `key_a` and `key_b`."""

    database: Database
    writer: Writer
    ledger: Ledger
    accounts: Accounts
    keys: Keys
    boots: Boots
    responses: StoredResponses
    nonces: Nonces
    idempotency: IdempotencyKeys


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(scope="session")
def make() -> Records:
    return Records()


@pytest.fixture
def settings(on_either: DatabaseSettings) -> DatabaseSettings:
    """A migrated database that nobody has open, on SQLite and on Postgres."""
    return on_either


@pytest.fixture
async def store(settings: DatabaseSettings, clock: FakeClock, make: Records) -> AsyncIterator[Store]:
    async with opened(settings, clock, make) as store:
        yield store


@pytest.fixture
async def sqlite_store(on_sqlite: DatabaseSettings, clock: FakeClock, make: Records) -> AsyncIterator[Store]:
    async with opened(on_sqlite, clock, make) as store:
        yield store


@pytest.fixture
async def postgres_store(on_postgres: DatabaseSettings, clock: FakeClock, make: Records) -> AsyncIterator[Store]:
    async with opened(on_postgres, clock, make) as store:
        yield store


@contextlib.asynccontextmanager
async def opened(settings: DatabaseSettings, clock: FakeClock, make: Records) -> AsyncIterator[Store]:
    async with open_database(settings) as database, Writer(database, clock) as writer:
        accounts, keys = Accounts(writer), Keys(writer)
        await accounts.create(Account("acc", "the account", NOW))
        await keys.create(make.key("key_a"))
        await keys.create(make.key("key_b"))
        responses = StoredResponses(writer, most_bytes=MOST_BYTES)
        ledger, once = Ledger(writer, "boot_1"), (Nonces(writer), IdempotencyKeys(writer))
        yield Store(database, writer, ledger, accounts, keys, Boots(writer), responses, *once)
