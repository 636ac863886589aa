"""Makes docs/settings.md from the settings' own types: `.venv/bin/python -m tests.fakes.settings_page`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import inspect

from proxy.settings import ENV_PREFIX as PROXY_PREFIX
from proxy.settings import Proxy
from sidecar.settings import ENV_PREFIX as SIDECAR_PREFIX
from sidecar.settings import Sidecar

PAGE: Final = Path(__file__).parents[2] / "docs/settings.md"
HEAD: Final = """\
# Settings at a glance

Made from the code; a test compares. What each setting means is in [configuration](configuration.md).

A variable overrides the file; a value that begins with `[` or `{` is YAML. Both files and the variables are read once,
at the start: a change takes a restart. Two things are read again while the server runs, by themselves and on SIGHUP:
the files that `policies` names, and those of `listen.tls`.
"""
COLUMNS: Final = "| setting | takes | default | unit | variable |\n|---|---|---|---|---|\n"
# By the end of a name. The first that fits.
UNITS: Final = (
    ("_s", "seconds"),
    ("_bytes", "bytes"),
    ("_percent", "percent"),
    ("_months", "months"),
    ("_per_minute", "a minute"),
    ("tokens", "tokens"),
    ("_budget", "tokens"),
    ("_context", "tokens"),
)


def page() -> str:
    files = (("conf/proxy.yaml", Proxy, PROXY_PREFIX), ("conf/sidecar.yaml", Sidecar, SIDECAR_PREFIX))
    return HEAD + "".join(f"\n## {file}\n\n{COLUMNS}{''.join(_rows(kind, prefix))}" for file, kind, prefix in files)


def _rows(kind: Any, prefix: str, within: tuple[str, ...] = ()) -> Iterator[str]:
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    for field in info.fields:
        names = (*within, field.name)
        if isinstance(field.type, inspect.StructType):
            yield from _rows(field.type.cls, prefix, names)
            continue
        unit = next((unit for ending, unit in UNITS if field.name.endswith(ending)), "")
        variable = prefix + "__".join(name.upper() for name in names)
        cells = (f"`{'.'.join(names)}`", _takes(field.type), _default(field), unit, f"`{variable}`")
        yield f"| {' | '.join(cells)} |\n"


def _default(field: inspect.Field) -> str:
    default = field.default
    if field.default_factory is not msgspec.NODEFAULT:
        default = field.default_factory()
    return "required" if default is msgspec.NODEFAULT else f"`{msgspec.json.encode(default).decode()}`"


def _takes(kind: Any) -> str:
    match kind:
        case inspect.UnionType(types=types):
            return " or ".join(_takes(one) for one in types)
        case inspect.LiteralType(values=values):
            return ", ".join(f"`{value}`" for value in values)
        case inspect.IntType() | inspect.FloatType():
            return _number(kind)
        case inspect.ListType(item_type=item) | inspect.VarTupleType(item_type=item):
            return f"a list of: {_takes(item)}"
        case inspect.StructType(fields=fields):
            return f"a mapping of {', '.join(f'`{field.name}`' for field in fields)}"
        case _:
            return {inspect.BoolType: "`true`, `false`", inspect.NoneType: "`null`"}.get(type(kind), "text")


def _number(kind: inspect.IntType | inspect.FloatType) -> str:
    noun = "a whole number" if isinstance(kind, inspect.IntType) else "a number"
    least = f"from {kind.ge}" if kind.ge is not None else "" if kind.gt is None else f"above {kind.gt}"
    most = f"to {kind.le}" if kind.le is not None else "" if kind.lt is None else f"below {kind.lt}"
    return " ".join(part for part in (noun, least, most) if part)


if __name__ == "__main__":
    PAGE.write_text(page())
