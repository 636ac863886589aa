"""The order of the events of /v1/responses. Pure: progress in, bytes out. The rules (OpenAI's SDKs raise otherwise):

- with the first token: response.created, response.in_progress, then the message and its text are added, both empty;
- then the text, piece by piece;
- at the end: the usage comment, if a proxy asked and must settle before it; the text, its part and the message done;
  response.completed, or response.incomplete where a limit cut it. All of it in one piece, and no `[DONE]`;
- a failure is response.failed, after response.created.
Events are numbered from 0, without gaps.
"""

from sidecar.protocol.choices import Choices, Progress
from sidecar.protocol.response_answer import (
    IN_PROGRESS,
    INCOMPLETE,
    Completed,
    Created,
    Failed,
    Incomplete,
    InProgress,
    ItemAdded,
    ItemDone,
    OutputMessage,
    OutputText,
    PartAdded,
    PartDone,
    ResponseShape,
    TextDelta,
    TextDone,
)
from sidecar.protocol.stream import StreamOptions, given_choice, token_usage, usage_comment
from sidecar.wire.errors import ApiError


class ResponseStream:
    """One stream. Mutable: `_sent`, how many events it has so far."""

    def __init__(self, shape: ResponseShape, choices: Choices, prompt_tokens: int, options: StreamOptions) -> None:
        self._shape = shape
        self._choices = choices
        self._prompt_tokens = prompt_tokens
        self._options = options
        self._sent = 0

    def feed(self, progress: Progress) -> bytes:
        """What may go out after a delta; often nothing."""
        opening = b"" if self._sent else self._opening()
        if not progress.text and not progress.entries:
            return opening
        shape = self._shape
        delta = TextDelta(
            sequence_number=self._next(),
            item_id=shape.item_id,
            delta=progress.text,
            logprobs=shape.logprobs(progress.entries),
        )
        return opening + delta.frame()

    def end(self) -> bytes:
        """The whole end of the stream, once the choice has ended."""
        shape, choice = self._shape, self._choices.all[0]
        given = given_choice(choice)
        usage = token_usage(self._choices, self._prompt_tokens, 1)
        part, message, response = shape.part(given), shape.message(given), shape.ended(given, usage)
        item_id = shape.item_id
        last = Incomplete if response.status == INCOMPLETE else Completed
        events = (
            TextDone(sequence_number=self._next(), item_id=item_id, text=given.text, logprobs=part.logprobs),
            PartDone(sequence_number=self._next(), item_id=item_id, part=part),
            ItemDone(sequence_number=self._next(), item=message),
            last(sequence_number=self._next(), response=response),
        )
        comment = usage_comment(self._choices, self._prompt_tokens, 1) if self._options.comment else b""
        return comment + b"".join(event.frame() for event in events)

    def fail(self, error: ApiError) -> bytes:
        """The event that tells of a failure; no proper end may follow."""
        created = b"" if self._sent else self._created()
        return created + Failed(sequence_number=self._next(), response=self._shape.failed(error)).frame()

    def _created(self) -> bytes:
        return Created(sequence_number=self._next(), response=self._shape.begun()).frame()

    def _opening(self) -> bytes:
        shape = self._shape
        created = self._created()
        message = OutputMessage(shape.item_id, IN_PROGRESS, ())
        events = (
            InProgress(sequence_number=self._next(), response=shape.begun()),
            ItemAdded(sequence_number=self._next(), item=message),
            PartAdded(sequence_number=self._next(), item_id=shape.item_id, part=OutputText("")),
        )
        return created + b"".join(event.frame() for event in events)

    def _next(self) -> int:
        self._sent += 1
        return self._sent - 1
