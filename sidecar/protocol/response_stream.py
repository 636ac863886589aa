"""The order of the events of /v1/responses. Pure: progress in, bytes out. The rules (OpenAI's SDKs raise otherwise):

- with the first token: response.created, response.in_progress;
- each part of the answer is an item: it is added with nothing in it, then comes its text or its arguments, piece by
  piece, and it is done before the next one is added. Words and thoughts are in a part of their item's content, which is
  added and done within it. An answer without parts is an empty message;
- at the end: the usage comment, if a proxy asked and must settle before it; the last item done; response.completed, or
  response.incomplete where a limit cut it. All of it in one piece, and no `[DONE]`;
- a failure is response.failed, after response.created.
Events are numbered from 0, without gaps.
"""

from bisect import bisect_right

from sidecar.protocol.choices import Choices, Progress
from sidecar.protocol.logprobs import Entry
from sidecar.protocol.response_answer import (
    INCOMPLETE,
    FunctionCall,
    Item,
    OutputMessage,
    OutputText,
    ReasoningItem,
    ReasoningText,
    ResponseShape,
)
from sidecar.protocol.response_events import (
    ArgumentsDelta,
    ArgumentsDone,
    Completed,
    Created,
    Event,
    Failed,
    Incomplete,
    InProgress,
    ItemAdded,
    ItemDone,
    PartAdded,
    PartDone,
    ReasoningDelta,
    ReasoningDone,
    TextDelta,
    TextDone,
)
from sidecar.protocol.speech.parts import Parts
from sidecar.protocol.speech.pieces import Kind, Piece
from sidecar.protocol.stream import StreamOptions, given_choice, token_usage, usage_comment
from sidecar.wire.errors import ApiError


class ResponseStream:
    """One stream. Mutable: `_sent` (how many events it has so far), `_parts` (its items so far), `_entries` (those that
    were told of the open one).
    """

    def __init__(self, shape: ResponseShape, choices: Choices, prompt_tokens: int, options: StreamOptions) -> None:
        self._shape = shape
        self._choices = choices
        self._prompt_tokens = prompt_tokens
        self._options = options
        self._sent = 0
        self._parts = Parts()
        self._entries: list[Entry] = []

    def feed(self, progress: Progress) -> bytes:
        """What may go out after a delta; often nothing."""
        opening = b"" if self._sent else self._opening()
        before, *shares = _shares(progress.said, progress.entries)
        events = self._more("", before)
        for piece, entries in zip(progress.said, shares, strict=True):
            events += self._told(piece, entries)
        return opening + b"".join(event.frame() for event in events)

    def end(self) -> bytes:
        """The whole end of the stream, once the choice has ended."""
        given = given_choice(self._choices.all[0])
        usage = token_usage(self._choices, self._prompt_tokens, 1)
        response = self._shape.ended(given, usage)
        cut = response.status == INCOMPLETE
        nothing = not given.parts and not given.text
        events = self._told(Piece(Kind.WORDS, "", 0), []) if nothing else []
        events += self._closed(cut=cut)
        last = Incomplete if cut else Completed
        events.append(last(sequence_number=self._next(), response=response))
        comment = usage_comment(self._choices, self._prompt_tokens, 1) if self._options.comment else b""
        return comment + b"".join(event.frame() for event in events)

    def fail(self, error: ApiError) -> bytes:
        """The event that tells of a failure; no proper end may follow."""
        created = b"" if self._sent else self._created()
        return created + Failed(sequence_number=self._next(), response=self._shape.failed(error)).frame()

    def _created(self) -> bytes:
        return Created(sequence_number=self._next(), response=self._shape.begun()).frame()

    def _opening(self) -> bytes:
        created = self._created()
        return created + InProgress(sequence_number=self._next(), response=self._shape.begun()).frame()

    def _told(self, piece: Piece, entries: list[Entry]) -> list[Event]:
        begins = self._parts.begins(piece)
        events = self._closed(cut=False) if begins else []
        self._parts.add(piece)
        if begins:
            events += self._begun()
        if piece.kind is Kind.CALL_END:
            return [*events, *self._closed(cut=False)]
        return events if piece.kind is Kind.CALL else [*events, *self._more(piece.text, entries)]

    def _begun(self) -> list[Event]:
        """The open part, before anything of it is said."""
        part, at = self._parts.open, len(self._parts.over)
        if part is None:
            return []
        item = self._shape.begun_item(at, part)
        added: list[Event] = [ItemAdded(sequence_number=self._next(), output_index=at, item=item)]
        if not isinstance(item, FunctionCall):
            empty = OutputText("") if isinstance(item, OutputMessage) else ReasoningText("")
            added.append(PartAdded(sequence_number=self._next(), item_id=item.id, output_index=at, part=empty))
        return added

    def _more(self, text: str, entries: list[Entry]) -> list[Event]:
        """More of the open part. Log-probabilities are of words; they may come behind the last of these."""
        part, at = self._parts.open, len(self._parts.over)
        if part is None or not (text or (entries and part.kind is Kind.WORDS)):
            return []
        item_id = self._shape.item_id(at, part)
        if part.kind is Kind.THOUGHT:
            return [ReasoningDelta(sequence_number=self._next(), item_id=item_id, output_index=at, delta=text)]
        if part.kind is Kind.CALL:
            return [ArgumentsDelta(sequence_number=self._next(), item_id=item_id, output_index=at, delta=text)]
        self._entries += entries
        logprobs = self._shape.logprobs(entries)
        number = self._next()
        return [TextDelta(sequence_number=number, item_id=item_id, output_index=at, delta=text, logprobs=logprobs)]

    def _closed(self, *, cut: bool) -> list[Event]:
        """The open part is over, if there is one."""
        part = self._parts.close()
        if part is None:
            return []
        at = len(self._parts.over) - 1
        item = self._shape.item(at, part, self._entries, cut=cut)
        self._entries = []
        done = [self._text_done(at, item), *self._part_done(at, item)]
        return [*done, ItemDone(sequence_number=self._next(), output_index=at, item=item)]

    def _text_done(self, at: int, item: Item) -> Event:
        number = self._next()
        if isinstance(item, FunctionCall):
            name, arguments = item.name, item.arguments
            return ArgumentsDone(
                sequence_number=number, item_id=item.id, output_index=at, name=name, arguments=arguments
            )
        if isinstance(item, ReasoningItem):
            return ReasoningDone(sequence_number=number, item_id=item.id, output_index=at, text=item.content[0].text)
        (part,) = item.content
        return TextDone(
            sequence_number=number, item_id=item.id, output_index=at, text=part.text, logprobs=part.logprobs
        )

    def _part_done(self, at: int, item: Item) -> list[Event]:
        if isinstance(item, FunctionCall):
            return []
        return [PartDone(sequence_number=self._next(), item_id=item.id, output_index=at, part=item.content[0])]

    def _next(self) -> int:
        self._sent += 1
        return self._sent - 1


def _shares(pieces: tuple[Piece, ...], entries: tuple[Entry, ...]) -> list[list[Entry]]:
    """The entries of tokens that begin before all pieces, and those of each piece, whose tokens begin in it."""
    shares: list[list[Entry]] = [[] for _ in range(len(pieces) + 1)]
    starts = [piece.at for piece in pieces]
    for entry in entries:
        shares[bisect_right(starts, entry.offset)].append(entry)
    return shares
