"""The answer of /v1/messages as bytes, in the shape of Anthropic's Messages API: the JSON object and the events.

Tokens that the prefix cache had are told apart there: `input_tokens` are the rest of the prompt.
"""

from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import msgspec

from sidecar.protocol.answer import ChunkUsage, Given, Head, TokenUsage
from sidecar.protocol.choices import Progress
from sidecar.wire.anthropic import MESSAGE_STOP, error_event
from sidecar.wire.errors import ApiError

_REASONS: Final = {"stop": "end_turn", "length": "max_tokens"}


class MessageUsage(msgspec.Struct, frozen=True):
    """Anthropic's `usage`: the three of the prompt add up to it."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int = 0


class Text(msgspec.Struct, frozen=True):
    """A piece of content."""

    text: str
    type: Literal["text"] = "text"


class Message(msgspec.Struct, frozen=True, tag_field="type", tag="message"):
    """The whole answer, or its beginning in a stream: no content yet, and no reason to stop."""

    id: str
    model: str
    content: tuple[Text, ...]
    stop_reason: str | None
    stop_sequence: str | None
    usage: MessageUsage
    role: Literal["assistant"] = "assistant"


class MessageStart(msgspec.Struct, frozen=True, tag_field="type", tag="message_start"):
    """The first event."""

    message: Message


class BlockStart(msgspec.Struct, frozen=True, tag_field="type", tag="content_block_start"):
    """The second event: an answer has one block, and here it begins."""

    index: int
    content_block: Text


class TextDelta(msgspec.Struct, frozen=True, tag_field="type", tag="text_delta"):
    """More text."""

    text: str


class BlockDelta(msgspec.Struct, frozen=True, tag_field="type", tag="content_block_delta"):
    """An event with more text."""

    index: int
    delta: TextDelta


class BlockStop(msgspec.Struct, frozen=True, tag_field="type", tag="content_block_stop"):
    """The event after the last text."""

    index: int


class Stopped(msgspec.Struct, frozen=True):
    """Why the answer ends; `stop_sequence` is the text that ended it, if one did."""

    stop_reason: str
    stop_sequence: str | None


class MessageDelta(msgspec.Struct, frozen=True, tag_field="type", tag="message_delta"):
    """The last event but one."""

    delta: Stopped
    usage: MessageUsage


Event = MessageStart | BlockStart | BlockDelta | BlockStop | MessageDelta


@dataclass(frozen=True, slots=True)
class MessageShape:
    """/v1/messages: one choice, and the usage in the events that begin and end it."""

    head: Head
    done: ClassVar[bytes] = MESSAGE_STOP

    def opening(self, index: int, usage: ChunkUsage) -> bytes:
        start = MessageStart(self._message((), None, None, _told(usage)))
        return _event(start) + _event(BlockStart(index, Text("")))

    def part(self, progress: Progress, usage: ChunkUsage) -> bytes:  # noqa: ARG002  the opening and the closing tell it
        # Thoughts have no block here.
        return _event(BlockDelta(progress.index, TextDelta(progress.text))) if progress.text else b""

    def closing(self, index: int, given: Given, usage: ChunkUsage) -> bytes:
        return _event(BlockStop(index)) + _event(MessageDelta(_stopped(given), _told(usage)))

    def totals(self, usage: TokenUsage) -> bytes:  # noqa: ARG002  the closing has them
        return b""

    def failed(self, error: ApiError) -> bytes:
        return error_event(error, self.head.request_id)

    def whole(self, choices: list[Given], usage: TokenUsage) -> bytes:
        (given,) = choices
        stopped = _stopped(given)
        content = (Text(given.text),)
        return msgspec.json.encode(
            self._message(content, stopped.stop_reason, stopped.stop_sequence, _message_usage(usage))
        )

    def _message(
        self, content: tuple[Text, ...], stop_reason: str | None, stop_sequence: str | None, usage: MessageUsage
    ) -> Message:
        name = f"msg_{self.head.request_id.removeprefix('req_')}"
        return Message(name, self.head.model, content, stop_reason, stop_sequence, usage)


def _stopped(given: Given) -> Stopped:
    if given.stop is not None:
        return Stopped("stop_sequence", given.stop)
    return Stopped(_REASONS[given.finish_reason], None)


def _told(usage: ChunkUsage) -> MessageUsage:
    if not isinstance(usage, TokenUsage):
        raise TypeError("`read_message` asks for the usage on every event")
    return _message_usage(usage)


def _message_usage(usage: TokenUsage) -> MessageUsage:
    cached = usage.prompt_tokens_details.cached_tokens
    return MessageUsage(usage.prompt_tokens - cached, usage.completion_tokens, cached)


def _event(event: Event) -> bytes:
    name = type(event).__struct_config__.tag
    return f"event: {name}\ndata: ".encode() + msgspec.json.encode(event) + b"\n\n"
