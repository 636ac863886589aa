"""The number of the last change of any key or account: how the processes on one database learn of each other's.

A change takes the next number in its own transaction and writes it into the rows of the keys it concerns. Who has seen
the number n asks once in a while for the keys whose number is greater. The row is locked until the commit, so numbers
are seen in their order.
"""

from dataclasses import dataclass
from typing import Final

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.store import notices
from proxy.store.tables import api_key, key_generation
from proxy.store.writer import Writer

# The same words in SQLite and in Postgres, for which SQLAlchemy has two constructs. The first change is the second
# generation of what it changes.
NEXT: Final = text(
    "INSERT INTO key_generation (id, number) VALUES (1, 2) "
    "ON CONFLICT (id) DO UPDATE SET number = key_generation.number + 1"
)
NOW: Final = select(key_generation.c.number)


@dataclass(frozen=True, slots=True)
class Changed:
    """The number of now, and the ids of the keys that were changed since another."""

    number: int
    key_ids: list[str]


async def advance(connection: AsyncConnection) -> int:
    """The number of the change that this transaction makes."""
    await connection.execute(NEXT)
    await notices.notify(connection)
    return int((await connection.execute(NOW)).scalar_one())


class Generations:
    """What changed, and since when. Stateless."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    async def number(self) -> int:
        """The number of now; 0 before the first change. Raises StorageError."""
        found = await self._writer.read(NOW)
        return int(found[0].number) if found else 0

    async def since(self, number: int) -> Changed:
        """Raises StorageError."""
        now = await self.number()
        if now == number:
            return Changed(now, [])
        # One that is changed between the two queries is found now, and once more the next time.
        changed = select(api_key.c.id).where(api_key.c.generation > number)
        return Changed(now, [row.id for row in await self._writer.read(changed)])
