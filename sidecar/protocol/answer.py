"""The answers of the two endpoints as bytes: the whole JSON object, and the events of a stream, one frame each.

Shapes and key order are those of OpenAI's API reference; a key that is left out there is left out here (`UNSET`), and
one that must be null is null. No decisions: what is sent when is in `stream`.
"""

from dataclasses import dataclass
from typing import Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from sidecar.protocol.logprobs import ChatLogprobs, Entry, Spell, TextLogprobs, chat_logprobs, text_logprobs

DONE: Final = b"data: [DONE]\n\n"
KEEP_ALIVE: Final = b": keep-alive\n\n"


class PromptDetails(msgspec.Struct, frozen=True):
    """What OpenAI tells of the prompt's tokens."""

    cached_tokens: int = 0
    audio_tokens: int = 0


class CompletionDetails(msgspec.Struct, frozen=True):
    """What OpenAI tells of the answer's tokens."""

    reasoning_tokens: int = 0
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class TokenUsage(msgspec.Struct, frozen=True):
    """OpenAI's `usage`: the prompt once, the completion over all choices with its end-of-sequence tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails = PromptDetails()
    completion_tokens_details: CompletionDetails = CompletionDetails()


class ChatMessage(msgspec.Struct, frozen=True):
    """The assistant's message."""

    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    annotations: tuple[()] = ()


class ChatChoice(msgspec.Struct, frozen=True):
    """A whole choice of a chat."""

    index: int
    message: ChatMessage
    finish_reason: str
    logprobs: ChatLogprobs | None = None


class Delta(msgspec.Struct, frozen=True):
    """What a chunk adds to a choice of a chat."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    refusal: UnsetType | None = UNSET


class ChunkChoice(msgspec.Struct, frozen=True):
    """A choice's part in a chunk of a chat."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None


class TextChoice(msgspec.Struct, frozen=True):
    """A choice of a completion, whole or in a chunk."""

    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: str | None = None


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """What is around the choices, in whole answers and in chunks. `usage` of None is null, UNSET no key at all."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    service_tier: str | UnsetType
    choices: tuple[ChatChoice | ChunkChoice | TextChoice, ...]
    usage: TokenUsage | UnsetType | None


ChunkUsage = TokenUsage | UnsetType | None


@dataclass(frozen=True, slots=True)
class Head:
    """What all parts of one answer share. `created` is UTC seconds."""

    request_id: str
    created: int
    model: str
    fingerprint: str
    echo_service_tier: bool


@dataclass(frozen=True, slots=True)
class Given:
    """A whole choice: its text, why it ended, and what is told of its tokens."""

    text: str
    finish_reason: str
    entries: tuple[Entry, ...] = ()


def token_usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> TokenUsage:
    total = prompt_tokens + completion_tokens
    return TokenUsage(prompt_tokens, completion_tokens, total, PromptDetails(cached_tokens))


@dataclass(frozen=True, slots=True)
class ChatShape:
    """/v1/chat/completions. `spell` is None where no log-probabilities are told."""

    head: Head
    spell: Spell | None = None

    def opening(self, index: int, usage: ChunkUsage) -> bytes:
        """The event that begins a choice."""
        return self._event(ChunkChoice(index, Delta("assistant", "", None)), usage)

    def part(self, index: int, text: str, entries: tuple[Entry, ...], usage: ChunkUsage) -> bytes:
        """An event of one choice: more text, and what is told of its tokens."""
        return self._event(ChunkChoice(index, Delta(content=text), self._logprobs(entries)), usage)

    def closing(self, index: int, finish_reason: str, usage: ChunkUsage) -> bytes:
        """The event that ends a choice."""
        return self._event(ChunkChoice(index, Delta(), finish_reason=finish_reason), usage)

    def totals(self, usage: TokenUsage) -> bytes:
        """The event without choices that ends the stream of a client who asked for its usage."""
        return _event(_envelope(self.head, "chatcmpl", "chat.completion.chunk", (), usage))

    def whole(self, choices: list[Given], usage: TokenUsage) -> bytes:
        """The JSON answer."""
        made = tuple(
            ChatChoice(index, ChatMessage(given.text), given.finish_reason, self._logprobs(given.entries))
            for index, given in enumerate(choices)
        )
        return msgspec.json.encode(_envelope(self.head, "chatcmpl", "chat.completion", made, usage))

    def _logprobs(self, entries: tuple[Entry, ...]) -> ChatLogprobs | None:
        return None if self.spell is None else chat_logprobs(entries, self.spell)

    def _event(self, choice: ChunkChoice, usage: ChunkUsage) -> bytes:
        return _event(_envelope(self.head, "chatcmpl", "chat.completion.chunk", (choice,), usage))


@dataclass(frozen=True, slots=True)
class TextShape:
    """/v1/completions. Its chunks and its whole answer are of one kind. `spell` as in `ChatShape`."""

    head: Head
    spell: Spell | None = None

    def opening(self, index: int, usage: ChunkUsage) -> bytes:  # noqa: ARG002  completions have no opening event
        return b""

    def part(self, index: int, text: str, entries: tuple[Entry, ...], usage: ChunkUsage) -> bytes:
        return self._event(TextChoice(index, text, self._logprobs(entries)), usage)

    def closing(self, index: int, finish_reason: str, usage: ChunkUsage) -> bytes:
        return self._event(TextChoice(index, "", finish_reason=finish_reason), usage)

    def totals(self, usage: TokenUsage) -> bytes:
        return _event(_envelope(self.head, "cmpl", "text_completion", (), usage))

    def whole(self, choices: list[Given], usage: TokenUsage) -> bytes:
        made = tuple(
            TextChoice(index, given.text, self._logprobs(given.entries), given.finish_reason)
            for index, given in enumerate(choices)
        )
        return msgspec.json.encode(_envelope(self.head, "cmpl", "text_completion", made, usage))

    def _logprobs(self, entries: tuple[Entry, ...]) -> TextLogprobs | None:
        return None if self.spell is None else text_logprobs(entries, self.spell)

    def _event(self, choice: TextChoice, usage: ChunkUsage) -> bytes:
        return _event(_envelope(self.head, "cmpl", "text_completion", (choice,), usage))


Shape = ChatShape | TextShape


def _envelope(
    head: Head, prefix: str, kind: str, choices: tuple[ChatChoice | ChunkChoice | TextChoice, ...], usage: ChunkUsage
) -> Envelope:
    return Envelope(
        id=f"{prefix}-{head.request_id.removeprefix('req_')}",
        object=kind,
        created=head.created,
        model=head.model,
        system_fingerprint=head.fingerprint,
        service_tier="default" if head.echo_service_tier else UNSET,
        choices=choices,
        usage=usage,
    )


def _event(envelope: Envelope) -> bytes:
    return b"data: " + msgspec.json.encode(envelope) + b"\n\n"
