"""The kinds of values that options of several commands take, and the options that keys and accounts share."""

import datetime as dt
import re
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, TypeVar

import click
import msgspec
from typing_extensions import override

from proxy.admin.records import Name
from proxy.admin.reports import PERIOD

F = TypeVar("F", bound=Callable[..., Any])
UNLIMITED: Final = "unlimited"
# What takes a limit of its own away.
TIER: Final = "tier"
NEVER: Final = "never"
_DAYS: Final = re.compile(r"([1-9][0-9]{0,4})d")
_SPAN: Final = re.compile(r"([0-9]{1,6})([smhd])")
_UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_MOST: Final = 10**15


class Named(click.ParamType[str]):
    """A name or an id, as the records have them."""

    name = "name"

    @override
    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return msgspec.convert(value, Name)
        except msgspec.ValidationError:
            self.fail(f"{value!r} is not of 1 to 100 characters that can be printed.", param, ctx)


class Month(click.ParamType[str]):
    """A UTC calendar month."""

    name = "month"

    @override
    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not PERIOD.fullmatch(value):
            self.fail(f"{value!r} is no month such as 2026-11.", param, ctx)
        return value


class Moment(click.ParamType[dt.datetime]):
    """`90d` from now, or a date or moment of ISO 8601; one without a time zone is UTC."""

    name = "moment"

    @override
    def convert(
        self, value: str | dt.datetime, param: click.Parameter | None, ctx: click.Context | None
    ) -> dt.datetime:
        if isinstance(value, dt.datetime):
            return value
        if days := _DAYS.fullmatch(value):
            return dt.datetime.now(dt.UTC) + dt.timedelta(days=int(days[1]))
        try:
            moment = dt.datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number of days such as 90d nor a date such as 2027-01-31.", param, ctx)
        return moment.astimezone(dt.UTC) if moment.tzinfo else moment.replace(tzinfo=dt.UTC)


class MomentOrNever(click.ParamType[dt.datetime | str]):
    """A moment, or `never`."""

    name = "moment"

    @override
    def convert(
        self, value: str | dt.datetime, param: click.Parameter | None, ctx: click.Context | None
    ) -> dt.datetime | str:
        return NEVER if value == NEVER else Moment().convert(value, param, ctx)


class Span(click.ParamType[float]):
    """A time in seconds, minutes, hours or days: `30s`, `24h`."""

    name = "span"

    @override
    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        if not (span := _SPAN.fullmatch(value)):
            self.fail(f"{value!r} is no time such as 30m, 24h or 7d.", param, ctx)
        return float(int(span[1]) * _UNITS_S[span[2]])


class Limit(click.ParamType[int | str]):
    """A number, `unlimited`, or `tier` for what the tier says."""

    name = "limit"

    @override
    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if isinstance(value, int) or value in {UNLIMITED, TIER}:
            return value
        if not value.isascii() or not value.isdigit() or not 1 <= int(value) <= _MOST:
            self.fail(f"{value!r} is neither a number from 1 on, nor `{UNLIMITED}`, nor `{TIER}`.", param, ctx)
        return int(value)


class Pair(click.ParamType[tuple[str, str]]):
    """`NAME=VALUE`."""

    name = "pair"

    @override
    def convert(
        self, value: str | tuple[str, str], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        name, equals, text = value.partition("=")
        if not name or not equals:
            self.fail(f"{value!r} is not of the form NAME=VALUE.", param, ctx)
        return name, text


def limit_options(names: Sequence[str], whose: str) -> Callable[[F], F]:
    """An option for each limit, named after its field."""

    def decorate(function: F) -> F:
        for name in reversed(names):
            option = click.option(
                f"--{name.replace('_', '-')}",
                name,
                type=Limit(),
                metavar="LIMIT",
                help=f"{name.replace('_', ' ').capitalize()} of {whose}: a number, `unlimited`, or `tier`.",
            )
            function = option(function)
        return function

    return decorate


def limits_of(options: dict[str, Any], names: Sequence[str]) -> dict[str, int | Literal["unlimited"] | None]:
    """The limits among the options that were given; None for one that is to be the tier's."""
    return {name: None if options[name] == TIER else options[name] for name in names if options[name] is not None}


def metadata_option(function: F) -> F:
    return click.option(
        "--metadata", type=Pair(), multiple=True, metavar="NAME=VALUE", help="A note of yours; repeatable."
    )(function)


def day(moment: dt.datetime | None) -> str:
    return moment.strftime("%Y-%m-%d") if moment else NEVER


def minute(moment: dt.datetime | None) -> str:
    return moment.strftime("%Y-%m-%d %H:%M") if moment else NEVER


def pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())
