"""Decides what each step computes: running sequences first, a token each, then prompts in chunks, under a budget.

Pure: no torch, no clock, no I/O. Rules:
- a sequence that runs keeps its slot until it ends or is preempted; preemption recomputes it later from its tokens;
- no step processes more than `step_token_budget` tokens or holds more than the pool's capacity;
- prompts are read by priority, then fairly by tenant, then by arrival, begun or not (`fairness`);
- a tenant with less than its share in the engine does not wait for one with more: the newest of that one makes room,
  each sequence once at most, where the prefix cache keeps what it has computed;
- what a sequence leaves is kept in the prefix cache, and what is there is copied and not computed;
- while few sequences run, their next tokens are guessed (`speculation`): rows that would be idle anyway.
"""

from typing import Final

from sidecar.engine.batch import Batch, Chunk, Load, Save
from sidecar.engine.fairness import WaitingQueue, ranked
from sidecar.engine.prefix_cache import BLOCK_TOKENS, PrefixCache
from sidecar.engine.sequence import Phase, Sequence
from sidecar.engine.slot_pool import SlotPool
from sidecar.wire.frames import Finish

Key = tuple[str, int]

# Up to so many rows a step takes hardly longer than with one: reading the weights is what it waits for.
_CHEAP_ROWS: Final = 8
# The logits of a whole chunk are wanted where a prompt is scored: a vocabulary of them for each token.
_SCORED_CHUNK: Final = 64


