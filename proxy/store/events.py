"""The audit log: what was done to accounts and keys, by whom and from where. Rows in, rows out.

An event is written by `log`, in the transaction of what it tells of: there is neither without the other. Nothing here
changes or deletes one.
"""

import builtins
import datetime as dt
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.store.tables import audit_event
from proxy.store.writer import Writer

# What JSON has.
Value = str | int | float | bool | None | list[Any] | dict[str, Any]
# A field's name: what it was and what it is.
Changes = Mapping[str, tuple[Value, Value]]


@dataclass(frozen=True, slots=True)
class Actor:
    """Who does something: `socket:<uid>`, a key's id, `cli` on a database without a server, or the program itself."""

    name: str
    request_id: str | None = None
    address: str | None = None


# What no operator asked for.
HOUSE: Final = Actor("house")


@dataclass(frozen=True, slots=True)
class Act:
    """An action under way: what an event will tell, but for what changed. `id` stays when it is tried again."""

    id: str
    time: dt.datetime
    actor: Actor
    action: str
    target: str


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the log. `changes` has each changed field's value before and after, and no secret."""

    id: str
    time: dt.datetime
    actor: str
    action: str
    target: str
    request_id: str | None
    address: str | None
    changes: dict[str, builtins.list[Value]]


def begin(actor: Actor, action: str, target: str, now: dt.datetime) -> Act:
    """An action that is about to be done. Its id sorts by its time, to the microsecond."""
    microseconds = int(now.timestamp() * 1_000_000)
    return Act(f"evt_{microseconds:016x}{secrets.token_hex(8)}", now, actor, action, target)


async def log(connection: AsyncConnection, act: Act, changes: Changes) -> None:
    row = {
        "id": act.id,
        "time": act.time,
        "actor": act.actor.name,
        "action": act.action,
        "target": act.target,
        "request_id": act.actor.request_id,
        "address": act.actor.address,
        "changes": {name: list(pair) for name, pair in changes.items()},
    }
    await connection.execute(insert(audit_event), [row])


async def logged(connection: AsyncConnection, act: Act) -> bool:
    """Whether it was done already, by a commit that seemed to fail."""
    return (await connection.execute(select(audit_event.c.id).where(audit_event.c.id == act.id))).first() is not None


class AuditLog:
    """The table of events. Stateless."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    async def list(
        self, *, before: str | None = None, target: str | None = None, actor: str | None = None, limit: int
    ) -> builtins.list[Event]:
        """The newest first, from the one with the id `before` on. Raises StorageError."""
        query = select(audit_event).order_by(audit_event.c.id.desc()).limit(limit)
        if before is not None:
            query = query.where(audit_event.c.id < before)
        if target is not None:
            query = query.where(audit_event.c.target == target)
        if actor is not None:
            query = query.where(audit_event.c.actor == actor)
        return [Event(*tuple(row)) for row in await self._writer.read(query)]
