"""What a proxy says about a request in headers, beside the client's body: its id, whose it is, what is reserved for it.

Without a proxy (curl on the socket) nothing is said, and nothing is needed. Pure.
"""

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sidecar.wire import internal
from sidecar.wire.errors import ApiError, bad_request
from sidecar.wire.slots import REQUEST_ID_BYTES
from sidecar.wire.trace_context import TRACEPARENT_HEADER, Parent, read_parent

_REQUEST_ID: Final = re.compile(rf"[A-Za-z0-9_-]{{1,{REQUEST_ID_BYTES}}}")
# Of tenants and cache scopes.
_NAME: Final = re.compile(r"[!-~]{1,128}")
_INTEGER: Final = re.compile(r"-?[0-9]{1,15}")
_DECIMAL: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


@dataclass(frozen=True, slots=True)
class Ticket:
    """One request's papers. `proxied`: a proxy sent it, and settles by the usage comment.

    `max_total_tokens` and `max_output_tokens` are ceilings, over the request and per choice; None where none is set.
    `stored` and `previous_response_id` are of /v1/responses: what the answer tells back of a store that the proxy has.
    `trace`: the span that it comes from.
    """

    request_id: str
    proxied: bool = False
    tenant: str = ""
    weight: float = 1.0
    priority: int = 0
    deadline_ms: int | None = None
    max_total_tokens: int | None = None
    max_output_tokens: int | None = None
    cache_scope: str = ""
    stored: bool = False
    previous_response_id: str | None = None
    trace: Parent | None = None

    def named(self) -> dict[str, str]:
        return named(self.request_id, self.trace)


def new_request_id() -> str:
    """An id for a request that came without one."""
    return f"req_{secrets.token_hex(12)}"


def named(request_id: str, trace: Parent | None) -> dict[str, str]:
    """The fields that a request's log lines are found by."""
    ids = {"request_id": request_id}
    return ids if trace is None else {**ids, "trace_id": trace.trace_id, "span_id": trace.span_id}


def is_request_id(text: str) -> bool:
    """Whether the usage slots can hold it."""
    return _REQUEST_ID.fullmatch(text) is not None


def read_ticket(headers: Mapping[str, str], own_id: str) -> Ticket:
    """`own_id` is for a request that brings none. Raises ApiError 400 that names the header."""
    request_id = headers.get(internal.REQUEST_ID)
    if request_id is not None and not is_request_id(request_id):
        raise _malformed(internal.REQUEST_ID)
    return Ticket(
        request_id=own_id if request_id is None else request_id,
        proxied=request_id is not None,
        tenant=_name(headers, internal.TENANT),
        weight=_weight(headers),
        priority=_integer(headers, internal.PRIORITY) or 0,
        deadline_ms=_positive(headers, internal.DEADLINE_MS),
        max_total_tokens=_positive(headers, internal.MAX_TOTAL_TOKENS),
        max_output_tokens=_positive(headers, internal.MAX_OUTPUT_TOKENS),
        cache_scope=_name(headers, internal.CACHE_SCOPE),
        stored=_stored(headers),
        previous_response_id=_name(headers, internal.PREVIOUS_RESPONSE) or None,
        trace=read_parent(headers.get(TRACEPARENT_HEADER)),
    )


def _name(headers: Mapping[str, str], name: str) -> str:
    text = headers.get(name, "")
    if text and not _NAME.fullmatch(text):
        raise _malformed(name)
    return text


def _integer(headers: Mapping[str, str], name: str) -> int | None:
    text = headers.get(name)
    if text is None:
        return None
    if not _INTEGER.fullmatch(text):
        raise _malformed(name)
    return int(text)


def _positive(headers: Mapping[str, str], name: str) -> int | None:
    value = _integer(headers, name)
    if value is not None and value < 1:
        raise _malformed(name)
    return value


def _weight(headers: Mapping[str, str]) -> float:
    text = headers.get(internal.WEIGHT)
    if text is None:
        return 1.0
    if not _DECIMAL.fullmatch(text) or float(text) == 0:
        raise _malformed(internal.WEIGHT)
    return float(text)


def _stored(headers: Mapping[str, str]) -> bool:
    text = headers.get(internal.STORED)
    if text not in {None, "1"}:
        raise _malformed(internal.STORED)
    return text is not None


def _malformed(name: str) -> ApiError:
    return bad_request(f"The header '{name}' cannot be read.", code="invalid_value")
