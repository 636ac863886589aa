"""The order of the events of /v1/messages. Pure: progress in, bytes out. The rules (Anthropic's reference):

- with the first token: message_start, with the usage so far;
- each part of the answer is a block: it begins with nothing in it, then comes more of it, piece by piece, and it ends
  before the next one begins. An answer of which nothing is shown has an empty text;
- at the end: the usage comment, if a proxy asked and must settle before it; the last block's end; message_delta, which
  tells why the answer ended and the whole usage; message_stop. All of it in one piece;
- a failure is an event of its own.
"""

from sidecar.protocol.answer import TokenUsage
from sidecar.protocol.anthropic_answer import (
    BlockDelta,
    BlockStart,
    BlockStop,
    Event,
    InputDelta,
    MessageDelta,
    MessageShape,
    MessageStart,
    TextDelta,
    ThinkingDelta,
    frame,
    message_usage,
    stopped,
)
from sidecar.protocol.choices import Choices, Progress
from sidecar.protocol.speech.parts import Parts
from sidecar.protocol.speech.pieces import Kind, Piece
from sidecar.protocol.stream import StreamOptions, given_choice, token_usage, usage_comment
from sidecar.wire.anthropic import MESSAGE_STOP, error_event
from sidecar.wire.errors import ApiError


class MessageStream:
    """One stream. Mutable: `_started` (whether its first event was sent), `_parts` (its blocks so far)."""

    def __init__(self, shape: MessageShape, choices: Choices, prompt_tokens: int, options: StreamOptions) -> None:
        self._shape = shape
        self._choices = choices
        self._prompt_tokens = prompt_tokens
        self._options = options
        self._started = False
        self._parts = Parts()

    def feed(self, progress: Progress) -> bytes:
        """What may go out after a delta; often nothing."""
        events: list[Event] = []
        if not self._started:
            self._started = True
            events.append(MessageStart(self._shape.begun(self._usage())))
        for piece in progress.said:
            if self._shape.shows(piece.kind):
                events += self._told(piece)
        return b"".join(map(frame, events))

    def end(self) -> bytes:
        """The whole end of the stream, once the choice has ended."""
        comment = usage_comment(self._choices, self._prompt_tokens, 1) if self._options.comment else b""
        nothing = not self._parts.all
        events = self._told(Piece(Kind.WORDS, "", 0)) if nothing else []
        events += self._closed()
        events.append(MessageDelta(stopped(given_choice(self._choices.all[0])), message_usage(self._usage())))
        return comment + b"".join(map(frame, events)) + MESSAGE_STOP

    def fail(self, error: ApiError) -> bytes:
        """The event that tells of a failure; no proper end may follow."""
        return error_event(error, self._shape.head.request_id)

    def _told(self, piece: Piece) -> list[Event]:
        begins = self._parts.begins(piece)
        events = self._closed() if begins else []
        self._parts.add(piece)
        at = len(self._parts.over)
        if begins and self._parts.open is not None:
            block = self._shape.block(at, self._parts.open)
            events.append(BlockStart(at, block))
        if piece.kind is Kind.CALL_END:
            return self._closed()
        if piece.text and piece.kind is not Kind.CALL:
            events.append(BlockDelta(at, _more(piece)))
        return events

    def _closed(self) -> list[Event]:
        """The open block ends, if there is one."""
        return [] if self._parts.close() is None else [BlockStop(len(self._parts.over) - 1)]

    def _usage(self) -> TokenUsage:
        return token_usage(self._choices, self._prompt_tokens, 1)


def _more(piece: Piece) -> TextDelta | ThinkingDelta | InputDelta:
    if piece.kind is Kind.THOUGHT:
        return ThinkingDelta(piece.text)
    return InputDelta(piece.text) if piece.kind is Kind.ARGUMENTS else TextDelta(piece.text)
