"""Which grammars an engine process has been told. Pure: it gives the commands, in order, and sends none."""

from collections import OrderedDict
from typing import Final

from sidecar.grammars.compiler import CompiledGrammar
from sidecar.wire.frames import Define, Forget

MOST_TOLD: Final = 1024
MOST_TOLD_BYTES: Final = 64 * 1024 * 1024


class ToldGrammars:
    """What one engine process knows; another begins with nothing. Mutable: `_sizes` (in bytes, by key,
    oldest use first), `_vocabulary`.
    """

    def __init__(self) -> None:
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._vocabulary = b""

    def tell(self, grammar: CompiledGrammar) -> list[Define | Forget]:
        """What to send before a submit that names this grammar."""
        if grammar.key in self._sizes:
            self._sizes.move_to_end(grammar.key)
            return []
        news = b"" if grammar.vocabulary == self._vocabulary else grammar.vocabulary
        self._vocabulary = grammar.vocabulary
        self._sizes[grammar.key] = len(grammar.compiled)
        commands: list[Define | Forget] = [Define(grammar.key, grammar.compiled, news)]
        while len(self._sizes) > 1 and (len(self._sizes) > MOST_TOLD or sum(self._sizes.values()) > MOST_TOLD_BYTES):
            commands.append(Forget(self._sizes.popitem(last=False)[0]))
        return commands
