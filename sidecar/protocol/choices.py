"""The choices of one request while they grow: the engine's deltas in, text and endings out. Pure.

A choice ends once, in one of these ways:
- the engine ends it (end of sequence, length): `stop` or `length`, with the engine's own count;
- a stop string is complete: `stop`, with the tokens up to and including the one that completed it. What the engine had
  run past it by then is told to be discarded, and its later deltas are passed over;
- the engine could not go on with it: an ApiError, which ends the whole request.

A token's log-probabilities go out with its text: they wait while that may yet become a stop string or is not yet known
for what it is, and what a stop string cuts off takes its tokens with it. What is not shown for itself, such as a marker
around thoughts, has entries all the same.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from sidecar.protocol.logprobs import Entry
from sidecar.protocol.speech.dialect import Speech
from sidecar.protocol.speech.listener import thought_of
from sidecar.protocol.speech.parts import Part
from sidecar.protocol.speech.pieces import Kind, Piece, joined
from sidecar.tokenizer.text import Detokenizer, StopScanner
from sidecar.wire.errors import SERVER_ERROR, ApiError, internal_error
from sidecar.wire.frames import Delta, Finish, Logprobs

_REASONS: Final = {Finish.STOP: "stop", Finish.LENGTH: "length"}


@dataclass(frozen=True, slots=True)
class Echo:
    """A prompt that is given back: its text, its tokens, and where each begins in the text, in characters."""

    text: str
    tokens: tuple[int, ...]
    offsets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Telling:
    """What a choice tells beside its text.

    `logprobs`: of each token; `end_token`: of the one that ends the answer too, which has no text (completions).
    `echo`: the prompt comes first. `offset`: how many characters the prompt has. `before`: the tokens that the text
    continues. `tokens`: the ids of all tokens that count.
    """

    logprobs: bool = False
    end_token: bool = False
    echo: Echo | None = None
    offset: int = 0
    before: tuple[int, ...] = ()
    tokens: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """What a delta did to its choice. `cancel_at`: the engine is to stop it, and this many of its tokens count.

    `pieces` are of an answer that has more than words; `text` is the words among them, or all there is.
    """

    index: int
    text: str = ""
    cancel_at: int | None = None
    entries: tuple[Entry, ...] = ()
    tokens: tuple[int, ...] = ()
    pieces: tuple[Piece, ...] = ()

    @property
    def said(self) -> tuple[Piece, ...]:
        """The pieces, also of an answer that has nothing but words."""
        return self.pieces or ((Piece(Kind.WORDS, self.text, len(self.text)),) if self.text else ())


class Choice:
    """One choice.

    Mutable: `generated` (tokens that count), `cached_tokens`, `finish_reason` (empty while it runs), `text`,
    `entries` and `tokens` so far, `logprob_sum` of all its tokens; `_silent` (tokens that have no text yet), `_waiting`
    (entries whose text was not given yet, with the place where it ends), `_decoded` and `_given` (characters),
    `_scored` (the prompt's log-probabilities), `_echoed`.
    """

    def __init__(
        self,
        detokenizer: Detokenizer,
        scanner: StopScanner,
        stop_token_ids: tuple[int, ...],
        telling: Telling,
        min_tokens: int = 0,
        *,
        speech: Speech | None = None,
    ) -> None:
        """Of `stop_token_ids` the one that ends it has no text. A stop string that ends within `min_tokens` is text.

        `speech`: how the answer is read; None for one of words only.
        """
        self._detokenizer = detokenizer
        self._scanner = scanner
        self._stop_token_ids = stop_token_ids
        self._telling = telling
        self._min_tokens = min_tokens
        self._speech = speech
        self._listener = None if speech is None else speech.listener()
        self._pieces: list[str] = []
        self._silent: list[Entry] = []
        self._waiting: deque[tuple[Entry, int]] = deque()
        self._decoded = self._given = 0
        self._scored: list[Logprobs] = []
        self._echoed = telling.echo is None
        self.entries: list[Entry] = []
        self.tokens: list[int] = []
        self.logprob_sum = 0.0
        self.generated = 0
        self.cached_tokens = 0
        self.finish_reason = ""

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Of an answer that may have more than words."""
        return () if self._listener is None else self._listener.parts

    @property
    def thought(self) -> str:
        """What was thought before the text."""
        return thought_of(self.parts)

    @property
    def thought_tokens(self) -> int:
        return 0 if self._listener is None else self._listener.thought_tokens

    @property
    def stop(self) -> str | None:
        """The stop string that ended it, if one did."""
        return self._scanner.found

    @property
    def mean_logprob(self) -> float:
        """How likely the answer is, by token: what `best_of` goes by."""
        return self.logprob_sum / max(1, self.generated)

    def take(self, delta: Delta) -> Progress:
        """Raises ApiError if the engine gave the sequence up."""
        if self.finish_reason:
            return Progress(delta.index)
        self._scored += delta.prompt_logprobs
        self.cached_tokens = self.cached_tokens or delta.cached_tokens
        pieces: list[Piece] = []
        shown = self._shown(delta)
        logprobs: list[Logprobs | None] = [*delta.logprobs] or [None] * len(delta.token_ids)
        for count, (token, told) in enumerate(zip(shown, logprobs, strict=False), start=1):
            self.generated += 1
            if self._scan(self._decode(token, told), pieces):
                return self._stopped(delta, pieces, count)
        self.generated = delta.generated
        if delta.finish is not None:
            self.finish_reason = self._finished(delta, shown, logprobs, pieces)
        return self._progress(delta, pieces, len(delta.token_ids), None)

    def _finished(self, delta: Delta, shown: list[int], logprobs: list[Logprobs | None], pieces: list[Piece]) -> str:
        reason = finish_reason(delta)
        if self._scan(self._settled(self._detokenizer.flush()), pieces):
            return "stop"
        self._hear(self._scanner.flush(), pieces)
        if len(shown) < len(delta.token_ids):
            self._note(delta.token_ids[-1], logprobs[-1], shows=False)
        # What has no text by now has none.
        self._settle()
        return reason

    def _shown(self, delta: Delta) -> list[int]:
        """The tokens that have text: the one that ends the answer has none, also where it is an ordinary word."""
        ids = delta.token_ids
        if delta.finish is Finish.STOP and ids and ids[-1] in self._stop_token_ids:
            return ids[:-1]
        return ids

    def _decode(self, token: int, told: Logprobs | None) -> str:
        self._note(token, told, shows=self._detokenizer.shows(token))
        if self._listener is not None:
            self._listener.token(self._decoded)
        return self._settled(self._detokenizer.feed(token))

    def _note(self, token: int, told: Logprobs | None, *, shows: bool) -> None:
        """`shows`: whether the token has text."""
        if told is None:
            return
        self.logprob_sum += told.token
        if self._telling.logprobs and (shows or self._telling.end_token):
            offset = self._telling.offset + self._decoded
            self._silent.append(Entry(token, told, offset, begins=shows and self._detokenizer.begins))

    def _settled(self, text: str) -> str:
        """Text has come: it is that of the tokens that had none yet."""
        self._decoded += len(text)
        if text:
            self._settle()
        return text

    def _settle(self) -> None:
        self._waiting += [(entry, self._decoded) for entry in self._silent]
        self._silent.clear()

    def _scan(self, text: str, pieces: list[Piece]) -> bool:
        shown, stopped = self._scanner.feed(text, may_end=self.generated > self._min_tokens)
        self._hear(shown, pieces)
        return stopped or (self._listener is not None and self._listener.over)

    def _hear(self, text: str, pieces: list[Piece]) -> None:
        if self._listener is not None:
            pieces += self._listener.feed(text)
        elif text:
            pieces.append(Piece(Kind.WORDS, text, len(text)))

    def _stopped(self, delta: Delta, pieces: list[Piece], count: int) -> Progress:
        self.finish_reason = "stop"
        # Also of a sequence that has ended by itself meanwhile: its usage slot has all that it produced.
        past = delta.finish is None or self.generated < delta.generated
        return self._progress(delta, pieces, count, self.generated if past else None)

    def _progress(self, delta: Delta, pieces: list[Piece], count: int, cancel_at: int | None) -> Progress:
        """`count` of the delta's tokens are the choice's."""
        if self._listener is not None and self.finish_reason:
            pieces += self._listener.flush()
            if self._speech is not None and self.finish_reason == "stop" and self._listener.calls:
                self.finish_reason = self._speech.calls_reason
        text = "".join(piece.text for piece in pieces if piece.kind is Kind.WORDS)
        self._given = self._given + len(text) if self._listener is None else self._listener.taken
        entries = self._due()
        if not self._echoed and (delta.token_ids or self.finish_reason):
            self._echoed = True
            text, entries = self._prompt() + text, (*self._prompt_entries(), *entries)
        if text:
            self._pieces.append(text)
        self.entries += entries
        tokens = tuple(delta.token_ids[:count]) if self._telling.tokens else ()
        self.tokens += tokens
        told = () if self._listener is None else joined(pieces)
        return Progress(delta.index, text, cancel_at, entries, tokens, told)

    def _due(self) -> tuple[Entry, ...]:
        """The entries whose text is out; at the end of the choice those of which any is."""
        due: list[Entry] = []
        while self._waiting:
            entry, end = self._waiting[0]
            begun = entry.offset - self._telling.offset < self._given
            if end > self._given and not (self.finish_reason and begun):
                break
            due.append(entry)
            self._waiting.popleft()
        return tuple(due)

    def _prompt(self) -> str:
        return "" if self._telling.echo is None else self._telling.echo.text

    def _prompt_entries(self) -> tuple[Entry, ...]:
        echo = self._telling.echo
        if echo is None or not self._telling.logprobs:
            return ()
        scored: list[Logprobs | None] = [None, *self._scored]
        return tuple(Entry(*told) for told in zip(echo.tokens, scored, echo.offsets, strict=True))


class Choices:
    """The choices of a request, by the index of their sequence."""

    def __init__(
        self,
        count: int,
        detokenizer: Callable[[Sequence[int]], Detokenizer],
        stops: tuple[str, ...],
        stop_token_ids: tuple[int, ...],
        tellings: tuple[Telling, ...] = (),
        *,
        min_tokens: int = 0,
        stop_shown: bool = False,
        speech: Speech | None = None,
    ) -> None:
        """`detokenizer` is given the tokens before; `tellings`: one for each sequence; none where only text is told.

        `stop_shown`: what ends a choice is part of its text. `speech`: as in `Choice`.
        """
        silent = () if stop_shown else stop_token_ids
        scanner = partial(StopScanner, stops, shown=stop_shown)
        self.all = tuple(
            Choice(detokenizer(how.before), scanner(), silent, how, min_tokens, speech=speech)
            for how in tellings or (Telling(),) * count
        )

    def take(self, delta: Delta) -> Progress:
        """Raises ApiError if the engine gave a sequence up."""
        return self.all[delta.index].take(delta)

    @property
    def ended(self) -> bool:
        return all(choice.finish_reason for choice in self.all)

    @property
    def completion_tokens(self) -> int:
        return sum(choice.generated for choice in self.all)

    @property
    def thought_tokens(self) -> int:
        """Those of the completion that were thoughts."""
        return sum(choice.thought_tokens for choice in self.all)

    @property
    def finish_reason(self) -> str:
        """The first choice's: what the request is logged and counted under."""
        return self.all[0].finish_reason

    def cached_tokens(self, sequences_of_a_prompt: int) -> int:
        """Of the prompts, each counted once as in the prompt's tokens, what the prefix cache had."""
        return sum(choice.cached_tokens for choice in self.all[::sequences_of_a_prompt])

    def best(self, choices: int, of: int) -> list[Choice]:
        """The likeliest `choices` of each prompt's `of`, prompts in order, the likeliest first."""
        if choices == of:
            return list(self.all)
        found: list[Choice] = []
        for first in range(0, len(self.all), of):
            ranked = sorted(self.all[first : first + of], key=lambda choice: -choice.mean_logprob)
            found += ranked[:choices]
        return found


def finish_reason(delta: Delta) -> str:
    """OpenAI's reason for an engine's. Raises ApiError for an end that is no answer."""
    if delta.finish in _REASONS:
        return _REASONS[delta.finish]
    if delta.finish is Finish.DEADLINE:
        raise ApiError(504, "The request ran past its deadline.", type=SERVER_ERROR, code="timeout", should_retry=False)
    if delta.finish is Finish.CANCELLED:
        raise ApiError(
            500, "The request was cancelled.", type=SERVER_ERROR, code="request_cancelled", should_retry=False
        )
    raise internal_error()
