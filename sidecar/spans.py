"""A finished span as both processes tell it, and the words that stand in it. Who sends spans away is `otlp`'s.

Names of attributes are OpenTelemetry's (semantic conventions of HTTP and generative AI, 1.41) or begin with
`tollhouse.`; written out here, since the package that has them calls those of generative AI unstable. No attribute ever
holds what a client or a model wrote.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from sidecar.wire.internal import Endpoint

Value = str | int | float | bool | list[str]

METHOD: Final = "http.request.method"
ROUTE: Final = "http.route"
STATUS: Final = "http.response.status_code"
ERROR_TYPE: Final = "error.type"

OPERATION: Final = "gen_ai.operation.name"
PROVIDER: Final = "gen_ai.provider.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
MAX_TOKENS: Final = "gen_ai.request.max_tokens"
TEMPERATURE: Final = "gen_ai.request.temperature"
TOP_P: Final = "gen_ai.request.top_p"
SEED: Final = "gen_ai.request.seed"
STREAM: Final = "gen_ai.request.stream"
CHOICES: Final = "gen_ai.request.choice.count"
RESPONSE_ID: Final = "gen_ai.response.id"
RESPONSE_MODEL: Final = "gen_ai.response.model"
FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
CACHED_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
REASONING_TOKENS: Final = "gen_ai.usage.reasoning.output_tokens"

REQUEST_ID: Final = "tollhouse.request_id"
ACCOUNT_ID: Final = "tollhouse.account_id"
KEY_ID: Final = "tollhouse.key_id"
TIER: Final = "tollhouse.tier"
UPSTREAM: Final = "tollhouse.upstream"
ENDING: Final = "tollhouse.ending"
RULE: Final = "tollhouse.rule"
# The engine's own account of a request: not by the names above, or who adds up the usage of a trace counts it twice.
MODEL: Final = "tollhouse.model"
ENGINE_PROMPT_TOKENS: Final = "tollhouse.prompt_tokens"
ENGINE_COMPLETION_TOKENS: Final = "tollhouse.completion_tokens"
ENGINE_CACHED_TOKENS: Final = "tollhouse.cached_tokens"
ENGINE_FINISH_REASON: Final = "tollhouse.finish_reason"

# The value of PROVIDER.
TOLLHOUSE: Final = "tollhouse"
# The event of the first token of an answer.
ANSWER_BEGINS: Final = "first_token"
OPERATIONS: Final = {
    Endpoint.CHAT: "chat",
    Endpoint.COMPLETIONS: "text_completion",
    Endpoint.RESPONSES: "chat",
    Endpoint.MESSAGES: "chat",
    Endpoint.EMBEDDINGS: "embeddings",
}


class Kind(enum.Enum):
    """A span's kind, of those that are made here."""

    SERVER = "server"
    CLIENT = "client"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class Span:
    """Ids are lower-case hex, `parent_id` empty for the first span of a trace; times are nanoseconds since 1970.

    `events` are names with their times. `remote`: the parent is another process's. `failed`: not by the client's fault.
    """

    name: str
    kind: Kind
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Value]
    events: tuple[tuple[str, int], ...] = ()
    tracestate: str = ""
    remote: bool = False
    failed: bool = False


class Tracer(Protocol):
    """Where finished spans go; see `sidecar.otlp`. Neither call blocks."""

    def samples(self, trace_id: str, parent_id: str, *, parent_sampled: bool) -> bool:
        """Whether a request's spans are wanted. `parent_id` is empty where nobody traced it before."""

    def send(self, span: Span) -> None: ...
    def close(self) -> None:
        """Send what is left, within a limit. Blocks: call it in a thread."""
