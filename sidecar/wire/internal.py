"""The sidecar's internal interface, on its socket only: header names, the bodies of `/internal/*`, the usage comment.

What a proxy tells the sidecar about a request travels in headers, so that the OpenAI body stays the client's.
"""

import enum
from typing import Final

import msgspec

REQUEST_ID: Final = "x-tollhouse-request-id"
TENANT: Final = "x-tollhouse-tenant"
WEIGHT: Final = "x-tollhouse-weight"
PRIORITY: Final = "x-tollhouse-priority"
DEADLINE_MS: Final = "x-tollhouse-deadline-ms"
# Requests with the same scope may share the prefix cache; without one they share it with all that have none.
CACHE_SCOPE: Final = "x-tollhouse-cache-scope"
# The reservation: prompt plus all choices may not exceed it.
MAX_TOTAL_TOKENS: Final = "x-tollhouse-max-total-tokens"
# What one choice may produce; the default when the body asks for nothing.
MAX_OUTPUT_TOKENS: Final = "x-tollhouse-max-output-tokens"
# Of a body to be counted: the endpoint it is for. Without it the body's fields tell.
ENDPOINT: Final = "x-tollhouse-endpoint"
# Of a body of /v1/responses: "1" if the answer will be stored, and the response that it goes on from. What leads up to
# it is in the body already.
STORED: Final = "x-tollhouse-stored"
PREVIOUS_RESPONSE: Final = "x-tollhouse-previous-response"
# In the response head: the exact number of prompt tokens.
PROMPT_TOKENS: Final = "x-tollhouse-prompt-tokens"
# In the response head: fields of the body that are not known and were ignored.
IGNORED: Final = "x-tollhouse-ignored"

# A stream for a proxy carries its usage as an SSE comment just before its finish chunks, so that the proxy can settle
# before the answer is complete. The proxy takes the comment out.
USAGE_COMMENT: Final = b": tollhouse-usage "


class Endpoint(enum.StrEnum):
    """The public routes that a model runs for, by their route template."""

    CHAT = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"
    RESPONSES = "/v1/responses"
    MESSAGES = "/v1/messages"
    EMBEDDINGS = "/v1/embeddings"

    @property
    def prompt_field(self) -> str:
        """The field of a body that holds its prompt: what an error of its length names."""
        return _PROMPT_FIELDS[self]


_PROMPT_FIELDS: Final = {
    Endpoint.CHAT: "messages",
    Endpoint.COMPLETIONS: "prompt",
    Endpoint.RESPONSES: "input",
    Endpoint.MESSAGES: "messages",
    Endpoint.EMBEDDINGS: "input",
}


class Usage(msgspec.Struct, frozen=True):
    """What a request used, in tokens; `completion_tokens` is over all choices and counts the end-of-sequence token.

    `cached_tokens` are a part of the prompt's, `reasoning_tokens` of the completion's.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    finish_reason: str = ""
    reasoning_tokens: int = 0


class TokenBound(msgspec.Struct, frozen=True):
    """An upper bound on prompt tokens without tokenising: `per_request + per_message × messages + body bytes`.

    Holds for tokenizers in which no token is shorter than one byte of its text, and for chats whose template is given
    nothing but messages.
    """

    per_request: int
    per_message: int


class ModelState(msgspec.Struct, frozen=True):
    """One served model. `bound` is None where bytes do not bound tokens: then every request is counted.

    `steps_down`: why it does not run on a faster tier, a line each.
    """

    id: str
    max_context: int
    tier: str
    precision: str
    device: str
    fingerprint: str
    created: int
    capabilities: list[str]
    bound: TokenBound | None
    steps_down: list[str] = []


class State(msgspec.Struct, frozen=True):
    """`GET /internal/state`. `ready` means a step happened; `heartbeat_age_s` is None before the first one.

    `reason` says why it is not ready: loading, restarting, stalled, draining or failed.
    """

    ready: bool
    reason: str
    models: list[ModelState]
    running: int
    waiting: int
    max_sequences: int
    max_queue: int
    kv_used_tokens: int
    kv_capacity_tokens: int
    steps: int
    engine_pid: int
    restarts: int
    heartbeat_age_s: float | None
    slots_path: str


class Count(msgspec.Struct, frozen=True):
    """`POST /internal/count`: the exact prompt tokens of a request body (all prompts of it), and the context window."""

    prompt_tokens: int
    max_context: int


class RequestState(msgspec.Struct, frozen=True):
    """`GET` or `DELETE /internal/requests/{id}`. DELETE cancels, and answers once the engine has let go of the request.

    `known` is False when no trace of the id is left.
    """

    known: bool
    running: bool
    prompt_tokens: int
    completion_tokens: int
