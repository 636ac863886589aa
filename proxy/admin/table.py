"""Every action of an operator, once: its name, its command, its URL, what goes in and comes out, and who may ask.

The admin API, its OpenAPI document and the commands are made from this table, so that they have the same powers and the
same names.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import msgspec

from proxy.admin import accounts, keys, reports
from proxy.admin.desk import Desk, Order
from proxy.admin.explaining import Explanation, WantedExplanation, explain
from proxy.admin.recording import Recording, WantedRecording, recording
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
    ServerState,
    Usage,
    UsageQuery,
)
from proxy.scopes import ADMIN, ADMIN_READ, Scope
from proxy.store.requestlog import LoggedRequest

G = TypeVar("G", bound=msgspec.Struct)
R = TypeVar("R", bound=msgspec.Struct)

BASE: Final = "/admin/v1"
DOCUMENT: Final = f"{BASE}/openapi.json"
ID: Final = "{id}"


@dataclass(frozen=True, slots=True)
class Action(Generic[G, R]):
    """One action. `path` is below `/admin/v1`; `given` is the body, or the query of a GET.

    `does` is None for what only a running server can say. `looks`: it changes nothing, although it has a body.
    """

    name: str
    command: str
    method: str
    path: str
    given: type[G]
    answer: type[R]
    summary: str
    does: Callable[[Desk, Order[G]], Awaitable[R]] | None
    looks: bool = False

    @property
    def url(self) -> str:
        return BASE + self.path

    @property
    def scope(self) -> Scope:
        """What only looks needs less than what changes."""
        return ADMIN_READ if self.method == "GET" or self.looks else ADMIN


CREATE_ACCOUNT: Final = Action(
    "create_account",
    "accounts create",
    "POST",
    "/accounts",
    NewAccount,
    Account,
    "Make an account.",
    accounts.create_account,
)
LIST_ACCOUNTS: Final = Action(
    "list_accounts",
    "accounts list",
    "GET",
    "/accounts",
    Paging,
    Listing[Account],
    "List the accounts, by name.",
    accounts.list_accounts,
)
SHOW_ACCOUNT: Final = Action(
    "show_account",
    "accounts show",
    "GET",
    "/accounts/{id}",
    Nothing,
    Account,
    "Show an account, by its name or id.",
    accounts.show_account,
)
UPDATE_ACCOUNT: Final = Action(
    "update_account",
    "accounts update",
    "PATCH",
    "/accounts/{id}",
    AccountChanges,
    Account,
    "Change an account's name, quota or metadata.",
    accounts.update_account,
)
DISABLE_ACCOUNT: Final = Action(
    "disable_account",
    "accounts disable",
    "POST",
    "/accounts/{id}/disable",
    Nothing,
    Account,
    "Refuse all keys of an account from now on, and cut what runs on them.",
    accounts.disable_account,
)
ENABLE_ACCOUNT: Final = Action(
    "enable_account",
    "accounts enable",
    "POST",
    "/accounts/{id}/enable",
    Nothing,
    Account,
    "Let the keys of a disabled account in again.",
    accounts.enable_account,
)
CREATE_KEY: Final = Action(
    "create_key",
    "keys create",
    "POST",
    "/keys",
    NewKey,
    CreatedKey,
    "Make a key. Its secret is shown this once.",
    keys.create_key,
)
LIST_KEYS: Final = Action(
    "list_keys",
    "keys list",
    "GET",
    "/keys",
    KeyQuery,
    Listing[Key],
    "List the keys, by id, without their secrets.",
    keys.list_keys,
)
SHOW_KEY: Final = Action(
    "show_key", "keys show", "GET", "/keys/{id}", Nothing, Key, "Show a key, without its secret.", keys.show_key
)
UPDATE_KEY: Final = Action(
    "update_key",
    "keys update",
    "PATCH",
    "/keys/{id}",
    KeyChanges,
    Key,
    "Change what a key is called, what it may do and how much.",
    keys.update_key,
)
ROTATE_KEY: Final = Action(
    "rotate_key",
    "keys rotate",
    "POST",
    "/keys/{id}/rotate",
    Rotation,
    CreatedKey,
    "Give a key a new secret. The one so far is good for a while yet.",
    keys.rotate_key,
)
REVOKE_KEY: Final = Action(
    "revoke_key",
    "keys revoke",
    "POST",
    "/keys/{id}/revoke",
    Nothing,
    Key,
    "End a key for good, and cut what runs on it.",
    keys.revoke_key,
)
USAGE: Final = Action(
    "usage",
    "usage",
    "GET",
    "/usage",
    UsageQuery,
    Usage,
    "Show what each key used in a month, by key's id.",
    reports.usage,
)
CHECK_LEDGER: Final = Action(
    "check_ledger",
    "ledger check",
    "GET",
    "/ledger/check",
    Nothing,
    Listing[str],
    "Look for what is wrong with the books; nothing if they are right.",
    reports.check_ledger,
)
LIST_AUDIT: Final = Action(
    "list_audit",
    "audit list",
    "GET",
    "/audit",
    AuditQuery,
    Listing[AuditEvent],
    "List what was done to accounts and keys, the newest first.",
    reports.list_audit,
)
LIST_LOG: Final = Action(
    "list_log",
    "log list",
    "GET",
    "/log",
    LogQuery,
    Listing[LoggedRequest],
    "List requests in numbers, the newest first. No content is there.",
    reports.list_log,
)
RECORDING: Final = Action(
    "recording",
    "policy simulate",
    "POST",
    "/recording",
    WantedRecording,
    Recording,
    "Give what the ledger has of requests, in counts and times, for a policy to be tried on.",
    recording,
    looks=True,
)
EXPLAIN: Final = Action(
    "explain",
    "policy explain",
    "POST",
    "/explain",
    WantedExplanation,
    Explanation,
    "Say which rules a key meets, where each comes from, and what they say of a request now. Takes nothing.",
    explain,
    looks=True,
)
STATE: Final = Action("state", "state", "GET", "/state", Nothing, ServerState, "Show the running server.", None)
ACTIONS: Final[tuple[Action[Any, Any], ...]] = (
    CREATE_ACCOUNT,
    LIST_ACCOUNTS,
    SHOW_ACCOUNT,
    UPDATE_ACCOUNT,
    DISABLE_ACCOUNT,
    ENABLE_ACCOUNT,
    CREATE_KEY,
    LIST_KEYS,
    SHOW_KEY,
    UPDATE_KEY,
    ROTATE_KEY,
    REVOKE_KEY,
    USAGE,
    CHECK_LEDGER,
    LIST_AUDIT,
    LIST_LOG,
    RECORDING,
    EXPLAIN,
    STATE,
)


def read(given: type[G], raw: bytes | dict[str, str]) -> G:
    """A body or a query as its record. Raises MsgspecError, which names fields and types, never values."""
    if isinstance(raw, bytes):
        return msgspec.json.decode(raw or b"{}", type=given)
    return msgspec.convert(raw, given, strict=False)


def query_of(given: msgspec.Struct) -> dict[str, str]:
    """A record as a query: what is not given is left out."""
    told = msgspec.to_builtins(given)
    return {name: str(value) for name, value in told.items() if value is not None}
