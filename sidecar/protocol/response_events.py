"""The events of a stream of /v1/responses, in OpenAI's shapes. What is sent when is in `response_stream`."""

import msgspec

from sidecar.protocol.logprobs import TokenLogprob
from sidecar.protocol.response_answer import Item, OutputText, ReasoningText, Response


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
    """What tells an item."""

    output_index: int
    item: Item


class ItemAdded(ItemEvent, frozen=True, tag="response.output_item.added"): ...


class ItemDone(ItemEvent, frozen=True, tag="response.output_item.done"): ...


class PartEvent(Event, frozen=True, kw_only=True):
    """What tells of an item."""

    item_id: str
    output_index: int


class ContentEvent(PartEvent, frozen=True, kw_only=True):
    """What tells of its text."""

    content_index: int = 0


class PartAdded(ContentEvent, frozen=True, kw_only=True, tag="response.content_part.added"):
    part: OutputText | ReasoningText


class PartDone(ContentEvent, frozen=True, kw_only=True, tag="response.content_part.done"):
    part: OutputText | ReasoningText


class TextDelta(ContentEvent, frozen=True, kw_only=True, tag="response.output_text.delta"):
    delta: str
    logprobs: tuple[TokenLogprob, ...]


class TextDone(ContentEvent, frozen=True, kw_only=True, tag="response.output_text.done"):
    text: str
    logprobs: tuple[TokenLogprob, ...]


class ReasoningDelta(ContentEvent, frozen=True, kw_only=True, tag="response.reasoning_text.delta"):
    delta: str


class ReasoningDone(ContentEvent, frozen=True, kw_only=True, tag="response.reasoning_text.done"):
    text: str


class ArgumentsDelta(PartEvent, frozen=True, kw_only=True, tag="response.function_call_arguments.delta"):
    delta: str


class ArgumentsDone(PartEvent, frozen=True, kw_only=True, tag="response.function_call_arguments.done"):
    name: str
    arguments: str
