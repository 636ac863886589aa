"""An operator's errands by name, wherever they are done: by a running server, or on the database itself."""

import abc
import datetime as dt
from typing import Final, TypeVar

import msgspec

from proxy.admin import table
from proxy.admin.explaining import Explanation, WantedExplanation
from proxy.admin.recording import Recording, WantedRecording
from proxy.admin.records import (
    Account,
    AccountChanges,
    AuditEvent,
    AuditQuery,
    CreatedKey,
    Key,
    KeyChanges,
    KeyQuery,
    Listing,
    LogQuery,
    NewAccount,
    NewKey,
    Nothing,
    Paging,
    Rotation,
    Usage,
    UsageQuery,
)
from proxy.admin.table import Action
from proxy.store.requestlog import LoggedRequest

G = TypeVar("G", bound=msgspec.Struct)
R = TypeVar("R", bound=msgspec.Struct)
# As many as a part of a list can have: what asks for all of it asks seldom.
PART: Final = 1000


class Errands(abc.ABC):
    """The actions of the table. Whoever does them says how."""

    @abc.abstractmethod
    async def do(self, action: Action[G, R], given: G, id_: str = "") -> R:
        """Raises ApiError."""

    async def create_account(self, wanted: NewAccount) -> Account:
        return await self.do(table.CREATE_ACCOUNT, wanted)

    async def list_accounts(self) -> list[Account]:
        """All of them."""
        found: list[Account] = []
        after: str | None = None
        while True:
            part: Listing[Account] = await self.do(table.LIST_ACCOUNTS, Paging(after, PART))
            found.extend(part.data)
            if (after := part.next) is None:
                return found

    async def show_account(self, name_or_id: str) -> Account:
        return await self.do(table.SHOW_ACCOUNT, Nothing(), name_or_id)

    async def update_account(self, name_or_id: str, wanted: AccountChanges) -> Account:
        return await self.do(table.UPDATE_ACCOUNT, wanted, name_or_id)

    async def disable_account(self, name_or_id: str) -> Account:
        return await self.do(table.DISABLE_ACCOUNT, Nothing(), name_or_id)

    async def enable_account(self, name_or_id: str) -> Account:
        return await self.do(table.ENABLE_ACCOUNT, Nothing(), name_or_id)

    async def create_key(self, wanted: NewKey) -> CreatedKey:
        return await self.do(table.CREATE_KEY, wanted)

    async def list_keys(self, account: str | None = None) -> list[Key]:
        """All of them, or those of an account."""
        found: list[Key] = []
        after: str | None = None
        while True:
            part: Listing[Key] = await self.do(table.LIST_KEYS, KeyQuery(after, PART, account))
            found.extend(part.data)
            if (after := part.next) is None:
                return found

    async def show_key(self, key_id: str) -> Key:
        return await self.do(table.SHOW_KEY, Nothing(), key_id)

    async def update_key(self, key_id: str, wanted: KeyChanges) -> Key:
        return await self.do(table.UPDATE_KEY, wanted, key_id)

    async def rotate_key(self, key_id: str, wanted: Rotation) -> CreatedKey:
        return await self.do(table.ROTATE_KEY, wanted, key_id)

    async def revoke_key(self, key_id: str) -> Key:
        return await self.do(table.REVOKE_KEY, Nothing(), key_id)

    async def usage(self, period: str | None = None, account: str | None = None) -> Usage:
        """Of every key, or of those of an account."""
        whole = await self.do(table.USAGE, UsageQuery(None, PART, period, account))
        rows, after = list(whole.rows), whole.next
        while after is not None:
            part = await self.do(table.USAGE, UsageQuery(after, PART, whole.period, account))
            rows.extend(part.rows)
            after = part.next
        return Usage(whole.period, rows)

    async def check_ledger(self) -> list[str]:
        found: Listing[str] = await self.do(table.CHECK_LEDGER, Nothing())
        return found.data

    async def recording(self, wanted: WantedRecording) -> Recording:
        return await self.do(table.RECORDING, wanted)

    async def recorded(self, since: dt.datetime, until: dt.datetime, key_id: str | None = None) -> Recording:
        """All pages as one."""
        page = first = await self.recording(WantedRecording(since=since, until=until, key_id=key_id))
        rows = list(page.rows)
        while page.more:
            page = await self.recording(WantedRecording(since=since, until=until, key_id=key_id, after=rows[-1]))
            rows += page.rows
        return Recording(rows, first.callers, more=False)

    async def explain(self, wanted: WantedExplanation) -> Explanation:
        return await self.do(table.EXPLAIN, wanted)

    async def list_audit(self, wanted: AuditQuery) -> Listing[AuditEvent]:
        return await self.do(table.LIST_AUDIT, wanted)

    async def list_log(self, wanted: LogQuery) -> Listing[LoggedRequest]:
        return await self.do(table.LIST_LOG, wanted)
