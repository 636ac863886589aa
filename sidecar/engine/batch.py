"""What one step computes, decided by the scheduler and read by the model runner. Plain records."""

from dataclasses import dataclass

from sidecar.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Chunk:
    """`count` tokens of one sequence from position `start` on; `samples` if its last one gives the next token."""

    sequence: Sequence
    start: int
    count: int

    @property
    def end(self) -> int:
        return self.start + self.count

    @property
    def samples(self) -> bool:
        return self.end == len(self.sequence.tokens)


@dataclass(frozen=True, slots=True)
class Batch:
    """`decodes` have one token each and come first, in order of their slots; then the prompt chunks."""

    decodes: tuple[Chunk, ...]
    prefills: tuple[Chunk, ...]

    @property
    def chunks(self) -> tuple[Chunk, ...]:
        return self.decodes + self.prefills

    @property
    def prefill_tokens(self) -> int:
        return sum(chunk.count for chunk in self.prefills)
