"""The answer of /v1/responses: the response object and the items of its output, one for each part of the answer.

Shapes are those of OpenAI's API reference. The events are in `response_events`; what is sent when, and under which
number, is in `response_stream`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from sidecar.protocol.answer import Given, Head, TokenUsage
from sidecar.protocol.logprobs import Entry, Spell, TokenLogprob, chat_logprobs
from sidecar.protocol.requests import Asked, TextSettings, ToolChoice
from sidecar.protocol.speech.parts import Part
from sidecar.protocol.speech.pieces import Kind
from sidecar.wire.errors import ApiError

COMPLETED: Final = "completed"
FAILED: Final = "failed"
INCOMPLETE: Final = "incomplete"
IN_PROGRESS: Final = "in_progress"
_PREFIXES: Final = {Kind.WORDS: "msg", Kind.THOUGHT: "rs", Kind.CALL: "fc"}


class InputDetails(msgspec.Struct, frozen=True):
    cached_tokens: int
    cache_write_tokens: int = 0


class OutputDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: int = 0


class ResponseUsage(msgspec.Struct, frozen=True):
    """What `TokenUsage` says, in the names of Responses."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class OutputText(msgspec.Struct, frozen=True, tag_field="type", tag="output_text"):
    """The text of a message."""

    text: str
    annotations: tuple[()] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


class OutputMessage(msgspec.Struct, frozen=True, tag_field="type", tag="message"):
    """The assistant's message."""

    id: str
    status: str
    content: tuple[OutputText, ...]
    role: Literal["assistant"] = "assistant"


class FunctionCall(msgspec.Struct, frozen=True, tag_field="type", tag="function_call"):
    """A call of a tool."""

    id: str
    call_id: str
    name: str
    arguments: str
    status: str


class ReasoningText(msgspec.Struct, frozen=True, tag_field="type", tag="reasoning_text"):
    """The text of thoughts."""

    text: str


class ReasoningItem(msgspec.Struct, frozen=True, tag_field="type", tag="reasoning"):
    """What was thought; nothing sums it up."""

    id: str
    content: tuple[ReasoningText, ...]
    summary: tuple[()] = ()


Item = OutputMessage | FunctionCall | ReasoningItem


class FunctionTool(msgspec.Struct, frozen=True, tag_field="type", tag="function"):
    """A tool, told back."""

    name: str
    description: str | None
    parameters: dict[str, Any] | None
    strict: bool


class Reasoning(msgspec.Struct, frozen=True):
    effort: str | None
    summary: str | None


