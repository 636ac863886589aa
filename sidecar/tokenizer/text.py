"""From tokens to text while they come: whole characters only, and nothing that may yet become a stop string.

Pure; the decoder is handed in. What `Detokenizer` gives, joined, is what decoding all tokens at once gives.
"""

from collections.abc import Callable, Sequence
from typing import Final

REPLACEMENT: Final = "\ufffd"
# Tokens kept before the newest ones, so that a decoder that looks back (a leading space, a run of byte tokens) sees
# what it would have seen; and how long the window may grow before it is cut back to that.
_KEPT: Final = 8
_LONGEST: Final = 24
_LONGEST_AT_ANY_PRICE: Final = 96
# A character has at most four bytes. Text that still ends in U+FFFD after so many tokens is broken for good.
_MOST_PENDING: Final = 16


class Detokenizer:
    """Gives the text of a sequence piece by piece, at a cost per token that does not grow.

    Mutable: `_window` (the last tokens), `_given` (how many characters of the window's text were given), `_pending`
    (tokens since text was last given), `_open` (the text before, as long as its last character may be unfinished).
    """

    def __init__(self, decode: Callable[[list[int]], str], skipped: frozenset[int], before: Sequence[int] = ()) -> None:
        """`before`: tokens that the text continues, so that a decoder does not take its first word for a beginning."""
        self._decode = decode
        self._skipped = skipped
        self._window = [token for token in before if token not in skipped][-_KEPT:]
        text = decode(self._window) if self._window else ""
        self._open = text if text.endswith(REPLACEMENT) else ""
        self._given = len(text) - bool(self._open)
        self._pending = 0

    @property
    def begins(self) -> bool:
        """Whether no text came before: some decoders drop a space there."""
        return not self._window

    def feed(self, token: int) -> str:
        """Take the next token and give the text that is now certain."""
        if token in self._skipped:
            return ""
        self._window.append(token)
        self._pending += 1
        text = self._decode(self._window)
        held = 1 if text.endswith(REPLACEMENT) else 0
        if held and self._pending < _MOST_PENDING:
            return ""
        self._close(text)
        piece = text[self._given : len(text) - held]
        self._given = max(self._given, len(text) - held)
        if not held:
            self._pending = 0
        if len(self._window) > _LONGEST:
            self._cut(text, held)
        return piece

    def shows(self, token: int) -> bool:
        """Whether a token has text at all: a control token has none."""
        return token not in self._skipped

    def flush(self) -> str:
        """The text that was held back, at the end of the sequence."""
        if not self._pending:
            return ""
        text = self._decode(self._window)
        self._close(text)
        piece = text[self._given :]
        self._given += len(piece)
        self._pending = 0
        return piece

    def _close(self, text: str) -> None:
        """A U+FFFD that stays as it was when more text comes is no character to be finished, and was there before."""
        if self._open and len(text) > len(self._open) and text.startswith(self._open):
            self._given = len(self._open)
        self._open = ""

    def _cut(self, text: str, held: int) -> None:
        """Shorten the window, at a place where the shorter one has the same text at its end."""
        kept = self._window[-_KEPT:]
        rest = self._decode(kept)
        clean = rest and not rest.startswith(REPLACEMENT) and text.endswith(rest)
        if clean or len(self._window) > _LONGEST_AT_ANY_PRICE:
            self._window = kept
            self._given = len(rest) - held


class StopScanner:
    """Finds the first stop string in text that comes in pieces.

    Mutable: `found`, the one that was completed; `_held`, text that may become one, and `_passed`, how much of that is
    no place for one to end.
    """

    def __init__(self, stops: tuple[str, ...], *, shown: bool = False) -> None:
        """`shown`: a stop string is part of the text, which ends with it, and not before it."""
        self._stops = stops
        self._shown = shown
        self._held = ""
        self._passed = 0
        self.found: str | None = None

    def feed(self, piece: str, *, may_end: bool = True) -> tuple[str, bool]:
        """Take more text; give what may be shown, and whether a stop string was completed (nothing follows then).

        `may_end`: whether one that ends in `piece` counts; if not, it is text, and may be the beginning of one.
        """
        if not self._stops:
            return piece, False
        text = self._held + piece
        passed = self._passed if may_end else len(text)
        starts = ((text.find(stop, max(0, passed - len(stop) + 1)), len(stop), stop) for stop in self._stops)
        found = [(start, size, stop) for start, size, stop in starts if start >= 0]
        if found:
            # Of those that begin at one place the shortest was complete before the others.
            start, size, self.found = min(found)
            self._held = ""
            return text[: start + size if self._shown else start], True
        keep = unfinished(text, self._stops)
        self._held = text[len(text) - keep :]
        self._passed = max(0, passed - len(text) + keep)
        return text[: len(text) - keep], False

    def flush(self) -> str:
        """The text that was held back and became no stop string."""
        held, self._held = self._held, ""
        return held


def unfinished(text: str, words: Sequence[str]) -> int:
    """The length of the longest end of `text` that begins one of `words` and is not all of it."""
    longest = min(len(text), max(map(len, words)) - 1)
    for size in range(longest, 0, -1):
        if any(word.startswith(text[-size:]) for word in words):
            return size
    return 0
