"""Decides what each step computes: running sequences first, a token each, then prompts in chunks, under a budget.

Pure: no torch, no clock, no I/O. Rules:
- a sequence that runs keeps its slot until it ends or is preempted; preemption recomputes it later from its tokens;
- no step processes more than `step_token_budget` tokens or holds more than the pool's capacity;
- a sequence that waits is started by priority, then fairly by tenant, then by arrival (`fairness`).
"""

from sidecar.engine.batch import Batch, Chunk
from sidecar.engine.fairness import WaitingQueue
from sidecar.engine.sequence import Phase, Sequence
from sidecar.engine.slot_pool import SlotPool
from sidecar.wire.frames import Finish

Key = tuple[str, int]


class Scheduler:
    """Mutable: `waiting`, `running` (in order of start), `_by_key` (all that have not ended), `preemptions`."""

    def __init__(self, pool: SlotPool, step_token_budget: int) -> None:
        self.pool = pool
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
        budget = self._budget - len(decodes)
        prefills: list[Chunk] = []
        for sequence in self.running:
            if sequence.pending > 1:
                budget -= self._prefill(sequence, budget, prefills)
        while budget > 0 and self.pool.has_free_slot:
            first = self.waiting.first()
            if first is None or not self._starts(first):
                break
            budget -= self._prefill(first, budget, prefills)
        decodes.sort(key=lambda chunk: chunk.sequence.slot)
        return Batch(tuple(decodes), tuple(prefills))

    def computed(self, batch: Batch) -> None:
        """The batch has run: its tokens are in the cache."""
        for chunk in batch.chunks:
            chunk.sequence.computed = chunk.end
            generated = chunk.end > chunk.sequence.prompt_tokens
            self.waiting.served(chunk.sequence, 0 if generated else chunk.count, int(chunk.samples))

    def _decodes(self) -> list[Chunk]:
        """One token for each sequence whose prompt is done; the newest make room when there is none left."""
        decodes: list[Chunk] = []
        # In order of rank, so that what makes room is never a sequence that has its chunk already.
        for sequence in sorted(self.running, key=_rank):
            if sequence.slot < 0 or sequence.pending != 1:
                continue
            while self.pool.room_tokens < 1 and self._make_room(sequence):
                pass
            if sequence.slot >= 0 and len(decodes) < self._budget:
                self._hold(sequence, 1)
                decodes.append(Chunk(sequence, sequence.computed, 1))
        return decodes

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
        if count > 0:
            self._hold(sequence, count)
            prefills.append(Chunk(sequence, sequence.computed, count))
        return max(count, 0)


def _rank(sequence: Sequence) -> tuple[int, int]:
    return -sequence.submit.priority, sequence.arrival
