"""An operator's errand, done by the running server over its admin socket, or on the database itself when none runs.

Both ways end in the same functions, those of `proxy.admin.table`: the server's answer is the function's.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final, TypeVar

import msgspec
from typing_extensions import override

from proxy.admin.client import AdminClient, NotReachableError
from proxy.admin.desk import Desk, Order
from proxy.admin.errands import Errands
from proxy.admin.table import Action
from proxy.cli.exits import CommandError, Exit
from proxy.cli.listeners import socket_answers
from proxy.cli.program import program
from proxy.secrets import SecretFileError
from proxy.settings import Proxy
from proxy.sockets import ListenError
from proxy.store.backup import BackupFileError
from proxy.store.database import StorageError, StorageLockedError
from proxy.store.events import Actor
from proxy.store.failure import SchemaError
from proxy.tls import TlsFileError

T = TypeVar("T")
G = TypeVar("G", bound=msgspec.Struct)
R = TypeVar("R", bound=msgspec.Struct)
# Whoever may write the database's file.
COMMAND_LINE: Final = Actor("cli")


class LocalDesk(Errands):
    """The errands on a database that this process opened."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    @override
    async def do(self, action: Action[G, R], given: G, id_: str = "") -> R:
        if action.does is None:
            called = await asyncio.to_thread(program)
            raise CommandError("No server runs here.", hint=f"`{called} up` starts one.", code=Exit.NOT_REACHABLE)
        return await action.does(self._desk, Order(given, COMMAND_LINE, id_))


def at_the_desk(settings: Proxy, errand: Callable[[Errands], Awaitable[T]]) -> T:
    """Do an errand where it can be done. Raises CommandError, ApiError, ConfigInvalidError."""
    way = _over_the_socket if server_runs(settings) else _on_the_database
    with explained():
        return asyncio.run(way(settings, errand))


async def _over_the_socket(settings: Proxy, errand: Callable[[Errands], Awaitable[T]]) -> T:
    async with AdminClient(settings.admin.socket) as client:
        return await errand(client)


async def _on_the_database(settings: Proxy, errand: Callable[[Errands], Awaitable[T]]) -> T:
    from proxy import app  # noqa: PLC0415  half a second, which nobody waits for where a server runs

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
    except (BackupFileError, ListenError, StorageLockedError, SchemaError, SecretFileError, TlsFileError) as exc:
        # Their own words say what to do.
        raise CommandError(str(exc)) from exc
    except StorageError as exc:
        raise CommandError(
            f"The database cannot be used: {exc}", hint=f"`{program()} doctor` looks for causes."
        ) from exc
