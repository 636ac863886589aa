"""The answers of the two endpoints as bytes: the whole JSON object, and the events of a stream, one frame each.

Shapes and key order are those of OpenAI's API reference; a key that is left out there is left out here (`UNSET`), and
one that must be null is null. No decisions: what is sent when is in `stream`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Generic, Literal, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from sidecar.protocol.choices import Progress
from sidecar.protocol.logprobs import ChatLogprobs, Entry, Spell, TextLogprobs, chat_logprobs, text_logprobs
from sidecar.protocol.speech.listener import Call, calls_of, thought_of
from sidecar.protocol.speech.parts import Part
from sidecar.protocol.speech.pieces import Kind, Piece
from sidecar.wire.errors import ApiError

DONE: Final = b"data: [DONE]\n\n"
KEEP_ALIVE: Final = b": keep-alive\n\n"

# Where tokens are told: see `ChatShape`.
TokenIds = Sequence[int] | UnsetType
# What the choices of an answer are.
Item = TypeVar("Item")


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


class Function(msgspec.Struct, frozen=True, omit_defaults=True):
    """A call of a function, or what a chunk adds to it: the name comes once, with the first."""

    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class ToolCall(msgspec.Struct, frozen=True):
    """A call of a tool."""

    id: str
    function: Function
    type: Literal["function"] = "function"


class ToolCallDelta(msgspec.Struct, frozen=True):
    """What a chunk adds to a call: its beginning has all but the arguments, and the others have nothing else."""

    index: int
    function: Function
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET


class ChatMessage(msgspec.Struct, frozen=True):
    """The assistant's message. Thoughts have two names: DeepSeek's, and vLLM's of today."""

    content: str | None
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: tuple[ToolCall, ...] | UnsetType = UNSET
    function_call: Function | UnsetType = UNSET
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    annotations: tuple[()] = ()


class ChatChoice(msgspec.Struct, frozen=True):
    """A whole choice of a chat."""

    index: int
    message: ChatMessage
    finish_reason: str
    logprobs: ChatLogprobs | None = None
    token_ids: TokenIds = UNSET


class Delta(msgspec.Struct, frozen=True):
    """What a chunk adds to a choice of a chat."""

    role: str | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: tuple[ToolCallDelta, ...] | UnsetType = UNSET
    function_call: Function | UnsetType = UNSET
    refusal: UnsetType | None = UNSET


class ChunkChoice(msgspec.Struct, frozen=True):
    """A choice's part in a chunk of a chat."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    token_ids: TokenIds = UNSET


class TextChoice(msgspec.Struct, frozen=True):
    """A choice of a completion, whole or in a chunk."""

    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: str | None = None
    prompt_token_ids: TokenIds = UNSET
    token_ids: TokenIds = UNSET


class Envelope(msgspec.Struct, Generic[Item], frozen=True, kw_only=True):
    """What is around the choices, in whole answers and in chunks. `usage` of None is null, UNSET no key at all."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    service_tier: str | UnsetType = UNSET
    choices: tuple[Item, ...]
    usage: TokenUsage | UnsetType | None = UNSET
    prompt_token_ids: TokenIds = UNSET


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
    """A whole choice: its text, why it ended, what is told of its tokens, and the stop string that ended it.

    `parts`: of an answer that may have more than words.
    """

    text: str
    finish_reason: str
    entries: tuple[Entry, ...] = ()
    tokens: tuple[int, ...] = ()
    stop: str | None = None
    parts: tuple[Part, ...] = ()

    @property
    def thought(self) -> str:
        """What was thought before the text."""
        return thought_of(self.parts)

    @property
    def calls(self) -> tuple[Call, ...]:
        """The tools that were called."""
        return calls_of(self.parts)


