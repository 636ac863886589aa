"""Listens to one answer: what was said so far, by kinds, and how many of its tokens were thoughts."""

from bisect import bisect_left
from dataclasses import dataclass, replace

from sidecar.protocol.speech.pieces import Kind, Piece, Reader


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a tool; `arguments` is JSON as the model wrote it, and not all of it where the answer was cut."""

    name: str
    arguments: str


class Listener:
    """Mutable: `taken` (characters that pieces were made of), `thought_until` (those of them up to the end of the last
    thought), `over` (one call is enough, and there was one), the words, thoughts and calls so far; `_begins`, where
    each token begins, as long as it may be one of a thought.
    """

    def __init__(self, reader: Reader, *, one_call: bool = False) -> None:
        self._reader = reader
        self._one_call = one_call
        self._thoughts: list[str] = []
        self._names: list[str] = []
        self._arguments: list[list[str]] = []
        self._begins: list[int] = []
        self._thinks = True
        self.taken = 0
        self.thought_until = 0
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
    def thought(self) -> str:
        return "".join(self._thoughts)

    @property
    def calls(self) -> tuple[Call, ...]:
        return tuple(Call(name, "".join(pieces)) for name, pieces in zip(self._names, self._arguments, strict=True))

    @property
    def thought_tokens(self) -> int:
        """The tokens that begin before the thoughts end, markers among them."""
        return bisect_left(self._begins, self.thought_until)

    def _noted(self, pieces: list[Piece]) -> list[Piece]:
        told: list[Piece] = []
        for piece in pieces:
            if self.over:
                break
            self.taken += piece.taken
            self._note(piece)
            if piece.text or piece.kind is Kind.CALL_END:
                told.append(piece if not self._names else replace(piece, call=len(self._names) - 1))
        return told

    def _note(self, piece: Piece) -> None:
        if piece.kind is Kind.THOUGHT:
            self._thoughts.append(piece.text)
            self.thought_until = self.taken
            return
        # There are none behind anything else.
        self._thinks = False
        if piece.kind is Kind.CALL:
            self._names.append(piece.text)
            self._arguments.append([])
        elif piece.kind is Kind.ARGUMENTS:
            self._arguments[-1].append(piece.text)
        elif piece.kind is Kind.CALL_END:
            self.over = self._one_call
