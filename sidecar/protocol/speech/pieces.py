"""The kinds of what a model says, and the reader that tells them apart."""

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol


class Kind(enum.Enum):
    """`CALL` begins a call, and its text is the tool's name; `ARGUMENTS` are JSON; `CALL_END` has no text."""

    WORDS = "words"
    THOUGHT = "thought"
    CALL = "call"
    ARGUMENTS = "arguments"
    CALL_END = "call_end"


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of an answer. `taken`: how many characters of the answer went into it, those that are not shown too.

    `call`: which call it is of, from 0. `at`: where it begins, in characters of the answer.
    """

    kind: Kind
    text: str
    taken: int
    call: int = 0
    at: int = 0


_JOINED: Final = (Kind.WORDS, Kind.THOUGHT, Kind.ARGUMENTS)


def joined(pieces: Iterable[Piece]) -> tuple[Piece, ...]:
    """The same with texts of one kind in one piece where they stand side by side."""
    made: list[Piece] = []
    for piece in pieces:
        if made and made[-1].kind is piece.kind and piece.kind in _JOINED:
            last = made.pop()
            made.append(Piece(piece.kind, last.text + piece.text, last.taken + piece.taken, piece.call, last.at))
        else:
            made.append(piece)
    return tuple(made)


class Reader(Protocol):
    """Tells the pieces of one answer apart.

    Laws: however the answer is cut, the texts of its pieces joined by kind are the same; the pieces take it all.
    """

    def feed(self, text: str) -> list[Piece]: ...
    def flush(self) -> list[Piece]:
        """What was held back, at the end of the answer."""
        ...
