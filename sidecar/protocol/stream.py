"""The order of a stream's events, for chats and completions. Pure: progress in, bytes out. The rules (OpenAI's
reference, and its SDKs' readers):

- with the first token, each choice is opened in order of index, for a reader may index a list by it;
- then text, one choice per event; nothing is sent for tokens that have no text yet, unless their ids are told;
- once every choice has ended: the usage comment, if a proxy asked and must settle before the end; the finish events in
  order; the usage event, if the client asked; the shape's last one. All of it in one piece, so the end is never cut.
"""

from dataclasses import dataclass
from typing import Final

import msgspec
from msgspec import UNSET

from sidecar.protocol.answer import (
    ChatShape,
    ChunkUsage,
    CompletionDetails,
    Given,
    PromptDetails,
    TextShape,
    TokenUsage,
)
from sidecar.protocol.anthropic_answer import MessageShape
from sidecar.protocol.choices import Choice, Choices, Progress
from sidecar.protocol.response_answer import ResponseShape
from sidecar.wire.errors import ApiError
from sidecar.wire.internal import USAGE_COMMENT, Usage

END_OF_EVENT: Final = b"\n\n"

Shape = ChatShape | TextShape
AnyShape = Shape | ResponseShape | MessageShape


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """What is told beside the text. `comment`: the proxy's usage comment; `continuous`: the usage on every event.

    A prompt has `sequences_of_a_prompt` choices.
    """

    comment: bool
    include_usage: bool
    continuous_usage: bool
    sequences_of_a_prompt: int = 1


class Stream:
    """One stream. Mutable: `_opened`, whether its choices were."""

    def __init__(self, shape: Shape, choices: Choices, prompt_tokens: int, options: StreamOptions) -> None:
        self._shape = shape
        self._choices = choices
        self._prompt_tokens = prompt_tokens
        self._options = options
        self._opened = False

    def feed(self, progress: Progress) -> bytes:
        """What may go out after a delta; often nothing."""
        usage = self._chunk_usage()
        opening = b""
        if not self._opened:
            self._opened = True
            opening = b"".join(self._shape.opening(index, usage) for index in range(len(self._choices.all)))
        if not (progress.text or progress.entries or progress.tokens or progress.pieces):
            return opening
        return opening + self._shape.part(progress, usage)

    def end(self) -> bytes:
        """The whole end of the stream, once all choices have ended."""
        usage = self._chunk_usage()
        of = self._options.sequences_of_a_prompt
        events = [usage_comment(self._choices, self._prompt_tokens, of)] if self._options.comment else []
        events += [
            self._shape.closing(index, given_choice(choice), usage) for index, choice in enumerate(self._choices.all)
        ]
        if self._options.include_usage:
            events.append(self._shape.totals(self._usage()))
        return b"".join([*events, self._shape.done])

    def fail(self, error: ApiError) -> bytes:
        """The event that tells of a failure; no proper end may follow."""
        return self._shape.failed(error)

    def _usage(self) -> TokenUsage:
        return token_usage(self._choices, self._prompt_tokens, self._options.sequences_of_a_prompt)

    def _chunk_usage(self) -> ChunkUsage:
        if self._options.continuous_usage:
            return self._usage()
        return None if self._options.include_usage else UNSET


def token_usage(choices: Choices, prompt_tokens: int, of: int) -> TokenUsage:
    """What a client is told; a prompt has `of` choices."""
    return TokenUsage(
        prompt_tokens=prompt_tokens,
        completion_tokens=choices.completion_tokens,
        total_tokens=prompt_tokens + choices.completion_tokens,
        prompt_tokens_details=PromptDetails(choices.cached_tokens(of)),
        completion_tokens_details=CompletionDetails(choices.thought_tokens),
    )


def usage_comment(choices: Choices, prompt_tokens: int, of: int) -> bytes:
    """What a proxy settles by; a prompt has `of` choices."""
    usage = Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=choices.completion_tokens,
        cached_tokens=choices.cached_tokens(of),
        finish_reason=choices.finish_reason,
        reasoning_tokens=choices.thought_tokens,
    )
    return USAGE_COMMENT + msgspec.json.encode(usage) + END_OF_EVENT


def whole(
    shape: Shape | ResponseShape | MessageShape, choices: Choices, prompt_tokens: int, given: int = 1, of: int = 1
) -> bytes:
    """The JSON answer of ended choices: the likeliest `given` of the `of` that each prompt has."""
    made = [given_choice(choice) for choice in choices.best(given, of)]
    return shape.whole(made, token_usage(choices, prompt_tokens, of))


def given_choice(choice: Choice) -> Given:
    """A choice that has ended."""
    entries, tokens = tuple(choice.entries), tuple(choice.tokens)
    return Given(choice.text, choice.finish_reason, entries, tokens, choice.stop, choice.parts)
