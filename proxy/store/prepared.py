"""Statements of the hot path: on SQLite each is compiled once, and run by the driver itself.

SQLAlchemy's way from a statement to its rows costs some 60 µs each time, ten times what SQLite needs. A commit has
half a dozen statements, and every request waits for one.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import BindParameter, Select, TextClause, UpdateBase
from sqlalchemy.dialects import sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.store.visit import AtHand

Statement = Select[*tuple[Any, ...]] | UpdateBase | TextClause
Parameters = Mapping[str, Any]
Rows = Sequence[Sequence[Any]]
_DIALECT: Final = sqlite.dialect(paramstyle="qmark")
# SQLAlchemy's mark for a list of any length.
_LIST: Final = "__[POSTCOMPILE_{}]"


class Prepared:
    """A statement whose parameters are all named, and whose columns are texts and whole numbers as SQLite keeps them.

    `columns`: those that an INSERT fills. Mutable: `_compiled`, once it was run on SQLite.
    """

    def __init__(self, statement: Statement, *, columns: Sequence[str] | None = None) -> None:
        self.statement = statement
        self._columns = columns
        self._compiled: _Compiled | None = None

    async def on(self, connection: AsyncConnection, parameters: Parameters) -> Rows:
        """Run it. The rows that a SELECT finds; nothing of another."""
        if isinstance(connection, AtHand):
            compiled = self._on_sqlite()
            found: Rows = connection.driver.execute(compiled.sql(parameters), compiled.values(parameters)).fetchall()
            return found
        result = await connection.execute(self.statement, parameters)
        return result.all() if result.returns_rows else ()

    async def on_each(self, connection: AsyncConnection, parameters: Sequence[Parameters]) -> None:
        """Run one that finds nothing and has no list for each of these."""
        if isinstance(connection, AtHand):
            compiled = self._on_sqlite()
            connection.driver.executemany(compiled.text, [compiled.values(each) for each in parameters])
        else:
            await connection.execute(self.statement, parameters)

    def _on_sqlite(self) -> "_Compiled":
        if self._compiled is None:
            self._compiled = _compile(self.statement, self._columns)
        return self._compiled


class _Compiled:
    """Its text, the `names` of the parameters in their places in it, and what makes those SQLite's.

    `lists` are the parameters that are some, `fixed` those that the statement itself gives.
    """

    def __init__(
        self,
        text: str,
        names: Sequence[str],
        converters: Mapping[int, Callable[[Any], Any]],
        lists: frozenset[str],
        fixed: Parameters,
    ) -> None:
        self.text = text
        self._names = names
        self._converters = tuple(converters.items())
        self._lists = lists
        self._fixed = fixed

    def sql(self, parameters: Parameters) -> str:
        text = self.text
        for name in self._lists:
            text = text.replace(_LIST.format(name), ",".join("?" * len(parameters[name])))
        return text

    def values(self, parameters: Parameters) -> list[Any]:
        if self._lists:
            lists = self._lists
            return [one for name in self._names for one in (parameters[name] if name in lists else [parameters[name]])]
        given = {**self._fixed, **parameters} if self._fixed else parameters
        values = [given[name] for name in self._names]
        for place, convert in self._converters:
            values[place] = convert(values[place])
        return values


def _compile(statement: Statement, columns: Sequence[str] | None) -> _Compiled:
    """Raises TypeError for a statement that this module's ways are too simple for."""
    for column in statement.selected_columns if isinstance(statement, Select) else ():
        if column.type.dialect_impl(_DIALECT).result_processor(_DIALECT, None) is not None:
            raise TypeError(f"{column} would have to be converted")
    compiled = statement.compile(dialect=_DIALECT, column_keys=columns)
    names = compiled.positiontup or []
    binds = {name: compiled.binds[name] for name in names}
    converters = {name: _converter(bind) for name, bind in binds.items()}
    return _Compiled(
        str(compiled),
        names,
        {place: convert for place, name in enumerate(names) if (convert := converters[name]) is not None},
        frozenset(name for name, bind in binds.items() if bind.expanding),
        {name: bind.value for name, bind in binds.items() if not bind.required},
    )


def _converter(bind: BindParameter[Any]) -> Callable[[Any], Any] | None:
    return bind.type.dialect_impl(_DIALECT).bind_processor(_DIALECT)
