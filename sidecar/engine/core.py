"""The engine: one loop, one step at a time. Drain commands → schedule → run the batch → take its tokens → report.

A sequence ends exactly once: with the delta that carries its finish, and with its record in the usage slots closed.
"""

import time
from collections.abc import Callable
from itertools import count
from typing import Final, Protocol

from sidecar.engine.batch import Batch, Chunk, DeviceLostError, Load, Save
from sidecar.engine.grammars import GrammarUnreadableError
from sidecar.engine.scheduler import Scheduler
from sidecar.engine.sequence import Constraint, Phase, Sequence
from sidecar.wire.frames import (
    Cancel,
    Command,
    Define,
    Delta,
    Finish,
    Forget,
    Logprobs,
    Report,
    Shutdown,
    Step,
    Submit,
)
from sidecar.wire.slots import SlotWriter

# How long an idle engine waits for a command before it looks around again.
IDLE_WAIT_S: Final = 1.0
# The same while a sequence waits for its grammar to be read.
GRAMMAR_WAIT_S: Final = 0.002
# Steps that fail one after the other without one token in between: the engine is broken, not a request.
MOST_FAILED_STEPS: Final = 3


# Ended sequences that a late cancel may still correct; far fewer than the usage slots keep.
REMEMBERED: Final = 256


class EngineBrokenError(Exception):
    """Step after step fails: a new process is needed."""


class Outcome(Protocol):
    """What a step gave one chunk; see `model_runner.Outcome`."""

    @property
    def chunk(self) -> Chunk: ...
    @property
    def tokens(self) -> tuple[int, ...]: ...
    @property
    def failed(self) -> bool: ...
    @property
    def logprobs(self) -> tuple[Logprobs, ...]: ...
    @property
    def prompt_logprobs(self) -> tuple[Logprobs, ...]: ...
    @property
    def embedding(self) -> bytes: ...


class Sampled(Protocol):
    """What a step gives; see `model_runner.Sampled`."""

    @property
    def outcomes(self) -> tuple[Outcome, ...]: ...
    @property
    def forward_s(self) -> float: ...


class Runner(Protocol):
    """What the core needs of a model; see `model_runner.ModelRunner`."""

    def copy(self, copies: tuple[Load | Save, ...]) -> None: ...
    def run(self, batch: Batch) -> Sampled: ...


class Channel(Protocol):
    """What the core needs of its front; see `channel.Channel`."""

    def receive(self, wait_s: float) -> list[Command]: ...
    def send(self, report: Report) -> None: ...


class Grammars(Protocol):
    """What sequences may have to follow; see `grammars.Grammars`."""

    def define(self, define: Define) -> None: ...
    def forget(self, key: str) -> None: ...
    def constraint(self, key: str) -> Constraint | None:
        """None while the grammar is being read. Raises GrammarUnreadableError."""


