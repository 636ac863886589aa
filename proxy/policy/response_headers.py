"""Which headers a policy may add to answers: real ones (RFC 9110, section 5), and none that an answer has already."""

import re
from collections.abc import Iterator
from typing import Final

MOST_NAME_CHARACTERS: Final = 64
MOST_VALUE_CHARACTERS: Final = 1024
# RFC 9110, section 5.6.2.
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"[!-~]([ -~]*[!-~])?")
# About the connection, or how a body is framed (RFC 9110, sections 6.6 and 7.6.1): the server's own affair.
_CONNECTION: Final = frozenset(
    {
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "date",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
OURS: Final = frozenset(
    {
        "allow",
        "cache-control",
        "idempotent-replayed",
        "ratelimit",
        "ratelimit-policy",
        "request-id",
        "retry-after",
        "retry-after-ms",
        "server",
        "traceparent",
        "tracestate",
        "www-authenticate",
        "x-accel-buffering",
        "x-client-request-id",
        "x-request-id",
        "x-should-retry",
    }
)
_OUR_FAMILIES: Final = ("openai-", "x-ratelimit-", "x-tollhouse-")


def refusals(headers: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Each name that is not taken, and why."""
    seen: dict[str, str] = {}
    for name, value in headers.items():
        lower = name.lower()
        if len(name) > MOST_NAME_CHARACTERS or not _TOKEN.fullmatch(name):
            yield name, f"{name[:MOST_NAME_CHARACTERS]!r} cannot be a header's name"
        elif lower in _CONNECTION:
            yield name, f"{name!r} is about the connection or the body; the server sets it"
        elif lower in OURS or lower.startswith(_OUR_FAMILIES):
            yield name, f"{name!r} is a header of Tollhouse's own answers; take another name"
        elif lower in seen:
            yield name, f"{name!r} is the header {seen[lower]!r} once more; upper and lower case are the same"
        elif len(value) > MOST_VALUE_CHARACTERS or not _VALUE.fullmatch(value):
            yield name, f"the value of {name!r} must be 1 to {MOST_VALUE_CHARACTERS} visible ASCII characters"
        seen.setdefault(lower, name)
