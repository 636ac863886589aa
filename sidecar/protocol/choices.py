"""The choices of one request while they grow: the engine's deltas in, text and endings out. Pure.

A choice ends once, in one of these ways:
- the engine ends it (end of sequence, length): `stop` or `length`, with the engine's own count;
- a stop string is complete: `stop`, with the tokens up to and including the one that completed it. What the engine had
  run past it by then is told to be discarded, and its later deltas are passed over;
- the engine could not go on with it: an ApiError, which ends the whole request.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sidecar.tokenizer.text import Detokenizer, StopScanner
from sidecar.wire.errors import SERVER_ERROR, ApiError, internal_error
from sidecar.wire.frames import Delta, Finish

_REASONS: Final = {Finish.STOP: "stop", Finish.LENGTH: "length"}


@dataclass(frozen=True, slots=True)
class Progress:
    """What a delta did to its choice. `cancel_at`: the engine is to stop it, and this many of its tokens count."""

    index: int
    text: str = ""
    cancel_at: int | None = None


class Choice:
    """One choice. Mutable: `generated` (tokens that count), `finish_reason` (empty while it runs), `text` so far."""

    def __init__(self, detokenizer: Detokenizer, scanner: StopScanner, stop_token_ids: tuple[int, ...]) -> None:
        self._detokenizer = detokenizer
        self._scanner = scanner
        self._stop_token_ids = stop_token_ids
        self._pieces: list[str] = []
        self.generated = 0
        self.finish_reason = ""

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def take(self, delta: Delta) -> Progress:
        """Raises ApiError if the engine gave the sequence up."""
        if self.finish_reason:
            return Progress(delta.index)
        pieces: list[str] = []
        for token in self._shown(delta):
            self.generated += 1
            if self._scan(self._detokenizer.feed(token), pieces):
                return self._stopped(delta, pieces)
        self.generated = delta.generated
        if delta.finish is not None:
            reason = finish_reason(delta)
            if self._scan(self._detokenizer.flush(), pieces):
                reason = "stop"
            else:
                pieces.append(self._scanner.flush())
            self.finish_reason = reason
        return self._progress(delta, pieces, None)

    def _shown(self, delta: Delta) -> list[int]:
        """The tokens that have text: the one that ends the answer has none, also where it is an ordinary word."""
        ids = delta.token_ids
        if delta.finish is Finish.STOP and ids and ids[-1] in self._stop_token_ids:
            return ids[:-1]
        return ids

    def _scan(self, text: str, pieces: list[str]) -> bool:
        shown, stopped = self._scanner.feed(text)
        pieces.append(shown)
        return stopped

    def _stopped(self, delta: Delta, pieces: list[str]) -> Progress:
        self.finish_reason = "stop"
        running = delta.finish is None
        return self._progress(delta, pieces, self.generated if running else None)

    def _progress(self, delta: Delta, pieces: list[str], cancel_at: int | None) -> Progress:
        text = "".join(pieces)
        if text:
            self._pieces.append(text)
        return Progress(delta.index, text, cancel_at)


class Choices:
    """All choices of a request, by index."""

    def __init__(
        self,
        count: int,
        detokenizer: Callable[[], Detokenizer],
        stops: tuple[str, ...],
        stop_token_ids: tuple[int, ...],
    ) -> None:
        self.all = tuple(Choice(detokenizer(), StopScanner(stops), stop_token_ids) for _ in range(count))

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
    def finish_reason(self) -> str:
        """The first choice's: what the request is logged and counted under."""
        return self.all[0].finish_reason


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
