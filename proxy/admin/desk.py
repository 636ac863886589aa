"""What an operator's actions work on, who asks for them, and how the stores' failures are told.

The actions are in `accounts`, `keys` and `reports`: plain functions that the admin API and the command line call alike.
No HTTP here and no printing.
"""

import contextlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from proxy.admission.explain import Explain
from proxy.clock import Clock
from proxy.identity import MintedKey
from proxy.policy.schema import Policy
from proxy.scopes import granted, insufficient
from proxy.store.accounts import AccountExistsError, Accounts, UnknownAccountError
from proxy.store.database import StorageError
from proxy.store.events import Actor, AuditLog
from proxy.store.keys import KeyRevokedError, Keys, UnknownKeyError
from proxy.store.ledger import Ledger
from proxy.store.recordings import Recordings
from proxy.store.requestlog import RequestLog
from sidecar.wire.errors import ApiError, unavailable

G = TypeVar("G")
T = TypeVar("T")


class Makes(Protocol):
    """What makes keys; see `proxy.identity.Keysmith`."""

    def mint(self, key_id: str | None = None, *, signed: bool = False) -> MintedKey: ...


@dataclass(frozen=True, slots=True)
class Desk:
    """What the actions work on. `changed` has the server look at what changed of keys, at once.

    `smith` may make the root secret, and so is asked for only by what makes a key. Raises SecretFileError.
    """

    accounts: Accounts
    keys: Keys
    ledger: Ledger
    audit: AuditLog
    log: RequestLog
    recordings: Recordings
    smith: Callable[[], Awaitable[Makes]]
    current_policy: Callable[[], Policy]
    clock: Clock
    changed: Callable[[], Awaitable[None]]
    explain: Explain

    @property
    def policy(self) -> Policy:
        """The policy of now."""
        return self.current_policy()


@dataclass(frozen=True, slots=True)
class Order(Generic[G]):
    """What is asked, of which account or key, and by whom. `scopes` of None: by the operator, who may all."""

    given: G
    by: Actor
    id: str = ""
    scopes: frozenset[str] | None = None

    def check_weaker(self, scopes: frozenset[str] | None) -> None:
        """Whoever has scopes gives nobody more (GUARDS A8). Raises ApiError 403."""
        if self.scopes is not None:
            for scope in sorted(granted(scopes) - self.scopes):
                raise insufficient(scope)


def part(found: list[T], limit: int) -> tuple[list[T], T | None]:
    """So much of a list, of which one more was read; and the last of that, None if nothing follows."""
    return found[:limit], found[limit - 1] if len(found) > limit else None


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """The stores' errors, as they are told to an operator."""
    try:
        yield
    except AccountExistsError as exc:
        raise ApiError(409, str(exc), code="account_exists", param="name", should_retry=False) from exc
    except UnknownAccountError as exc:
        raise ApiError(404, str(exc), code="account_not_found") from exc
    except UnknownKeyError as exc:
        raise ApiError(404, str(exc), code="key_not_found") from exc
    except KeyRevokedError as exc:
        raise ApiError(409, str(exc), code="key_revoked", should_retry=False) from exc
    except StorageError as exc:
        raise unavailable(
            f"The database cannot be used now: {exc}", code="storage_unavailable", retry_after_s=2
        ) from exc
