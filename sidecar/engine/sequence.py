"""One sequence on its way through the engine: its tokens, how far they are computed, and why it ended."""

import enum
from dataclasses import dataclass, field
from typing import Any, Protocol

from sidecar.engine.speculation import Drafter
from sidecar.wire.frames import Finish, Submit


class Phase(enum.Enum):
    """Where a sequence is. WAITING → RUNNING → ENDED; a preempted one goes back to WAITING."""

    WAITING = enum.auto()
    RUNNING = enum.auto()
    ENDED = enum.auto()


class Constraint(Protocol):
    """What a sequence may say; see `grammars.Constraint`."""

    def masks(self, draft: tuple[int, ...]) -> Any:
        """The tokens that may come next, and next behind each of `draft`."""

    def take(self, token: int) -> bool:
        """Follow a token that was picked; whether it was the last one."""


@dataclass(slots=True, eq=False)
class Sequence:
    """Mutable: `tokens` (prompt and what was generated), `computed` (how many of them are in the KV cache), `held`
    (how many the pool counts for it), `slot` (its place in the cache, -1 without one), `cached` (how much of the prompt
    came from the prefix cache), `charged` (up to which prompt token its tenant has paid), `yielded` (whether it made
    way for another tenant), `scored` (up to which prompt token log-probabilities were told), `phase`, `finish`,
    `error`, `constraint` (None where anything may be said), and `drafter`.

    `deadline_s` is monotonic, as are `arrived_s` and `begun_s`, when it was first worked on (None before); `record` is
    its place in the usage slots.
    """

    submit: Submit
    arrival: int
    record: int
    deadline_s: float | None = None
    arrived_s: float = 0.0
    begun_s: float | None = None
    tokens: list[int] = field(default_factory=list)
    computed: int = 0
    held: int = 0
    slot: int = -1
    cached: int = 0
    charged: int = 0
    yielded: bool = False
    scored: int = 1
    constraint: Constraint | None = None
    drafter: Drafter = field(default_factory=Drafter)
    phase: Phase = Phase.WAITING
    finish: Finish | None = None
    error: str | None = None

    def __post_init__(self) -> None:
        self.tokens = list(self.submit.prompt_ids)

    @property
    def prompt_tokens(self) -> int:
        return len(self.submit.prompt_ids)

    @property
    def generated(self) -> int:
        """How many tokens it has produced."""
        return len(self.tokens) - len(self.submit.prompt_ids)

    @property
    def pending(self) -> int:
        """How many tokens are not in the KV cache yet; a decoding sequence has exactly one."""
        return len(self.tokens) - self.computed

    def append(self, token: int) -> None:
        """Take the token that was picked for it, and end if that is the last one."""
        self.tokens.append(token)
        complete = self.constraint is not None and self.constraint.take(token)
        if complete or token in self.submit.stop_token_ids:
            self.end(Finish.STOP)
        elif self.generated >= self.submit.max_new_tokens:
            self.end(Finish.LENGTH)

    def end(self, finish: Finish, error: str | None = None) -> None:
        self.phase = Phase.ENDED
        self.finish = finish
        self.error = error
