"""What a plain scalar says. Only forms on which all YAML readers agree count; the rest are told with what to write.

The forms of YAML 1.1 are those of its type repository (yaml.org/type: bool, int, float), which PyYAML follows.
"""

import enum
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

LONGEST_SHOWN: Final = 60


class Kind(enum.Enum):
    """What a scalar can be taken for. `UNCLEAR` is a number to some readers, and none to others."""

    NOTHING = "nothing"
    BOOLEAN = "a boolean"
    INTEGER = "a whole number"
    DECIMAL = "a number"
    TEXT = "text"
    UNCLEAR = "unclear"


@dataclass(frozen=True, slots=True)
class Reading:
    """A scalar's kind and value, and a hint for where it is not what was meant."""

    kind: Kind
    value: str | int | float | bool | None
    hint: str = ""


_INTEGER: Final = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_DECIMAL: Final = re.compile(r"-?(0|[1-9][0-9]{0,17})\.[0-9]{1,30}")
_WORDS: Final = frozenset({"yes", "no", "on", "off", "y", "n"})
_CONSTANTS: Final[dict[str, str | bool | None]] = {"": None, "~": None, "null": None, "true": True, "false": False}


def _octal(text: str) -> str:
    digits = text.replace("_", "")
    decimal = f"write {int(digits)}"
    if set(digits.lstrip("+-")) <= set("01234567"):
        decimal += f", or {int(digits, 8)} if it was meant as octal"
    return f"some readers take a leading zero for octal; {decimal}"


def _based(text: str) -> str:
    return f"numbers are decimal here; write {int(text.replace('_', ''), 0)}"


def _sexagesimal(text: str) -> str:
    value = 0
    for part in text.lstrip("+-").split(":"):
        value = value * 60 + int(part.replace("_", ""))
    value = -value if text.startswith("-") else value
    return f"some readers take it for the base-60 number {value}; write that, or put it in quotes if it is text"


def _plainly(text: str) -> str:
    number = float(text.replace("_", ""))
    if abs(number) > 1e18:
        return "the number is too large"
    return (
        f"numbers are plain decimals here; write {int(number) if number.is_integer() else f'{number:.12f}'.rstrip('0')}"
    )


# The first that matches the whole text says what to write.
_UNCLEAR: Final[tuple[tuple[re.Pattern[str], Callable[[str], str]], ...]] = (
    (re.compile(r"[-+]?0[0-9_]+"), _octal),
    (re.compile(r"[-+]?0x[0-9a-fA-F_]*[0-9a-fA-F]|[-+]?0o[0-7_]*[0-7]|[-+]?0b[01_]*[01]"), _based),
    (re.compile(r"[-+]?[0-9][0-9_]{0,18}(:[0-5]?[0-9]){1,8}"), _sexagesimal),
    (re.compile(r"-?[0-9]{19,}"), lambda _: "the number is too large"),
    (re.compile(r"[-+]?[0-9][0-9_]{0,300}"), _plainly),
    (re.compile(r"[-+]?([0-9][0-9_]{0,300}\.?[0-9_]{0,300}|\.[0-9][0-9_]{0,300})([eE][-+]?[0-9]{1,4})?"), _plainly),
    (re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"), lambda _: "infinity and NaN are not allowed; write a number"),
)


def classify(text: str) -> Reading:
    """Read an unquoted scalar."""
    if text in _CONSTANTS:
        value = _CONSTANTS[text]
        return Reading(Kind.NOTHING if value is None else Kind.BOOLEAN, value)
    if _INTEGER.fullmatch(text):
        return Reading(Kind.INTEGER, int(text))
    if _DECIMAL.fullmatch(text):
        return Reading(Kind.DECIMAL, float(text))
    for pattern, hint in _UNCLEAR:
        if pattern.fullmatch(text):
            return Reading(Kind.UNCLEAR, text, hint(text))
    return Reading(Kind.TEXT, text, _word_hint(text))


def show(text: str) -> str:
    """A scalar for a message."""
    return text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + "…"


def _word_hint(text: str) -> str:
    if text.lower() in _WORDS:
        return "this word is a boolean in YAML 1.1 and text in YAML 1.2; only true and false are booleans here"
    if text.lower() in {"true", "false", "null"}:
        return f"write {text.lower()}"
    return ""
