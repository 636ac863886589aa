"""`tollhouse log list|export`: the requests that came, in numbers. What was asked and answered is not there."""

import asyncio
import csv
import datetime as dt
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, TextIO, TypeVar, get_args

import click
import msgspec
from rich.console import RenderableType

from proxy.admin.errands import PART, Errands
from proxy.admin.records import LogQuery, LogState
from proxy.cli.desk import at_the_desk
from proxy.cli.exits import CommandError
from proxy.cli.invocation import HouseGroup, Invocation, pass_invocation
from proxy.cli.moments import PastMoment
from proxy.cli.screen import Screen, counted
from proxy.store.requestlog import FIELDS, LoggedRequest

F = TypeVar("F", bound=Callable[..., Any])
PRIVATE: Final = 0o600
FILTERS: Final = (
    click.option("--key", metavar="ID", help="Only requests of the key of this id."),
    click.option("--account", metavar="NAME", help="Only requests of this account's keys."),
    click.option("--model", metavar="NAME", help="Only requests to this model."),
    click.option("--since", type=PastMoment(), metavar="TIME", help="From then on: 7d, 12h, 2027-01-31T12:00."),
    click.option("--until", type=PastMoment(), metavar="TIME", help="Before then."),
    click.option("--status", type=click.IntRange(100, 599), help="Only answers with this status."),
    click.option("--state", type=click.Choice(get_args(LogState)), help="Only rows in this state of the ledger."),
)


def filtered(command: F) -> F:
    for option in reversed(FILTERS):
        command = option(command)
    return command


@click.group("log", cls=HouseGroup)
def log() -> None:
    """List and export the requests, in numbers."""


@log.command("list")
@filtered
@click.option("--after", metavar="PLACE", help="Go on behind this place, which a list before named.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, help="How many at most; 50.")
@pass_invocation
def list_(invocation: Invocation, /, after: str | None, limit: int, **filters: Any) -> None:
    """List requests, the newest first."""
    found, following = at_the_desk(invocation.settings(), lambda desk: _listed(desk, LogQuery(after, limit, **filters)))
    invocation.screen.reply({"rows": found, "next": following}, lambda: _table(invocation.screen, found))
    if following is not None:
        invocation.screen.remark(f"There are more: --after {following}")


@log.command("export")
@filtered
@click.option(
    "--format", "form", type=click.Choice(["csv", "jsonl"]), help="csv or jsonl; csv, with --json on the screen jsonl."
)
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="A new file, in place of the screen.")
@pass_invocation
def export(invocation: Invocation, /, form: str | None, output: Path | None, **filters: Any) -> None:
    """Write out all requests, the newest first, with every column: as CSV with a header, or as JSON lines."""
    if form is None:
        form = "jsonl" if invocation.as_json and output is None else "csv"
    write = _write_csv if form == "csv" else _write_jsonl
    with _Opened(output) as file:
        exported = at_the_desk(invocation.settings(), lambda desk: _exported(desk, filters, file, write))
    if output is not None:
        invocation.screen.reply(
            {"requests": exported, "output": str(output)}, lambda: f"{counted(exported, 'request')} in {output}"
        )


async def _listed(desk: Errands, query: LogQuery) -> tuple[list[LoggedRequest], str | None]:
    """As many as are wanted, if there are: a part that is short goes on."""
    found: list[LoggedRequest] = []
    after, limit = query.after, query.limit
    while True:
        wanted = msgspec.structs.replace(query, after=after, limit=limit - len(found))
        part = await desk.list_log(wanted)
        found += part.data
        after = part.next
        if after is None or len(found) == limit:
            return found, after


async def _exported(
    desk: Errands, filters: dict[str, Any], file: TextIO, write: Callable[[TextIO, Iterable[LoggedRequest], bool], None]
) -> int:
    """A part after the other, none of which is kept."""
    count, after = 0, None
    # What comes meanwhile is not exported: the end is where the export began.
    until = filters.pop("until") or dt.datetime.now(dt.UTC)
    first = True
    while True:
        part = await desk.list_log(LogQuery(after, PART, until=until, **filters))
        await asyncio.to_thread(write, file, part.data, first)
        count, after, first = count + len(part.data), part.next, False
        if after is None:
            return count


def _write_csv(file: TextIO, requests: Iterable[LoggedRequest], first: bool) -> None:
    lines = csv.writer(file, lineterminator="\n")
    if first:
        lines.writerow(FIELDS)
    for request in requests:
        told = msgspec.to_builtins(request)
        lines.writerow([_cell(told[name]) for name in FIELDS])


def _cell(value: object) -> object:
    """What a spreadsheet would take for a formula is text: a client gave it."""
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return "'" + value
    return value


def _write_jsonl(file: TextIO, requests: Iterable[LoggedRequest], _first: bool) -> None:
    file.writelines(msgspec.json.encode(request).decode() + "\n" for request in requests)


class _Opened:
    """The file, made for this user alone, or the standard output. Used as `with`."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: TextIO = sys.stdout

    def __enter__(self) -> TextIO:
        if self._path is not None:
            try:
                descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE)
            except OSError as exc:
                raise CommandError(f"{self._path} cannot be made: {exc.strerror}.") from exc
            self._file = os.fdopen(descriptor, "w", encoding="utf-8", newline="")
        return self._file

    def __exit__(self, *_: object) -> None:
        if self._path is None:
            self._file.flush()
        else:
            self._file.close()


def _table(screen: Screen, found: list[LoggedRequest]) -> RenderableType:
    rows = [
        [
            request.created.strftime("%Y-%m-%d %H:%M:%S"),
            request.request_id,
            request.key_id,
            request.model,
            str(request.status or ""),
            request.rule or request.error_code or request.reason or request.state,
            f"{request.prompt_tokens}+{request.completion_tokens}",
            "" if request.duration_ms is None else f"{request.duration_ms} ms",
        ]
        for request in found
    ]
    heads = ["TIME (UTC)", "REQUEST", "KEY", "MODEL", "STATUS", "ENDING", "TOKENS", "TOOK"]
    return screen.table(heads, rows)
