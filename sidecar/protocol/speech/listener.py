"""Listens to one answer: what was said so far, by kinds, and how many of its tokens were thoughts."""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, replace

from sidecar.protocol.speech.parts import Part, Parts
from sidecar.protocol.speech.pieces import Kind, Piece, Reader


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a tool; `arguments` is JSON as the model wrote it, and not all of it where the answer was cut."""

    name: str
    arguments: str


def thought_of(parts: Iterable[Part]) -> str:
    return "".join(part.text for part in parts if part.kind is Kind.THOUGHT)


def calls_of(parts: Iterable[Part]) -> tuple[Call, ...]:
    return tuple(Call(part.name, part.text) for part in parts if part.kind is Kind.CALL)


class Listener:
    """Mutable: `taken` (characters that pieces were made of), `_thought_until` (those of them up to the end of the last
    thought), `over` (one call is enough, and there was one), `_called` (how many calls have begun), the parts so far;
    `_begins`, where each token begins, as long as it may be one of a thought.
    """

    def __init__(self, reader: Reader, *, one_call: bool = False) -> None:
        self._reader = reader
        self._one_call = one_call
        self._parts = Parts()
        self._called = 0
        self._begins: list[int] = []
        self._thinks = True
        self.taken = 0
        self._thought_until = 0
        self.over = False

    def token(self, at: int) -> None:
        """A token begins behind so many characters."""
        if self._thinks:
            self._begins.append(at)

    def feed(self, text: str) -> list[Piece]:
        """The pieces that text completed, but those that show nothing."""
        return self._noted(self._reader.feed(text))

    def flush(self) -> list[Piece]:
        """Those that were held back, at the end of the answer."""
        return self._noted(self._reader.flush())

    @property
    def parts(self) -> tuple[Part, ...]:
        return self._parts.all

    @property
    def calls(self) -> tuple[Call, ...]:
        return calls_of(self.parts)

    @property
    def thought_tokens(self) -> int:
        """The tokens that begin before the thoughts end, markers among them."""
        return bisect_left(self._begins, self._thought_until)

    def _noted(self, pieces: list[Piece]) -> list[Piece]:
        told: list[Piece] = []
        for piece in pieces:
            if self.over:
                break
            at, self.taken = self.taken, self.taken + piece.taken
            self._called += piece.kind is Kind.CALL
            self._note(piece)
            if piece.text or piece.kind is Kind.CALL_END:
                told.append(replace(piece, call=max(0, self._called - 1), at=at))
                self._parts.add(told[-1])
        return told

    def _note(self, piece: Piece) -> None:
        if piece.kind is Kind.THOUGHT:
            self._thought_until = self.taken
            return
        # There are none behind anything else.
        self._thinks = False
        if piece.kind is Kind.CALL_END:
            self.over = self._one_call
