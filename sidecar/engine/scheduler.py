"""Decides what each step computes: running sequences first, a token each, then prompts in chunks, under a budget.

Pure: no torch, no clock, no I/O. Rules:
- a sequence that runs keeps its slot until it ends or is preempted; preemption recomputes it later from its tokens;
- no step processes more than `step_token_budget` tokens or holds more than the pool's capacity;
- a sequence that waits is started by priority, then fairly by tenant, then by arrival (`fairness`);
- while few sequences run, their next tokens are guessed (`speculation`): rows that would be idle anyway.
"""

from typing import Final

from sidecar.engine.batch import BLOCK, Batch, Chunk
from sidecar.engine.fairness import WaitingQueue
from sidecar.engine.sequence import Phase, Sequence
from sidecar.engine.slot_pool import SlotPool
from sidecar.wire.frames import Finish

Key = tuple[str, int]

# Up to so many rows a step takes hardly longer than with one: reading the weights is what it waits for.
_CHEAP_ROWS: Final = 6
# The logits of a whole chunk are wanted where a prompt is scored: a vocabulary of them for each token.
_SCORED_CHUNK: Final = 64


class Scheduler:
    """Mutable: `waiting`, `running` (in order of start), `_by_key` (all that have not ended), `preemptions`."""

    def __init__(self, pool: SlotPool, step_token_budget: int, *, speculation: int = 0) -> None:
        """`speculation`: the most tokens that are guessed of a sequence in a step."""
        self.pool = pool
        self._speculation = speculation
        self.waiting = WaitingQueue()
        self.running: list[Sequence] = []
        self.preemptions = 0
        self._budget = step_token_budget
        self._by_key: dict[Key, Sequence] = {}

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting)

    def add(self, sequence: Sequence) -> None:
        self._by_key[sequence.submit.request_id, sequence.submit.index] = sequence
        self.waiting.push(sequence)

    def find(self, request_id: str, index: int) -> Sequence | None:
        """A sequence that has not ended."""
        return self._by_key.get((request_id, index))

    def all(self) -> list[Sequence]:
        """Every sequence that has not ended."""
        return list(self._by_key.values())

    def end(self, sequence: Sequence, finish: Finish, error: str | None = None) -> None:
        """End a sequence before its time; what it holds is free at once."""
        sequence.end(finish, error)
        self.retire(sequence)

    def retire(self, sequence: Sequence) -> None:
        """Take an ended sequence out of everything."""
        del self._by_key[sequence.submit.request_id, sequence.submit.index]
        if sequence.slot >= 0:
            self.running.remove(sequence)
            self._free(sequence)
        else:
            self.waiting.remove(sequence)
        self.waiting.keep_only({running.submit.tenant for running in self.running})

    def expired(self, now_s: float) -> list[Sequence]:
        """The sequences whose deadline has passed."""
        return [s for s in self._by_key.values() if s.deadline_s is not None and s.deadline_s <= now_s]

    def schedule(self) -> Batch:
        """The next step's work. Every chunk in it is held in the pool."""
        decodes = self._decodes()
        budget = self._budget - sum(chunk.count for chunk in decodes)
        prefills = [chunk for chunk in decodes if chunk.draft]
        for sequence in self.running:
            if sequence.pending > 1:
                budget -= self._prefill(sequence, budget, prefills)
        while budget > 0 and self.pool.has_free_slot:
            first = self.waiting.first()
            if first is None or not self._starts(first):
                break
            budget -= self._prefill(first, budget, prefills)
        single = sorted((chunk for chunk in decodes if not chunk.draft), key=lambda chunk: chunk.sequence.slot)
        return Batch(tuple(single), tuple(prefills))

    def computed(self, chunk: Chunk, tokens: int) -> None:
        """A chunk has run and gives its sequence so many tokens; call it before they are appended."""
        sequence = chunk.sequence
        # Of a draft, what was picked is in the cache, but for the last token picked.
        sequence.computed = chunk.end - len(chunk.draft) + max(0, tokens - 1)
        self._hold(sequence, sequence.computed - chunk.end)
        if chunk.draft:
            sequence.drafter.told(len(sequence.tokens) + tokens, tokens - 1)
        generated = chunk.end > sequence.prompt_tokens
        self.waiting.served(sequence, 0 if generated else chunk.count, tokens)

    def _decodes(self) -> list[Chunk]:
        """One token for each sequence whose prompt is done; the newest make room when there is none left."""
        decodes: list[Chunk] = []
        taken = 0
        # In order of rank, so that what makes room is never a sequence that has its chunk already.
        for sequence in sorted(self.running, key=_rank):
            if sequence.slot < 0 or sequence.pending != 1:
                continue
            while self.pool.room_tokens < 1 and self._make_room(sequence):
                pass
            if sequence.slot >= 0 and taken < self._budget:
                draft = self._draft(sequence, self._budget - taken - 1)
                taken += 1 + len(draft)
                self._hold(sequence, 1 + len(draft))
                decodes.append(Chunk(sequence, sequence.computed, 1 + len(draft), draft))
        return decodes

    def _draft(self, sequence: Sequence, budget: int) -> tuple[int, ...]:
        """Guesses, as many as are cheap and as the sequence may still say."""
        most = min(self._speculation, _CHEAP_ROWS // len(self.running) - 1)
        most = min(most, budget, self.pool.room_tokens - 1, sequence.submit.max_new_tokens - sequence.generated - 1)
        return sequence.drafter.draft(sequence.tokens, most) if most > 0 else ()

    def _make_room(self, sequence: Sequence) -> bool:
        """Preempt the last in rank; False if that was `sequence` itself."""
        victim = max(self.running, key=_rank)
        self._preempt(victim)
        return victim is not sequence

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._free(sequence)
        sequence.phase = Phase.WAITING
        self.waiting.push(sequence)
        self.preemptions += 1

    def _hold(self, sequence: Sequence, tokens: int) -> None:
        self.pool.hold(tokens)
        sequence.held += tokens

    def _free(self, sequence: Sequence) -> None:
        self.pool.release(sequence.slot, sequence.held)
        sequence.slot = -1
        sequence.held = sequence.computed = 0

    def _starts(self, sequence: Sequence) -> bool:
        """Start a waiting sequence, if its tokens and one more fit: else it would be preempted at once."""
        committed = sum(running.pending for running in self.running if running.pending > 1)
        if len(sequence.tokens) + 1 + committed > self.pool.room_tokens:
            return False
        self.waiting.remove(sequence)
        sequence.slot = self.pool.take()
        sequence.phase = Phase.RUNNING
        self.running.append(sequence)
        return True

    def _prefill(self, sequence: Sequence, budget: int, prefills: list[Chunk]) -> int:
        count = min(sequence.pending, budget, self.pool.room_tokens)
        if sequence.submit.prompt_logprobs is not None:
            count = min(count, _SCORED_CHUNK)
        if count < sequence.pending:
            # Cut where a block ends, if one does: then a prompt is computed in the same blocks whoever else runs.
            whole = (sequence.computed + count) // BLOCK * BLOCK
            count = max(whole - sequence.computed, 0) or count
        if count > 0:
            self._hold(sequence, count)
            prefills.append(Chunk(sequence, sequence.computed, count))
        return max(count, 0)


def _rank(sequence: Sequence) -> tuple[int, int]:
    return -sequence.submit.priority, sequence.arrival
