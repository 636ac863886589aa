"""What sequences must follow: compiled grammars as the front sends them, and the state of each sequence in its own.

A large grammar takes a good part of a second to read, so it is read beside the steps, in a thread; xgrammar leaves
Python's lock for it.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from sidecar.wire.frames import Define

_BITS = 32


class GrammarUnreadableError(Exception):
    """A grammar that the engine was not told, or could not read."""


class Constraint:
    """Where one sequence is in its grammar. Mutable: the matcher."""

    def __init__(self, compiled: Any, vocabulary_size: int) -> None:
        """`compiled` is xgrammar's."""
        import xgrammar  # noqa: PLC0415  half a second that no engine without grammars need wait for

        self._matcher = xgrammar.GrammarMatcher(compiled)
        self._words = -(-vocabulary_size // _BITS)

    def masks(self, draft: tuple[int, ...]) -> torch.Tensor:
        """Which tokens may come next, and next behind each of `draft`: int32 `[len(draft) + 1, words]`, a bit a token.

        Behind a draft that may not be there everything may be, for nobody gets there.
        """
        masks = torch.full((len(draft) + 1, self._words), -1, dtype=torch.int32)
        taken = 0
        try:
            for at in range(len(draft) + 1):
                self._matcher.fill_next_token_bitmask(masks, at)
                if at == len(draft) or not self._matcher.accept_token(draft[at]):
                    break
                taken += 1
                if self._matcher.is_terminated():
                    break
        finally:
            self._matcher.rollback(taken)
        return masks

    def take(self, token: int) -> bool:
        """Follow a token that was picked; whether it was the last one."""
        self._matcher.accept_token(token)
        return bool(self._matcher.is_terminated())


class Grammars:
    """The grammars that the front has told. Mutable: `_info` (xgrammar's, of the vocabulary), `_found` (by key)."""

    def __init__(self, vocabulary_size: int) -> None:
        self._vocabulary_size = vocabulary_size
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammars")
        self._info: Any = None
        self._found: dict[str, Future[Any]] = {}

    def define(self, define: Define) -> None:
        """Take a grammar in; it is read meanwhile."""
        self._found[define.key] = self._thread.submit(self._read, define)

    def close(self) -> None:
        """Wait until all that was told is read, and read no more."""
        self._thread.shutdown()

    def forget(self, key: str) -> None:
        """Drop a grammar; the sequences that follow it go on."""
        self._found.pop(key, None)

    def constraint(self, key: str) -> Constraint | None:
        """The beginning of a grammar; None while it is being read. Raises GrammarUnreadableError."""
        found = self._found.get(key)
        if found is None:
            raise GrammarUnreadableError("the grammar is not known")
        if not found.done():
            return None
        try:
            return Constraint(found.result(), self._vocabulary_size)
        except Exception as exc:
            raise GrammarUnreadableError(f"{type(exc).__name__}: {exc}") from exc

    def _read(self, define: Define) -> Any:
        import xgrammar  # noqa: PLC0415  as above

        if define.vocabulary:
            self._info = xgrammar.TokenizerInfo.deserialize_json(define.vocabulary.decode())
        return xgrammar.CompiledGrammar.deserialize_json(define.compiled.decode(), self._info)
