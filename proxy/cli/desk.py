"""An operator's errand, done by the running server over its admin socket, or on the database itself when none runs.

Both ways end in the same functions, `proxy.admin.actions`: the server's answer is the function's.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

from proxy import app
from proxy.admin import actions
from proxy.admin.actions import Account, CreatedKey, Desk, Key, NewAccount, NewKey, Usage
from proxy.admin.client import AdminClient, NotReachableError
from proxy.admin.recording import Recording, WantedRecording, recording
from proxy.cli.exits import CommandError, Exit
from proxy.cli.listeners import socket_answers
from proxy.secrets import SecretFileError
from proxy.settings import Proxy
from proxy.store.database import StorageError, StorageLockedError
from proxy.store.migrate import SchemaError
from proxy.tls import TlsFileError

T = TypeVar("T")


class LocalDesk:
    """The actions on a database that this process opened, with the methods of `AdminClient`."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def create_account(self, wanted: NewAccount) -> Account:
        return await actions.create_account(self._desk, wanted)

    async def list_accounts(self) -> list[Account]:
        return await actions.list_accounts(self._desk)

    async def create_key(self, wanted: NewKey) -> CreatedKey:
        return await actions.create_key(self._desk, wanted)

    async def list_keys(self) -> list[Key]:
        return await actions.list_keys(self._desk)

    async def revoke_key(self, key_id: str) -> Key:
        return await actions.revoke_key(self._desk, key_id)

    async def usage(self, period: str | None = None) -> Usage:
        return await actions.usage(self._desk, period)

    async def recording(self, wanted: WantedRecording) -> Recording:
        return await recording(self._desk, wanted)

    async def check_ledger(self) -> list[str]:
        return await actions.check_ledger(self._desk)


AnyDesk = AdminClient | LocalDesk


def at_the_desk(settings: Proxy, errand: Callable[[AnyDesk], Awaitable[T]]) -> T:
    """Do an errand where it can be done. Raises CommandError, ApiError, ConfigInvalidError."""
    way = _over_the_socket if server_runs(settings) else _on_the_database
    with explained():
        return asyncio.run(way(settings, errand))


async def _over_the_socket(settings: Proxy, errand: Callable[[AnyDesk], Awaitable[T]]) -> T:
    async with AdminClient(settings.admin.socket) as client:
        return await errand(client)


async def _on_the_database(settings: Proxy, errand: Callable[[AnyDesk], Awaitable[T]]) -> T:
    async with app.open_desk(settings) as desk:
        return await errand(LocalDesk(desk))


def server_runs(settings: Proxy) -> bool:
    """Whether a server answers on the admin socket. Raises CommandError if that cannot be told."""
    return socket_answers(Path(settings.admin.socket))


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """What the stores and the admin socket raise, as words for the operator: theirs, and what to do."""
    try:
        yield
    except NotReachableError as exc:
        raise CommandError(
            f"The server does not answer: {exc}.", hint="Its log may say why.", code=Exit.NOT_REACHABLE
        ) from exc
    except (StorageLockedError, SchemaError, SecretFileError, TlsFileError) as exc:
        # Their own words say what to do.
        raise CommandError(str(exc)) from exc
    except StorageError as exc:
        raise CommandError(f"The database cannot be used: {exc}", hint="`tollhouse doctor` looks for causes.") from exc
