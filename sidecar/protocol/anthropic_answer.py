"""The answer of /v1/messages in the shape of Anthropic's Messages API: the JSON object, its blocks, and the events.

Tokens that the prefix cache had are told apart there: `input_tokens` are the rest of the prompt. What is sent when is
in `anthropic_stream`.
"""

from dataclasses import dataclass
from typing import Literal

import msgspec

from sidecar.protocol.answer import Given, Head, TokenUsage
from sidecar.protocol.speech.parts import Part
from sidecar.protocol.speech.pieces import Kind


class MessageUsage(msgspec.Struct, frozen=True):
    """Anthropic's `usage`: the three of the prompt add up to it."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int = 0


class Text(msgspec.Struct, frozen=True, tag_field="type", tag="text"):
    """Words."""

    text: str


class Thinking(msgspec.Struct, frozen=True, tag_field="type", tag="thinking"):
    """Thoughts. Nobody signs them here: they are passed over where they come back."""

    thinking: str
    signature: str = ""


class ToolUse(msgspec.Struct, frozen=True, tag_field="type", tag="tool_use"):
    """A call of a tool."""

    id: str
    name: str
    input: msgspec.Raw


Block = Text | Thinking | ToolUse


class Message(msgspec.Struct, frozen=True, tag_field="type", tag="message"):
    """The whole answer, or its beginning in a stream: no content yet, and no reason to stop."""

    id: str
    model: str
    content: tuple[Block, ...]
    stop_reason: str | None
    stop_sequence: str | None
    usage: MessageUsage
    role: Literal["assistant"] = "assistant"


class MessageStart(msgspec.Struct, frozen=True, tag_field="type", tag="message_start"):
    """The first event."""

    message: Message


class BlockStart(msgspec.Struct, frozen=True, tag_field="type", tag="content_block_start"):
    """A block begins, with nothing in it."""

    index: int
    content_block: Block


class TextDelta(msgspec.Struct, frozen=True, tag_field="type", tag="text_delta"):
    """More text."""

    text: str


class ThinkingDelta(msgspec.Struct, frozen=True, tag_field="type", tag="thinking_delta"):
    """More thoughts."""

    thinking: str


class InputDelta(msgspec.Struct, frozen=True, tag_field="type", tag="input_json_delta"):
    """More of a call's arguments, as they are written."""

    partial_json: str


class BlockDelta(msgspec.Struct, frozen=True, tag_field="type", tag="content_block_delta"):
    """More of a block."""

    index: int
    delta: TextDelta | ThinkingDelta | InputDelta


class BlockStop(msgspec.Struct, frozen=True, tag_field="type", tag="content_block_stop"):
    """A block ends."""

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
    """/v1/messages. `thinking`: thoughts are told, too."""

    head: Head
    thinking: bool = False

    def begun(self, usage: TokenUsage) -> Message:
        """The message before anything of it is said."""
        return self._message((), None, None, usage)

    def whole(self, choices: list[Given], usage: TokenUsage) -> bytes:
        """The JSON answer."""
        (given,) = choices
        shown = [part for part in given.parts if self.shows(part.kind)]
        content = tuple(self.block(at, part) for at, part in enumerate(shown or [Part(Kind.WORDS, given.text)]))
        ended = stopped(given)
        return msgspec.json.encode(self._message(content, ended.stop_reason, ended.stop_sequence, usage))

    def shows(self, kind: Kind) -> bool:
        return self.thinking or kind is not Kind.THOUGHT

    def block(self, at: int, part: Part) -> Block:
        """A part of the answer, or its beginning, as the content's block at a place."""
        if part.kind is Kind.THOUGHT:
            return Thinking(part.text)
        if part.kind is Kind.CALL:
            return ToolUse(f"toolu_{self._bare_id}_{at}", part.name, _input(part.text))
        return Text(part.text)

    def _message(
        self, content: tuple[Block, ...], stop_reason: str | None, stop_sequence: str | None, usage: TokenUsage
    ) -> Message:
        name, told = f"msg_{self._bare_id}", message_usage(usage)
        return Message(name, self.head.model, content, stop_reason, stop_sequence, told)

    @property
    def _bare_id(self) -> str:
        return self.head.request_id.removeprefix("req_")


def stopped(given: Given) -> Stopped:
    """Why an answer ended."""
    if given.stop is not None:
        return Stopped("stop_sequence", given.stop)
    if given.finish_reason == "length":
        return Stopped("max_tokens", None)
    return Stopped("tool_use" if given.calls else "end_turn", None)


def message_usage(usage: TokenUsage) -> MessageUsage:
    cached = usage.prompt_tokens_details.cached_tokens
    return MessageUsage(usage.prompt_tokens - cached, usage.completion_tokens, cached)


def frame(event: Event) -> bytes:
    name = type(event).__struct_config__.tag
    return f"event: {name}\ndata: ".encode() + msgspec.json.encode(event) + b"\n\n"


def _input(arguments: str) -> msgspec.Raw:
    """The arguments; an empty object for those that a limit cut, or that are no JSON."""
    try:
        msgspec.json.decode(arguments, type=dict[str, msgspec.Raw])
    except msgspec.MsgspecError:
        return msgspec.Raw(b"{}")
    return msgspec.Raw(arguments.encode())
