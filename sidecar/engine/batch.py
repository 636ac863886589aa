"""What one step computes, decided by the scheduler and read by the model runner. Plain records."""

from dataclasses import dataclass

from sidecar.engine.prefix_cache import Pair
from sidecar.engine.sequence import Sequence


class DeviceLostError(Exception):
    """The GPU has failed this process, and whatever it would do there next fails too."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """`count` tokens of one sequence from position `start` on; `samples` if they give the next token.

    `draft` are guesses of what follows the sequence's last token, the end of the chunk: they are computed with it, and
    those that turn out as guessed are kept (Saxena, "Prompt lookup decoding", 2023).
    """

    sequence: Sequence
    start: int
    count: int
    draft: tuple[int, ...] = ()

    @property
    def end(self) -> int:
        return self.start + self.count

    @property
    def tokens(self) -> list[int]:
        """Those to compute, `count` many."""
        return [*self.sequence.tokens[self.start : self.end], *self.draft]

    @property
    def samples(self) -> bool:
        return self.completes and self.sequence.submit.max_new_tokens > 0

    @property
    def completes(self) -> bool:
        """Whether nothing of its sequence is left to compute afterwards."""
        return self.end - len(self.draft) == len(self.sequence.tokens)

    @property
    def scores(self) -> bool:
        """Whether log-probabilities of the prompt's tokens are wanted from it."""
        sequence = self.sequence
        return sequence.submit.prompt_logprobs is not None and self.start < sequence.prompt_tokens

    @property
    def logit_rows(self) -> int:
        """Of how many of its last tokens the logits are wanted."""
        if self.scores:
            return self.count
        return 1 + len(self.draft) if self.samples else 0


@dataclass(frozen=True, slots=True)
class Load:
    """Copy kept blocks to a slot."""

    slot: int
    pairs: tuple[Pair, ...]


@dataclass(frozen=True, slots=True)
class Save:
    """Keep blocks of what a slot holds."""

    slot: int
    pairs: tuple[Pair, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """`decodes` have one token each and come first, in order of their slots; then chunks of several tokens.

    Those are prompts, and decodes with drafts. `copies` come before both, in their order. Of the prompts that start,
    `queried_tokens` were looked up in the prefix cache and `cached_tokens` were there.
    """

    decodes: tuple[Chunk, ...]
    prefills: tuple[Chunk, ...]
    copies: tuple[Load | Save, ...] = ()
    queried_tokens: int = 0
    cached_tokens: int = 0

    @property
    def chunks(self) -> tuple[Chunk, ...]:
        return self.decodes + self.prefills

    @property
    def prefill_tokens(self) -> int:
        return sum(chunk.count for chunk in self.prefills if not chunk.draft)

    @property
    def decode_tokens(self) -> int:
        return len(self.decodes) + sum(chunk.count for chunk in self.prefills if chunk.draft)
