"""What is known of a model's way to say things, and how one answer of it is to be read."""

from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

from sidecar.protocol.speech import thoughts
from sidecar.protocol.speech.listener import Listener
from sidecar.protocol.speech.page import PageReader, words

ReasoningFormat = Literal["auto", "none", "think"]


@dataclass(frozen=True, slots=True)
class Dialect:
    """A model's ways. `thinks`: its answers may begin with thoughts."""

    thinks: bool = False


# Of a model of which nothing is known.
WORDS_ONLY: Final = Dialect()


def find_dialect(template: str, reasoning: ReasoningFormat) -> Dialect:
    """What a model's chat template tells of it, where the settings leave it open."""
    thinks = any(marker in template for marker in thoughts.MARKERS) if reasoning == "auto" else reasoning == "think"
    return Dialect(thinks)


@dataclass(frozen=True, slots=True)
class Speech:
    """How an answer is read. `inside`: it begins within its thoughts."""

    inside: bool = False

    @property
    def markers(self) -> tuple[str, ...]:
        """The words that must be seen, also where they are control tokens, which have no text otherwise."""
        return thoughts.MARKERS

    def listener(self) -> Listener:
        return Listener(PageReader(partial(thoughts.thoughts, inside=self.inside, then=words)))