@dataclass(frozen=True, slots=True)
class ChatShape:
    """/v1/chat/completions. `spell` is None where no log-probabilities are told; `by_id`: they have ids for names.

    `prompts` are those of the choices, as tokens; None where no tokens are told. As vLLM has it, a chat's is beside its
    choices, in the first event of a stream, and each choice and each part of it has the ids of its own tokens. `done`
    is the last event. `calls`: it may have calls, and then no content; `legacy`: each is a `function_call`.
    """

    head: Head
    spell: Spell | None = None
    prompts: Sequence[Sequence[int]] | None = None
    by_id: bool = False
    calls: bool = False
    legacy: bool = False
    done: ClassVar[bytes] = DONE

    def opening(self, index: int, usage: ChunkUsage) -> bytes:
        """The event that begins a choice."""
        delta = Delta(role="assistant", content=None if self.calls else "", refusal=None)
        choice = ChunkChoice(index, delta, token_ids=self._tokens(()))
        return self._event(choice, usage, UNSET if index else self._prompt)

    def part(self, progress: Progress, usage: ChunkUsage) -> bytes:
        """The events of one choice's progress, one for each piece; the first has what is told of the tokens."""
        told = [self._delta(progress.index, piece) for piece in progress.pieces if piece.kind is not Kind.CALL_END]
        deltas = told or [Delta(content=progress.text)]
        tokens, entries = progress.tokens, progress.entries
        events: list[bytes] = []
        for delta in deltas:
            choice = ChunkChoice(progress.index, delta, self._logprobs(entries), token_ids=self._tokens(tokens))
            events.append(self._event(choice, usage))
            tokens, entries = (), ()
        return b"".join(events)

    def closing(self, index: int, given: Given, usage: ChunkUsage) -> bytes:
        """The event that ends a choice."""
        choice = ChunkChoice(index, Delta(), finish_reason=given.finish_reason, token_ids=self._tokens(()))
        return self._event(choice, usage)

    def totals(self, usage: TokenUsage) -> bytes:
        """The event without choices that ends the stream of a client who asked for its usage."""
        return _event(_envelope(self.head, "chatcmpl", "chat.completion.chunk", (), usage))

    def failed(self, error: ApiError) -> bytes:
        """The event that ends a stream which did not become whole."""
        return error.event()

    def whole(self, choices: list[Given], usage: TokenUsage) -> bytes:
        """The JSON answer."""
        made = tuple(
            ChatChoice(
                index,
                self._message(index, given),
                given.finish_reason,
                self._logprobs(given.entries),
                self._tokens(given.tokens),
            )
            for index, given in enumerate(choices)
        )
        return msgspec.json.encode(
            _envelope(self.head, "chatcmpl", "chat.completion", made, usage, prompt=self._prompt)
        )

    def _message(self, index: int, given: Given) -> ChatMessage:
        thought = given.thought or UNSET
        calls = given.calls
        if not calls:
            return ChatMessage(given.text, thought, thought)
        made = tuple(
            ToolCall(self._call_id(index, at), Function(call.name, call.arguments)) for at, call in enumerate(calls)
        )
        if self.legacy:
            return ChatMessage(given.text or None, thought, thought, function_call=made[0].function)
        return ChatMessage(given.text or None, thought, thought, made)

    def _delta(self, index: int, piece: Piece) -> Delta:
        if piece.kind is Kind.WORDS:
            return Delta(content=piece.text)
        if piece.kind is Kind.THOUGHT:
            return Delta(reasoning_content=piece.text, reasoning=piece.text)
        begins = piece.kind is Kind.CALL
        function = Function(piece.text, "") if begins else Function(arguments=piece.text)
        if self.legacy:
            return Delta(function_call=function)
        if begins:
            begun = ToolCallDelta(piece.call, function, self._call_id(index, piece.call), "function")
            return Delta(tool_calls=(begun,))
        return Delta(tool_calls=(ToolCallDelta(piece.call, function),))

    def _call_id(self, index: int, call: int) -> str:
        return f"call_{self.head.request_id.removeprefix('req_')}_{index}_{call}"

    @property
    def _prompt(self) -> TokenIds:
        return UNSET if self.prompts is None else self.prompts[0]

    def _tokens(self, tokens: tuple[int, ...]) -> TokenIds:
        return UNSET if self.prompts is None else tokens

    def _logprobs(self, entries: tuple[Entry, ...]) -> ChatLogprobs | None:
        return None if self.spell is None else chat_logprobs(entries, self.spell, by_id=self.by_id)

    def _event(self, choice: ChunkChoice, usage: ChunkUsage, prompt: TokenIds = UNSET) -> bytes:
        return _event(_envelope(self.head, "chatcmpl", "chat.completion.chunk", (choice,), usage, prompt=prompt))


@dataclass(frozen=True, slots=True)
class TextShape:
    """/v1/completions. Its chunks and its whole answer are of one kind. The rest is as in
    `ChatShape`, but that each choice has its prompt, in the event that begins it; without one there is no such event.
    """

    head: Head
    spell: Spell | None = None
    prompts: Sequence[Sequence[int]] | None = None
    by_id: bool = False
    done: ClassVar[bytes] = DONE

    def opening(self, index: int, usage: ChunkUsage) -> bytes:
        if self.prompts is None:
            return b""
        return self._event(TextChoice(index, "", prompt_token_ids=self._prompt(index), token_ids=()), usage)

    def part(self, progress: Progress, usage: ChunkUsage) -> bytes:
        logprobs, tokens = self._logprobs(progress.entries), self._tokens(progress.tokens)
        return self._event(TextChoice(progress.index, progress.text, logprobs, token_ids=tokens), usage)

    def closing(self, index: int, given: Given, usage: ChunkUsage) -> bytes:
        closing = TextChoice(index, "", finish_reason=given.finish_reason, token_ids=self._tokens(()))
        return self._event(closing, usage)

    def totals(self, usage: TokenUsage) -> bytes:
        return _event(_envelope(self.head, "cmpl", "text_completion", (), usage))

    def failed(self, error: ApiError) -> bytes:
        return error.event()

    def whole(self, choices: list[Given], usage: TokenUsage) -> bytes:
        made = tuple(
            TextChoice(
                index,
                given.text,
                self._logprobs(given.entries),
                given.finish_reason,
                self._prompt(index),
                self._tokens(given.tokens),
            )
            for index, given in enumerate(choices)
        )
        return msgspec.json.encode(_envelope(self.head, "cmpl", "text_completion", made, usage))

    def _prompt(self, index: int) -> TokenIds:
        return UNSET if self.prompts is None else self.prompts[index]

    def _tokens(self, tokens: tuple[int, ...]) -> TokenIds:
        return UNSET if self.prompts is None else tokens

    def _logprobs(self, entries: tuple[Entry, ...]) -> TextLogprobs | None:
        return None if self.spell is None else text_logprobs(entries, self.spell, by_id=self.by_id)

    def _event(self, choice: TextChoice, usage: ChunkUsage) -> bytes:
        return _event(_envelope(self.head, "cmpl", "text_completion", (choice,), usage))


def _envelope(
    head: Head,
    prefix: str,
    kind: str,
    choices: tuple[Item, ...],
    usage: ChunkUsage,
    *,
    prompt: TokenIds = UNSET,
) -> Envelope[Item]:
    return Envelope(
        id=f"{prefix}-{head.request_id.removeprefix('req_')}",
        object=kind,
        created=head.created,
        model=head.model,
        system_fingerprint=head.fingerprint,
        service_tier="default" if head.echo_service_tier else UNSET,
        choices=choices,
        usage=usage,
        prompt_token_ids=prompt,
    )


def _event(envelope: Envelope[Item]) -> bytes:
    return b"data: " + msgspec.json.encode(envelope) + b"\n\n"