class Scheduler:
    """Mutable: `waiting`, `running` (in order of start), `_by_key` (all that have not ended), `preemptions`, the prefix
    cache, `_copies` (those that the next batch brings), `_queried` and `_cached` (its prompts' tokens).
    """

    def __init__(
        self,
        pool: SlotPool,
        step_token_budget: int,
        *,
        speculation: int = 0,
        chunks: bool = True,
        prefixes: PrefixCache | None = None,
    ) -> None:
        """`speculation`: the most tokens that are guessed of a sequence in a step. `chunks`: whether prompts may be
        cut; if not, one that is longer than the budget is read whole, with no other.
        """
        self.pool = pool
        self._speculation = speculation
        self._chunks = chunks
        self._prefixes = prefixes
        self.waiting = WaitingQueue()
        self.running: list[Sequence] = []
        self.preemptions = 0
        self._budget = step_token_budget
        self._by_key: dict[Key, Sequence] = {}
        self._copies: list[Load | Save] = []
        self._queried = self._cached = 0

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting)

    @property
    def prefix_tokens(self) -> int:
        """What the prefix cache holds."""
        return 0 if self._prefixes is None else self._prefixes.held_tokens

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
        """Take an ended sequence out of everything. What one that failed has computed, or was given, is not kept."""
        del self._by_key[sequence.submit.request_id, sequence.submit.index]
        failed = sequence.finish is Finish.ERROR
        if failed and self._prefixes is not None:
            self._prefixes.forget(sequence.submit.cache_scope, sequence.tokens)
        if sequence.slot >= 0:
            self._stop(sequence, keep=not failed)
        else:
            self.waiting.remove(sequence)

    def expired(self, now_s: float) -> list[Sequence]:
        """The sequences whose deadline has passed."""
        return [s for s in self._by_key.values() if s.deadline_s is not None and s.deadline_s <= now_s]

    def schedule(self) -> Batch:
        """The next step's work. Every chunk in it is held in the pool."""
        self._make_way()
        decodes = self._decodes()
        budget = self._budget - sum(chunk.count for chunk in decodes)
        prefills = [chunk for chunk in decodes if chunk.draft]
        prefills += self._prefills(budget)
        single = sorted((chunk for chunk in decodes if not chunk.draft), key=lambda chunk: chunk.sequence.slot)
        batch = Batch(tuple(single), tuple(prefills), tuple(self._copies), self._queried, self._cached)
        self._copies = []
        self._queried = self._cached = 0
        return batch

    def computed(self, chunk: Chunk, tokens: int) -> None:
        """A chunk has run well and gives its sequence so many tokens; call it before they are appended."""
        sequence = chunk.sequence
        # Of a draft, what was picked is in the cache, but for the last token picked.
        sequence.computed = chunk.end - len(chunk.draft) + max(0, tokens - 1)
        self._hold(sequence, sequence.computed - chunk.end)
        if chunk.draft:
            sequence.drafter.told(len(sequence.tokens) + tokens, tokens - 1)
        self.waiting.charge(sequence, 0, tokens)
        if chunk.completes and chunk.start < sequence.prompt_tokens:
            self._keep(sequence)

    def _make_way(self) -> None:
        """If the next to start finds no place, the last in rank make one, if they rank behind it."""
        first = self.waiting.first()
        if first is None or self._prefixes is None or (self.pool.has_free_slot and self._fits(first)):
            return
        rank = self.waiting.rank(first)
        # Those that run take a token each before it can start.
        needed = self._needed(first) + len(self.running) - self.pool.room_tokens
        victims: list[Sequence] = []
        # Not only for being the newer one.
        for turn, sequence in reversed(ranked(self.running)):
            if turn[:2] <= rank[:2] or (victims and needed <= 0):
                break
            if not sequence.yielded and _may_reuse(sequence):
                victims.append(sequence)
                needed -= sequence.held + (sequence.pending if sequence.pending > 1 else 0)
        if needed > 0:
            return
        for victim in victims:
            victim.yielded = True
            self._preempt(victim)

    def _decodes(self) -> list[Chunk]:
        """One token for each sequence whose prompt is done; the last in rank make room when there is none left."""
        decodes: list[Chunk] = []
        taken = 0
        ranks = [sequence for _, sequence in ranked(self.running)]
        # In order of rank, so that what makes room is never a sequence that has its chunk already.
        for sequence in list(ranks):
            if sequence.slot < 0 or sequence.pending != 1:
                continue
            while self.pool.room_tokens < 1 and sequence.slot >= 0:
                self._preempt(ranks.pop())
            if sequence.slot >= 0 and taken < self._budget:
                draft = self._draft(sequence, self._budget - taken - 1)
                taken += 1 + len(draft)
                decodes.append(self._chunk(sequence, 1 + len(draft), draft))
        return decodes

    def _draft(self, sequence: Sequence, budget: int) -> tuple[int, ...]:
        """Guesses, as many as are cheap and as the sequence may still say."""
        most = min(self._speculation, _CHEAP_ROWS // len(self.running) - 1)
        most = min(most, budget, self.pool.room_tokens - 1, sequence.submit.max_new_tokens - sequence.generated - 1)
        return sequence.drafter.draft(sequence.tokens, most) if most > 0 else ()

    def _prefills(self, budget: int) -> list[Chunk]:
        """Chunks of prompts, for as many tokens as the budget has."""
        chunks: list[Chunk] = []
        begun = [sequence for sequence in self.running if sequence.pending > 1]
        while budget > 0:
            copied = len(self._copies)
            sequence = self._next(begun, budget, alone=not chunks)
            if sequence is None:
                break
            # A block is copied in the time in which a token or two are computed.
            budget -= sum(len(copy.pairs) for copy in self._copies[copied:])
            count = self._count(sequence, budget)
            if count > 0:
                budget -= count
                chunks.append(self._chunk(sequence, count))
        return chunks

    def _next(self, begun: list[Sequence], budget: int, *, alone: bool) -> Sequence | None:
        """Whose prompt is read next: one of those that have begun, or one that starts now. `alone`: it is the first."""
        ours = min(begun, key=self.waiting.turn, default=None)
        first = self.waiting.first()
        if first is not None and (ours is None or self.waiting.turn(first) < self.waiting.turn(ours)):
            whole = self._chunks or alone or len(first.tokens) <= budget
            if whole and self.pool.has_free_slot and self._fits(first):
                self._start(first)
                return first
        if ours is not None:
            begun.remove(ours)
        return ours

    def _count(self, sequence: Sequence, budget: int) -> int:
        """How many tokens of its prompt are computed in this step."""
        if not self._chunks:
            return min(sequence.pending, self.pool.room_tokens)
        count = min(sequence.pending, budget, self.pool.room_tokens)
        return count if sequence.submit.prompt_logprobs is None else min(count, _SCORED_CHUNK)

    def _chunk(self, sequence: Sequence, count: int, draft: tuple[int, ...] = ()) -> Chunk:
        """A chunk of a sequence, held in the pool; its tenant pays for what of its prompt it has not paid for."""
        chunk = Chunk(sequence, sequence.computed, count, draft)
        self._hold(sequence, count)
        paid = min(chunk.end - len(draft), sequence.prompt_tokens)
        if paid > sequence.charged:
            self.waiting.charge(sequence, paid - sequence.charged, 0)
            sequence.charged = paid
        return chunk

    def _needed(self, sequence: Sequence) -> int:
        """The room without which a sequence that starts would be preempted at once: its tokens' and one more."""
        return len(sequence.tokens) + 1 + sum(running.pending for running in self.running if running.pending > 1)

    def _fits(self, sequence: Sequence) -> bool:
        return self._needed(sequence) <= self.pool.room_tokens

    def _start(self, sequence: Sequence) -> None:
        self.waiting.start(sequence)
        sequence.slot = self.pool.take()
        sequence.phase = Phase.RUNNING
        self.running.append(sequence)
        if self._prefixes is None or not _may_reuse(sequence):
            return
        pairs = self._prefixes.match(sequence.submit.cache_scope, sequence.tokens)
        sequence.computed = len(pairs) * BLOCK_TOKENS
        self._hold(sequence, sequence.computed)
        if pairs:
            self._copies.append(Load(sequence.slot, pairs))
        if not sequence.charged:
            # It starts for the first time.
            sequence.charged = sequence.cached = min(sequence.computed, sequence.prompt_tokens)
            self._queried += sequence.prompt_tokens
            self._cached += sequence.cached

    def _preempt(self, sequence: Sequence) -> None:
        self._stop(sequence, keep=True)
        sequence.phase = Phase.WAITING
        self.waiting.push(sequence)
        self.preemptions += 1

    def _stop(self, sequence: Sequence, *, keep: bool) -> None:
        """Take a sequence out of its slot."""
        if keep:
            self._keep(sequence)
        self.running.remove(sequence)
        self.waiting.stop(sequence)
        self.pool.release(sequence.slot, sequence.held)
        sequence.slot = -1
        sequence.held = sequence.computed = 0

    def _keep(self, sequence: Sequence) -> None:
        """Keep what is computed of it. It is copied before the next step, when nothing has been written over it yet."""
        if self._prefixes is None or not _may_reuse(sequence):
            return
        pairs = self._prefixes.insert(sequence.submit.cache_scope, sequence.tokens[: sequence.computed])
        if pairs:
            self._copies.append(Save(sequence.slot, pairs))

    def _hold(self, sequence: Sequence, tokens: int) -> None:
        self.pool.hold(tokens)
        sequence.held += tokens


def _may_reuse(sequence: Sequence) -> bool:
    """Where a prompt is scored the logits of all its tokens are wanted, and those are not kept."""
    return sequence.submit.prompt_logprobs is None