class Core:
    """Mutable: `steps`, `_arrivals`, `_held` (sequences whose grammar is being read), `_deltas` (of the step under
    way), `_ended` (the last records that were closed, by sequence, with their counts), `_drafted`, `_accepted`,
    `_waits_s` and `_prefills_s` (of the step under way), `_failed_steps`, `_stopping`, the scheduler and the grammars.
    """

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        slots: SlotWriter,
        channel: Channel,
        on_step_error: Callable[[Exception, int], None],
        *,
        grammars: Grammars,
    ) -> None:
        """`on_step_error` is told what a step raised and how many sequences were in it."""
        self.steps = 0
        self._drafted = self._accepted = 0
        self._waits_s: list[float] = []
        self._prefills_s: list[float] = []
        self._runner = runner
        self._scheduler = scheduler
        self._slots = slots
        self._channel = channel
        self._grammars = grammars
        self._held: list[Sequence] = []
        self._on_step_error = on_step_error
        self._arrivals = count()
        self._deltas: list[Delta] = []
        self._ended: dict[tuple[str, int], tuple[int, int]] = {}
        self._failed_steps = 0
        self._stopping = False

    def run(self) -> None:
        """Work until a Shutdown. Raises FrontGoneError when the front is gone, EngineBrokenError."""
        while not self._stopping:
            idle = not self._scheduler.has_work
            wait_s = GRAMMAR_WAIT_S if self._held else IDLE_WAIT_S
            commands = self._channel.receive(wait_s if idle else 0.0)
            if idle and commands:
                # Idle time is no stall.
                self._slots.beat(self.steps)
            self._obey(commands)
            self._expire()
            if self._scheduler.has_work:
                self.step()
            elif self._deltas:
                self._report(Batch((), ()), forward_s=0.0, started_s=time.perf_counter())

    def step(self) -> None:
        """One step, reported in one frame."""
        started_s = time.perf_counter()
        batch = self._scheduler.schedule()
        self._begin(batch)
        try:
            if batch.copies:
                self._copy(batch)
            forward_s = self._run_batch(batch) if batch.chunks else 0.0
        except EngineBrokenError:
            # What the step has ended is told as what it was: of the rest its clients hear to try again.
            self._report(batch, forward_s=0.0, started_s=started_s)
            raise
        self.steps += 1
        self._slots.beat(self.steps)
        self._report(batch, forward_s=forward_s, started_s=started_s)

    def _begin(self, batch: Batch) -> None:
        """Note when sequences are first worked on, which is always a piece of their prompt."""
        now_s = time.monotonic()
        for chunk in batch.prefills:
            sequence = chunk.sequence
            if sequence.begun_s is None:
                sequence.begun_s = now_s
                self._waits_s.append(now_s - sequence.arrived_s)

    def _obey(self, commands: list[Command]) -> None:
        for command in commands:
            if isinstance(command, Submit):
                self._submit(command)
            elif isinstance(command, Cancel):
                self._cancel(command)
            elif isinstance(command, Define):
                self._grammars.define(command)
            elif isinstance(command, Forget):
                self._grammars.forget(command.key)
            elif isinstance(command, Shutdown):
                self._let_in(lambda _: True)
                for sequence in self._scheduler.all():
                    self._end(sequence, Finish.CANCELLED)
                self._stopping = True

    def _submit(self, submit: Submit) -> None:
        now_s = time.monotonic()
        deadline_s = None if submit.deadline_ms is None else now_s + submit.deadline_ms / 1000
        prompt_tokens = len(submit.prompt_ids) if submit.counts_prompt else 0
        record = self._slots.claim(submit.request_id, submit.index, prompt_tokens)
        sequence = Sequence(submit, next(self._arrivals), record, deadline_s, arrived_s=now_s)
        if submit.grammar:
            self._held.append(sequence)
        else:
            self._scheduler.add(sequence)

    def _let_in(self, ends: Callable[[Sequence], bool]) -> None:
        """Schedule the held sequences whose grammar is read by now, and those that end without having begun."""
        held, self._held = self._held, []
        for sequence in held:
            try:
                sequence.constraint = self._grammars.constraint(sequence.submit.grammar)
            except GrammarUnreadableError as exc:
                self._scheduler.add(sequence)
                self._on_step_error(exc, 1)
                self._end(sequence, Finish.ERROR, error="The grammar of this request could not be read.")
            else:
                if sequence.constraint is None and not ends(sequence):
                    self._held.append(sequence)
                else:
                    self._scheduler.add(sequence)

    def _cancel(self, cancel: Cancel) -> None:
        key = (cancel.request_id, cancel.index)
        self._let_in(lambda held: (held.submit.request_id, held.submit.index) == key)
        sequence = self._scheduler.find(*key)
        if sequence is not None:
            self._end(sequence, Finish.CANCELLED, counts=cancel.generated)
        elif cancel.generated is not None and (record := self._ended.get(key)):
            # It ended by itself while the front found a stop string further back.
            self._slots.count(record[0], min(cancel.generated, record[1]))

    def _expire(self) -> None:
        now_s = time.monotonic()
        self._let_in(lambda held: held.deadline_s is not None and held.deadline_s <= now_s)
        for sequence in self._scheduler.expired(now_s):
            self._end(sequence, Finish.DEADLINE)

    def _copy(self, batch: Batch) -> None:
        try:
            self._runner.copy(batch.copies)
        except Exception as exc:
            # What the prefix cache holds is not what it is thought to hold: no sequence is the culprit.
            self._on_step_error(exc, len(batch.chunks))
            raise EngineBrokenError("the prefix cache could not be copied") from exc

    def _run_batch(self, batch: Batch) -> float:
        """Run a batch; if that fails, each of its chunks alone, so that only the culprit is lost."""
        try:
            sampled = self._runner.run(batch)
        except DeviceLostError as exc:
            self._on_step_error(exc, len(batch.chunks))
            raise EngineBrokenError("the GPU has failed") from exc
        except Exception as exc:  # noqa: BLE001  # whatever a model raises must not end its neighbours
            self._on_step_error(exc, len(batch.chunks))
        else:
            return self._take(sampled)
        forward_s = 0.0
        survivors = 0
        for chunk in batch.chunks:
            alone = Batch((chunk,), ()) if chunk in batch.decodes else Batch((), (chunk,))
            try:
                sampled = self._runner.run(alone)
            except DeviceLostError as exc:
                raise EngineBrokenError("the GPU has failed") from exc
            except Exception as exc:  # noqa: BLE001  # as above
                if len(batch.chunks) > 1:
                    self._on_step_error(exc, 1)
                self._end(chunk.sequence, Finish.ERROR, error="The model failed on this request.")
            else:
                forward_s += self._take(sampled)
                survivors += 1
        self._failed_steps = 0 if survivors else self._failed_steps + 1
        if self._failed_steps >= MOST_FAILED_STEPS:
            raise EngineBrokenError(f"{self._failed_steps} steps failed one after the other")
        return forward_s

    def _take(self, sampled: Sampled) -> float:
        """Give each sequence what the step gave it."""
        self._failed_steps = 0
        for outcome in sampled.outcomes:
            self._give(outcome)
        return sampled.forward_s

    def _give(self, outcome: Outcome) -> None:
        sequence, chunk = outcome.chunk.sequence, outcome.chunk
        if outcome.failed:
            words = "The model's output for this request is not a number."
            if sequence.constraint is not None:
                words = "The grammar of this request leaves nothing to say, or the model's output is not a number."
            self._end(sequence, Finish.ERROR, error=words)
            return
        self._scheduler.computed(chunk, len(outcome.tokens))
        self._drafted += len(chunk.draft)
        self._accepted += max(0, len(outcome.tokens) - 1)
        taken = 0
        for token in outcome.tokens:
            sequence.append(token)
            taken += 1
            if sequence.phase is Phase.ENDED:
                break
        sequence.scored += len(outcome.prompt_logprobs)
        if sequence.submit.max_new_tokens == 0 and chunk.completes:
            # Only its prompt was wanted.
            sequence.end(Finish.LENGTH)
        if sequence.phase is Phase.ENDED:
            self._close_record(sequence, sequence.generated)
            self._scheduler.retire(sequence)
        else:
            self._slots.count(sequence.record, sequence.generated)
        if taken or outcome.prompt_logprobs or sequence.phase is Phase.ENDED:
            self._note(sequence, list(outcome.tokens[:taken]), sequence.generated, outcome)

    def _end(self, sequence: Sequence, finish: Finish, *, error: str | None = None, counts: int | None = None) -> None:
        """End a sequence without a token. `counts`: how many of its tokens the front makes count, at most all."""
        generated = sequence.generated if counts is None else min(counts, sequence.generated)
        self._close_record(sequence, generated)
        self._scheduler.end(sequence, finish, error)
        self._note(sequence, [], generated)

    def _close_record(self, sequence: Sequence, generated: int) -> None:
        self._slots.end(sequence.record, generated)
        self._ended[sequence.submit.request_id, sequence.submit.index] = (sequence.record, generated)
        if len(self._ended) > REMEMBERED:
            del self._ended[next(iter(self._ended))]

    def _note(self, sequence: Sequence, tokens: list[int], generated: int, outcome: Outcome | None = None) -> None:
        submit = sequence.submit
        first = 0 < len(tokens) == sequence.generated
        waited_us = 0
        if first and sequence.begun_s is not None:
            self._prefills_s.append(time.monotonic() - sequence.begun_s)
            waited_us = round((sequence.begun_s - sequence.arrived_s) * 1e6)
        self._deltas.append(
            Delta(
                submit.request_id,
                submit.index,
                tokens,
                generated,
                sequence.finish,
                sequence.error,
                logprobs=[] if outcome is None else list(outcome.logprobs[: len(tokens)]),
                prompt_logprobs=[] if outcome is None else list(outcome.prompt_logprobs),
                cached_tokens=sequence.cached if first else 0,
                embedding=b"" if outcome is None else outcome.embedding,
                waited_us=waited_us,
            )
        )

    def _report(self, batch: Batch, *, forward_s: float, started_s: float) -> None:
        pool = self._scheduler.pool
        step = Step(
            number=self.steps,
            deltas=self._deltas,
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting),
            prefill_tokens=batch.prefill_tokens,
            decode_tokens=batch.decode_tokens,
            kv_used_tokens=pool.used_tokens,
            kv_capacity_tokens=pool.capacity_tokens,
            forward_s=forward_s,
            total_s=time.perf_counter() - started_s,
            drafted=self._drafted,
            accepted=self._accepted,
            preemptions=self._scheduler.preemptions,
            queried_tokens=batch.queried_tokens,
            cached_tokens=batch.cached_tokens,
            prefix_tokens=self._scheduler.prefix_tokens,
            waits_s=self._waits_s,
            prefills_s=self._prefills_s,
        )
        self._deltas, self._waits_s, self._prefills_s = [], [], []
        self._drafted = self._accepted = 0
        self._channel.send(step)
