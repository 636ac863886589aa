"""A change of some columns of one row, and what of it was different before. Pure."""

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Row

from proxy.store.events import Changes, Value


@dataclass(frozen=True, slots=True)
class Patch:
    """`put` replaces columns. `merge` changes single entries of columns that hold a JSON object; None removes one."""

    put: Mapping[str, object] = field(default_factory=dict)
    merge: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    def values(self, row: Row[Any]) -> dict[str, object]:
        """The columns that are different with it, as they are to be written."""
        wanted = dict(self.put)
        for column, entries in self.merge.items():
            merged = {**(row._mapping[column] or {}), **entries}  # noqa: SLF001  Row's public way to a column by name
            # An object without an entry is written as no object, so that there is one way to say nothing.
            wanted[column] = {name: value for name, value in merged.items() if value is not None} or None
        return {column: value for column, value in wanted.items() if row._mapping[column] != value}  # noqa: SLF001


def changes(row: Row[Any], values: Mapping[str, object]) -> Changes:
    """What the audit log is told of values that are to be written over a row's. Give it no secrets."""
    return {column: (told(row._mapping[column]), told(value)) for column, value in values.items()}  # noqa: SLF001


def told(value: object) -> Value:
    """A column's value as JSON has it. Raises TypeError for what the log is not made for."""
    if isinstance(value, dt.datetime):
        return value.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if value is None or isinstance(value, str | int | float | list | dict):
        return value
    raise TypeError(f"{type(value).__name__} cannot be told")
