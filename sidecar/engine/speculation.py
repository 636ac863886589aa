"""Guesses what a sequence says next from what it said before: prompt lookup. Pure.

The last tokens are looked up earlier in the text, and what followed them there is the guess (Saxena, "Prompt lookup
decoding", 2023). A guess costs rows in a step and never changes an answer: only what would have been picked is kept.
Who guesses wrong guesses more seldom: after each miss twice as many tokens pass, until a guess hits.
"""

from collections.abc import Sequence
from typing import Final

_NGRAM: Final = 3
_LONGEST_PAUSE: Final = 64


class Drafter:
    """One sequence's guesses. Mutable: `_after` (where each n-gram was last followed by something), `_seen` (tokens in
    it), `_pause` (tokens to the next try after a miss), `_silent_until` (a length of the text).
    """

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}
        self._seen = 0
        self._pause = 1
        self._silent_until = 0

    def draft(self, tokens: Sequence[int], most: int) -> tuple[int, ...]:
        """At most `most` tokens that may follow `tokens`; none where nothing speaks for any."""
        if len(tokens) < max(_NGRAM + 1, self._silent_until):
            return ()
        for end in range(max(self._seen, _NGRAM), len(tokens)):
            self._after[tuple(tokens[end - _NGRAM : end])] = end
        self._seen = len(tokens)
        start = self._after.get(tuple(tokens[-_NGRAM:]))
        return () if start is None else tuple(tokens[start : start + most])

    def told(self, length: int, accepted: int) -> None:
        """How many guesses were right, when the text had `length` tokens."""
        if accepted:
            self._pause = 1
        else:
            self._silent_until = length + self._pause
            self._pause = min(_LONGEST_PAUSE, self._pause * 2)
