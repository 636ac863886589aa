"""The grammar of W3C Trace Context, for both processes. Source: https://www.w3.org/TR/trace-context/ (Level 1)."""

import re
import secrets
from dataclasses import dataclass
from typing import Final

TRACEPARENT_HEADER: Final = "traceparent"
# version, trace id, parent id, flags: 55 characters in all. No id may be all zeros, and no version ff.
_TRACEPARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")
SAMPLED: Final = 1
TRACE_BYTES: Final = 16
SPAN_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Parent:
    """What a request comes from: the span of a trace, by ids in lower-case hex, and whether its spans are sent."""

    trace_id: str
    span_id: str
    sampled: bool


def read_parent(traceparent: str | None) -> Parent | None:
    """None of a header that breaks the grammar, as of none."""
    match = None if traceparent is None else _TRACEPARENT.fullmatch(traceparent)
    return None if match is None else Parent(match[1], match[2], bool(int(match[3], 16) & SAMPLED))


def new_span_id() -> str:
    """In lower-case hex; never all zeros."""
    made = secrets.token_hex(SPAN_BYTES)
    return made if made.strip("0") else new_span_id()
