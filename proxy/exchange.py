"""The records that travel through the pipeline, each frozen: a room takes one and returns the next.

`Call` (what was asked) + `Principal` (by whom) → `Estimate` (what it may cost) → `Reservation` (what was set aside)
→ `Outcome` (what it cost and how it ended).
"""

import datetime as dt
import enum
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
from typing_extensions import override

from proxy.policy.schema import NO_OVERRIDES, Overrides
from sidecar.wire import anthropic
from sidecar.wire.errors import SERVICE_UNAVAILABLE, ApiError
from sidecar.wire.internal import Endpoint, Usage


class NotRecordedError(ApiError):
    """What should be in the ledger may be there or not: the storage failed, or did not say in time."""

    def __init__(self) -> None:
        super().__init__(
            503,
            "The request cannot be recorded now.",
            type=SERVICE_UNAVAILABLE,
            code="storage_unavailable",
            retry_after_s=2,
            should_retry=True,
        )


class TextEndpoint(enum.StrEnum):
    """The public routes that a model's tokenizer answers: nothing runs, so nothing is owed."""

    TOKENIZE = "/tokenize"
    DETOKENIZE = "/detokenize"
    COUNT_TOKENS = anthropic.COUNT_TOKENS


class Trace(msgspec.Struct, frozen=True):
    """W3C Trace Context of a request: ids in lower-case hex, and the client's tracestate as it came.

    `parent_id` is empty where the trace begins here. `call_id` is a second span's, of the call to the sidecar; empty
    where no spans are sent of this request.
    """

    trace_id: str
    span_id: str
    sampled: bool
    tracestate: str
    parent_id: str = ""
    call_id: str = ""


class Arrival(msgspec.Struct, frozen=True):
    """A request as the edge saw it, before its body. `monotonic_s` is the clock at the first byte of the handler.

    `anthropic`: its client speaks Anthropic's API, and is told errors as that has them.
    """

    request_id: str
    client_request_id: str | None
    trace: Trace
    address: str
    monotonic_s: float
    utc: dt.datetime
    anthropic: bool = False
    method: str = ""

    def named(self) -> dict[str, str]:
        """What every line of the log has of the request that it is about."""
        return {"request_id": self.request_id, "trace_id": self.trace.trace_id, "span_id": self.trace.span_id}

    def error_body(self, error: ApiError) -> bytes:
        return anthropic.error_body(error, self.request_id) if self.anthropic else error.body()

    def error_event(self, error: ApiError) -> bytes:
        return anthropic.error_event(error, self.request_id) if self.anthropic else error.event()


class Head(Protocol):
    """A request's head, for those few who judge it themselves. `target` is the path and the query as they came."""

    @property
    def method(self) -> str: ...
    @property
    def target(self) -> str: ...
    def values(self, name: str) -> tuple[str, ...]:
        """All values of a header, by its name in lower case."""


class Principal(msgspec.Struct, frozen=True):
    """Who asks. `models` of None means every model the tier allows, `scopes` of None all that a key may do by default.

    `limits` and `account_limits` are its own, in the place of its tier's. `allow_from` and `deny_from` are networks
    (CIDR) that it may, or may not, come from; an empty `allow_from` is everywhere. `public_keys`: of a key that shows
    no secret, its requests are signed by one of these. `expires`: until when what it showed is good, and `mac` the MAC
    of that. `response_headers` are its tier's, for every answer.
    """

    account_id: str
    key_id: str
    tier: str
    models: frozenset[str] | None
    scopes: frozenset[str] | None = None
    limits: Overrides = NO_OVERRIDES
    account_limits: Overrides = NO_OVERRIDES
    allow_from: tuple[str, ...] = ()
    deny_from: tuple[str, ...] = ()
    public_keys: tuple[bytes, ...] = ()
    expires: dt.datetime | None = None
    mac: bytes = b""
    response_headers: tuple[tuple[str, str], ...] = ()

    @override
    def __repr__(self) -> str:
        # What proves a key is in no line of a log.
        return f"Principal({self.key_id} of {self.account_id}, tier={self.tier!r})"

    @property
    def signed(self) -> bool:
        return bool(self.public_keys)


class Call(msgspec.Struct, frozen=True):
    """What is asked: the admission fields of a parsed body, and the body itself, decoded and encoded again.

    `max_output_tokens` is what the client asked for, per choice; None if it asked for nothing, 0 for embeddings, which
    have no output. `choices` counts all sequences: prompts × n. `prompt_bytes` is the length of `body`, `messages` how
    many messages or prompts it holds. `plain`: beside these nothing makes its prompt longer, so that bytes bound its
    tokens.

    Of /v1/responses only: `store` is what the client asked for, and in the end whether the answer is stored;
    `previous_id` the response that it goes on from, whose conversation is the first `earlier_items` of the input.
    """

    endpoint: Endpoint
    model: str
    stream: bool
    choices: int
    max_output_tokens: int | None
    max_output_param: str
    messages: int
    body: bytes
    plain: bool = True
    store: bool | None = None
    previous_id: str | None = None
    earlier_items: int = 0

    @override
    def __repr__(self) -> str:
        # What a client wrote is in no line of a log.
        return f"Call({self.endpoint.value}, stream={self.stream}, choices={self.choices})"

    @property
    def prompt_bytes(self) -> int:
        return len(self.body)


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a model's tokenizer: the parsed body, decoded and encoded again, with the model named in it."""

    endpoint: TextEndpoint
    model: str
    body: bytes = field(repr=False)


class Estimate(msgspec.Struct, frozen=True):
    """What a call may cost at most, in tokens. `exact` is True once the sidecar counted the prompt."""

    prompt_tokens: int
    output_tokens: int
    choices: int
    exact: bool

    @property
    def total(self) -> int:
        return self.prompt_tokens + self.output_tokens * self.choices


class Ending(enum.StrEnum):
    """How a request ended, once each: the log's and the ledger's `reason`."""

    COMPLETE = "complete"
    CLIENT_GONE = "client_gone"
    CLIENT_STALLED = "client_stalled"
    REFUSED = "refused"
    UPSTREAM_REFUSED = "upstream_refused"
    UPSTREAM_FAILED = "upstream_failed"
    SHUTTING_DOWN = "shutting_down"
    REVOKED = "revoked"
    INTERNAL = "internal"


class Outcome(msgspec.Struct, frozen=True):
    """The end of a request. `usage` of None means nothing ran, so nothing is owed."""

    status: int
    ending: Ending
    usage: Usage | None
    finish_reason: str
    error_code: str | None = None
