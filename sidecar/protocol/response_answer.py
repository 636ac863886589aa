"""The answer of /v1/responses as bytes: the response object, and the events of its stream.

Shapes are those of OpenAI's API reference. An answer has one message of one text; what is sent when, and under which
number, is in `response_stream`.
"""

from dataclasses import dataclass
from typing import Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from sidecar.protocol.answer import Given, Head, TokenUsage
from sidecar.protocol.logprobs import Entry, Spell, TokenLogprob, chat_logprobs
from sidecar.protocol.requests import Asked, TextSettings
from sidecar.wire.errors import ApiError

COMPLETED: Final = "completed"
FAILED: Final = "failed"
INCOMPLETE: Final = "incomplete"
IN_PROGRESS: Final = "in_progress"


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
    output: tuple[OutputMessage, ...]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: Reasoning
    safety_identifier: str | None
    service_tier: str | UnsetType = UNSET
    store: bool
    temperature: float
    text: TextSettings
    tool_choice: str
    tools: tuple[()] = ()
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | UnsetType = UNSET
    user: str | UnsetType = UNSET
    metadata: dict[str, str]


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """One event; its tag is its name."""

    sequence_number: int

    def frame(self) -> bytes:
        name = str(self.__struct_config__.tag).encode()
        return b"event: " + name + b"\ndata: " + msgspec.json.encode(self) + b"\n\n"


class ResponseEvent(Event, frozen=True, kw_only=True):
    """What tells the whole object."""

    response: Response


class Created(ResponseEvent, frozen=True, tag="response.created"): ...


class InProgress(ResponseEvent, frozen=True, tag="response.in_progress"): ...


class Completed(ResponseEvent, frozen=True, tag="response.completed"): ...


class Incomplete(ResponseEvent, frozen=True, tag="response.incomplete"): ...


class Failed(ResponseEvent, frozen=True, tag="response.failed"): ...


class ItemEvent(Event, frozen=True, kw_only=True):
    """What tells the message."""

    output_index: int = 0
    item: OutputMessage


class ItemAdded(ItemEvent, frozen=True, tag="response.output_item.added"): ...


class ItemDone(ItemEvent, frozen=True, tag="response.output_item.done"): ...


class ContentEvent(Event, frozen=True, kw_only=True):
    """What tells of the message's text."""

    item_id: str
    output_index: int = 0
    content_index: int = 0


class PartAdded(ContentEvent, frozen=True, kw_only=True, tag="response.content_part.added"):
    part: OutputText


class PartDone(ContentEvent, frozen=True, kw_only=True, tag="response.content_part.done"):
    part: OutputText


class TextDelta(ContentEvent, frozen=True, kw_only=True, tag="response.output_text.delta"):
    delta: str
    logprobs: tuple[TokenLogprob, ...]


class TextDone(ContentEvent, frozen=True, kw_only=True, tag="response.output_text.done"):
    text: str
    logprobs: tuple[TokenLogprob, ...]


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

    @property
    def item_id(self) -> str:
        return f"msg_{self._bare_id}"

    def whole(self, choices: list[Given], usage: TokenUsage) -> bytes:
        """The JSON answer."""
        return msgspec.json.encode(self.ended(choices[0], usage))

    def begun(self) -> Response:
        """The object before there is any output."""
        return self._response(IN_PROGRESS, (), UNSET)

    def ended(self, given: Given, usage: TokenUsage) -> Response:
        """The object of a whole answer."""
        message = self.message(given)
        return self._response(message.status, (message,), _usage(usage))

    def failed(self, error: ApiError) -> Response:
        told = ResponseError("server_error", error.message)
        return self._response(FAILED, (), UNSET, told)

    def message(self, given: Given) -> OutputMessage:
        """The whole message; one that was cut by a limit is incomplete."""
        status = INCOMPLETE if given.finish_reason == "length" else COMPLETED
        return OutputMessage(self.item_id, status, (self.part(given),))

    def part(self, given: Given) -> OutputText:
        return OutputText(given.text, logprobs=self.logprobs(given.entries))

    def logprobs(self, entries: tuple[Entry, ...]) -> tuple[TokenLogprob, ...]:
        return () if self.spell is None else tuple(chat_logprobs(entries, self.spell).content)

    @property
    def _bare_id(self) -> str:
        return self.head.request_id.removeprefix("req_")

    def _response(
        self,
        status: str,
        output: tuple[OutputMessage, ...],
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
            top_logprobs=asked.top_logprobs,
            top_p=asked.top_p,
            usage=usage,
            user=UNSET if asked.user is None else asked.user,
            metadata=asked.metadata,
        )


def _usage(usage: TokenUsage) -> ResponseUsage:
    return ResponseUsage(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=InputDetails(usage.prompt_tokens_details.cached_tokens),
        output_tokens=usage.completion_tokens,
        output_tokens_details=OutputDetails(usage.completion_tokens_details.reasoning_tokens),
        total_tokens=usage.total_tokens,
    )