class IncompleteDetails(msgspec.Struct, frozen=True):
    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ResponseError(msgspec.Struct, frozen=True):
    code: str
    message: str


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """The response object. OpenAI's schema has `usage` and `user` absent rather than null."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: str
    background: Literal[False] = False
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    model: str
    output: tuple[Item, ...]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: Reasoning
    safety_identifier: str | None
    service_tier: str | UnsetType = UNSET
    store: bool
    temperature: float
    text: TextSettings
    tool_choice: ToolChoice
    tools: tuple[FunctionTool, ...]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | UnsetType = UNSET
    user: str | UnsetType = UNSET
    metadata: dict[str, str]


@dataclass(frozen=True, slots=True)
class ResponseShape:
    """/v1/responses. `spell` is None where no log-probabilities are told.

    `stored` and `previous_id`: what a proxy does with the answer, and what it has put before the request.
    """

    head: Head
    asked: Asked
    spell: Spell | None = None
    stored: bool = False
    previous_id: str | None = None

    def whole(self, choices: list[Given], usage: TokenUsage) -> bytes:
        """The JSON answer."""
        return msgspec.json.encode(self.ended(choices[0], usage))

    def begun(self) -> Response:
        """The object before there is any output."""
        return self._response(IN_PROGRESS, (), UNSET)

    def ended(self, given: Given, usage: TokenUsage) -> Response:
        """The object of a whole answer."""
        cut = given.finish_reason == "length"
        parts = given.parts or (Part(Kind.WORDS, given.text),)
        # Tokens of which nothing is shown are of no item.
        entries = given.entries if given.parts or given.text else ()
        items = [
            self.item(at, part, _entries(parts, at, entries), cut=cut and part is parts[-1])
            for at, part in enumerate(parts)
        ]
        return self._response(INCOMPLETE if cut else COMPLETED, tuple(items), _usage(usage))

    def failed(self, error: ApiError) -> Response:
        told = ResponseError("server_error", error.message)
        return self._response(FAILED, (), UNSET, told)

    def begun_item(self, at: int, part: Part) -> Item:
        """A part of which nothing was said yet, as the output's item at a place."""
        if part.kind is Kind.THOUGHT:
            return ReasoningItem(self.item_id(at, part), ())
        if part.kind is Kind.CALL:
            return self._call(at, part, IN_PROGRESS)
        return OutputMessage(self.item_id(at, part), IN_PROGRESS, ())

    def item(self, at: int, part: Part, entries: Sequence[Entry], *, cut: bool) -> Item:
        """A part that is over; `entries` are those of its tokens. One that was `cut` by a limit is incomplete."""
        if part.kind is Kind.THOUGHT:
            return ReasoningItem(self.item_id(at, part), (ReasoningText(part.text),))
        if part.kind is Kind.CALL:
            return self._call(at, part, COMPLETED if part.whole else INCOMPLETE)
        text = OutputText(part.text, logprobs=self.logprobs(entries))
        return OutputMessage(self.item_id(at, part), INCOMPLETE if cut else COMPLETED, (text,))

    def item_id(self, at: int, part: Part) -> str:
        return f"{_PREFIXES[part.kind]}_{self._numbered(at)}"

    def logprobs(self, entries: Sequence[Entry]) -> tuple[TokenLogprob, ...]:
        return () if self.spell is None else tuple(chat_logprobs(tuple(entries), self.spell).content)

    def _call(self, at: int, part: Part, status: str) -> FunctionCall:
        call_id = f"call_{self._numbered(at)}"
        return FunctionCall(self.item_id(at, part), call_id, part.name, part.text, status)

    def _numbered(self, at: int) -> str:
        return f"{self._bare_id}_{at}" if at else self._bare_id

    @property
    def _bare_id(self) -> str:
        return self.head.request_id.removeprefix("req_")

    def _response(
        self,
        status: str,
        output: tuple[Item, ...],
        usage: ResponseUsage | UnsetType,
        error: ResponseError | None = None,
    ) -> Response:
        asked = self.asked
        return Response(
            id=f"resp_{self._bare_id}",
            created_at=self.head.created,
            status=status,
            error=error,
            incomplete_details=IncompleteDetails() if status == INCOMPLETE else None,
            instructions=asked.instructions,
            max_output_tokens=asked.max_output_tokens,
            max_tool_calls=asked.max_tool_calls,
            model=self.head.model,
            output=output,
            parallel_tool_calls=asked.parallel_tool_calls,
            previous_response_id=self.previous_id,
            prompt_cache_key=asked.prompt_cache_key,
            reasoning=Reasoning(asked.reasoning_effort, asked.reasoning_summary),
            safety_identifier=asked.safety_identifier,
            service_tier="default" if self.head.echo_service_tier else UNSET,
            store=self.stored,
            temperature=asked.temperature,
            text=asked.text,
            tool_choice=asked.tool_choice,
            tools=tuple(
                FunctionTool(tool.name, tool.description, tool.parameters, tool.strict) for tool in asked.tools
            ),
            top_logprobs=asked.top_logprobs,
            top_p=asked.top_p,
            usage=usage,
            user=UNSET if asked.user is None else asked.user,
            metadata=asked.metadata,
        )


def _entries(parts: tuple[Part, ...], at: int, entries: tuple[Entry, ...]) -> list[Entry]:
    """Those of the tokens that begin in a part."""
    end = parts[at + 1].at if at + 1 < len(parts) else math.inf
    return [entry for entry in entries if parts[at].at <= entry.offset < end]


def _usage(usage: TokenUsage) -> ResponseUsage:
    return ResponseUsage(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=InputDetails(usage.prompt_tokens_details.cached_tokens),
        output_tokens=usage.completion_tokens,
        output_tokens_details=OutputDetails(usage.completion_tokens_details.reasoning_tokens),
        total_tokens=usage.total_tokens,
    )
