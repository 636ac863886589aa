"""The parts of an answer: its pieces put together, in the order in which they were said."""

from dataclasses import dataclass, replace

from sidecar.protocol.speech.pieces import Kind, Piece


@dataclass(frozen=True, slots=True)
class Part:
    """Words, thoughts, or one call: then `text` is its arguments, and `whole` tells whether they were said to the end.

    `call`: which call it is, from 0. `at`: where it begins, in characters of the answer.
    """

    kind: Kind
    text: str = ""
    name: str = ""
    call: int = 0
    whole: bool = False
    at: int = 0


class Parts:
    """Mutable: `over`, the parts that nothing more is added to; `_open`, the one that may go on; `_texts` of that."""

    def __init__(self) -> None:
        self.over: list[Part] = []
        self._open: Part | None = None
        self._texts: list[str] = []

    @property
    def all(self) -> tuple[Part, ...]:
        return tuple(self.over) if self._open is None else (*self.over, self._read(self._open))

    @property
    def open(self) -> Part | None:
        """The one that may go on, without its text."""
        return self._open

    def begins(self, piece: Piece) -> bool:
        """Whether a piece begins a part; then the one before is over."""
        if piece.kind in (Kind.ARGUMENTS, Kind.CALL_END):
            return False
        return piece.kind is Kind.CALL or self._open is None or self._open.kind is not piece.kind

    def add(self, piece: Piece) -> None:
        if self.begins(piece):
            self.close()
            name = piece.text if piece.kind is Kind.CALL else ""
            self._open = Part(piece.kind, name=name, call=piece.call, at=piece.at)
        if self._open is not None and piece.kind is Kind.CALL_END:
            self._open = replace(self._open, whole=True)
        elif piece.kind is not Kind.CALL:
            self._texts.append(piece.text)

    def close(self) -> Part | None:
        """No more comes to the open one, which is given; None if there is none."""
        if self._open is None:
            return None
        part = self._read(self._open)
        self.over.append(part)
        self._open, self._texts = None, []
        return part

    def _read(self, part: Part) -> Part:
        return replace(part, text="".join(self._texts))
