"""Moments of the past on a command line: `7d` and `12h` ago, or a date or moment of ISO 8601."""

import datetime as dt
import re
from typing import Final

import click
from typing_extensions import override

_AGO: Final = re.compile(r"([1-9][0-9]{0,5})([mhd])")
_UNITS: Final = {"m": "minutes", "h": "hours", "d": "days"}


class PastMoment(click.ParamType[dt.datetime]):
    """A moment; one without a time zone is UTC."""

    name = "moment"

    @override
    def convert(
        self, value: str | dt.datetime, param: click.Parameter | None, ctx: click.Context | None
    ) -> dt.datetime:
        if isinstance(value, dt.datetime):
            return value
        if ago := _AGO.fullmatch(value):
            return dt.datetime.now(dt.UTC) - dt.timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        if value == "now":
            return dt.datetime.now(dt.UTC)
        try:
            moment = dt.datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is neither a time ago such as 7d or 12h nor a date such as 2027-01-31.", param, ctx)
        return moment.astimezone(dt.UTC) if moment.tzinfo else moment.replace(tzinfo=dt.UTC)
