"""The step loop with a model that is a table: every sequence ends once, and a fault costs only its culprit."""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from sidecar.engine.batch import Batch, Chunk, DeviceLostError, Load, Save
from sidecar.engine.core import MOST_FAILED_STEPS, Core, EngineBrokenError
from sidecar.engine.grammars import GrammarUnreadableError
from sidecar.engine.prefix_cache import PrefixCache
from sidecar.engine.scheduler import Scheduler
from sidecar.engine.slot_pool import SlotPool
from sidecar.wire.frames import (
    Cancel,
    Command,
    Define,
    Delta,
    Finish,
    Forget,
    Logprobs,
    Report,
    Sampling,
    Shutdown,
    Step,
    Submit,
)
from sidecar.wire.slots import RequestUsage, SlotReader, SlotWriter

EOS = 2


@dataclass(frozen=True)
class Outcome:
    chunk: Chunk
    tokens: tuple[int, ...] = ()
    failed: bool = False
    logprobs: tuple[Logprobs, ...] = ()
    prompt_logprobs: tuple[Logprobs, ...] = ()
    embedding: bytes = b""


@dataclass(frozen=True)
class Sampled:
    outcomes: tuple[Outcome, ...]
    forward_s: float = 0.001


@dataclass
class FakeRunner:
    """Gives 10, 11, 12 … to each sequence; a prompt that begins with 666 raises, one with 667 gives no number."""

    ends_at: int = 1000
    broken: bool = False
    copies: list[Load | Save] = field(default_factory=list)
    copy_error: Exception | None = None
    device_lost: bool = False
    lost_alone: bool = False

    def copy(self, copies: tuple[Load | Save, ...]) -> None:
        if self.copy_error is not None:
            raise self.copy_error
        self.copies += copies

    def run(self, batch: Batch) -> Sampled:
        if self.device_lost:
            raise DeviceLostError("CUDA error: an illegal memory access was encountered")
        if self.lost_alone:
            self.device_lost = True
            raise RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED")
        if self.broken or any(chunk.sequence.tokens[0] == 666 for chunk in batch.chunks):
            raise RuntimeError("the model fell over")
        return Sampled(tuple(self._outcome(chunk) for chunk in batch.chunks))

    def _outcome(self, chunk: Chunk) -> Outcome:
        if not chunk.samples:
            return Outcome(chunk)
        if chunk.sequence.tokens[0] == 667:
            return Outcome(chunk, failed=True)
        return Outcome(chunk, (EOS if chunk.sequence.generated >= self.ends_at else 10 + chunk.sequence.generated,))


class FakeConstraint:
    """Allows two tokens. Mutable: `taken`."""

    def __init__(self) -> None:
        self.taken: list[int] = []

    def masks(self, _draft: tuple[int, ...]) -> object:
        return None

    def take(self, token: int) -> bool:
        self.taken.append(token)
        return len(self.taken) == 2


@dataclass
class FakeGrammars:
    """Has been told what it was told, after being asked `reads` times for it."""

    reads: int = 0
    told: list[str] = field(default_factory=list)
    given: list[FakeConstraint] = field(default_factory=list)

    def define(self, define: Define) -> None:
        self.told.append(define.key)

    def forget(self, key: str) -> None:
        self.told.remove(key)

    def constraint(self, key: str) -> FakeConstraint | None:
        if key not in self.told:
            raise GrammarUnreadableError("the grammar is not known")
        self.reads -= 1
        if self.reads >= 0:
            return None
        self.given.append(FakeConstraint())
        return self.given[-1]


@dataclass
class FakeChannel:
    """Hands out one batch of commands a step; when they are used up, the front shuts the engine down."""

    script: list[list[Command]]
    sent: list[Step] = field(default_factory=list)
    before: Callable[[int], None] = lambda _: None

    def receive(self, wait_s: float) -> list[Command]:
        del wait_s
        self.before(len(self.sent))
        return self.script.pop(0) if self.script else [Shutdown()]

    def send(self, report: Report) -> None:
        assert isinstance(report, Step)
        self.sent.append(report)

    def deltas(self, request_id: str) -> list[Delta]:
        return [delta for step in self.sent for delta in step.deltas if delta.request_id == request_id]


def submit(name: str, prompt: list[int] | None = None, most: int = 3, **told: int | str) -> Submit:
    return Submit(name, 0, prompt or [1, 1], most, Sampling(temperature=0), [EOS], **told)  # type: ignore[arg-type]  # a test's shorthand


@pytest.fixture
def slots(tmp_path: Path) -> SlotWriter:
    return SlotWriter(tmp_path / "slots", capacity=16)


@pytest.fixture
def usage(tmp_path: Path, slots: SlotWriter) -> Callable[[str], RequestUsage | None]:
    del slots

    def read(name: str) -> RequestUsage | None:
        with SlotReader(tmp_path / "slots") as reader:
            return reader.usage(name)

    return read


def run(
    slots: SlotWriter,
    script: list[list[Command]],
    runner: FakeRunner | None = None,
    grammars: FakeGrammars | None = None,
) -> tuple[FakeChannel, Core]:
    channel = FakeChannel(script)
    failures: list[Exception] = []
    scheduler = Scheduler(SlotPool(4, 1000), 256, prefixes=PrefixCache(8))
    core = Core(
        runner or FakeRunner(),
        scheduler,
        slots,
        channel,
        lambda exc, _: failures.append(exc),
        grammars=grammars or FakeGrammars(),
    )
    core.run()
    assert not scheduler.has_work
    assert scheduler.pool.used_tokens == 0
    return channel, core


def test_a_sequence_runs_to_its_length(slots: SlotWriter, usage: Callable[[str], RequestUsage | None]) -> None:
    channel, core = run(slots, [[submit("a")], [], [], []])
    deltas = channel.deltas("a")
    assert [(d.token_ids, d.generated, d.finish) for d in deltas] == [
        ([10], 1, None),
        ([11], 2, None),
        ([12], 3, Finish.LENGTH),
    ]
    assert core.steps == 3
    assert usage("a") == RequestUsage(2, 3, running=False)


def test_an_end_of_sequence_token_ends_it_and_counts(slots: SlotWriter) -> None:
    channel, _ = run(slots, [[submit("a", most=9)], [], []], FakeRunner(ends_at=1))
    assert [(d.token_ids, d.generated, d.finish) for d in channel.deltas("a")] == [
        ([10], 1, None),
        ([EOS], 2, Finish.STOP),
    ]


def test_one_frame_a_step_carries_the_deltas_of_all(slots: SlotWriter) -> None:
    channel, _ = run(slots, [[submit("a"), submit("b")], [], []])
    assert [sorted(delta.request_id for delta in step.deltas) for step in channel.sent] == [["a", "b"]] * 3
    assert [(step.prefill_tokens, step.decode_tokens) for step in channel.sent] == [(4, 0), (0, 2), (0, 2)]


def test_a_cancelled_sequence_ends_before_the_next_step(
    slots: SlotWriter, usage: Callable[[str], RequestUsage | None]
) -> None:
    channel, core = run(slots, [[submit("a", most=99)], [], [Cancel("a", 0)]])
    assert channel.deltas("a")[-1] == Delta("a", 0, [], 2, Finish.CANCELLED)
    assert core.steps == 2
    assert usage("a") == RequestUsage(2, 2, running=False)


def test_a_cancel_may_make_fewer_tokens_count_but_never_more(
    slots: SlotWriter, usage: Callable[[str], RequestUsage | None]
) -> None:
    run(
        slots,
        [
            [submit("a", most=99), submit("b", most=99)],
            [],
            [],
            [Cancel("a", 0, generated=1), Cancel("b", 0, generated=50)],
        ],
    )
    assert usage("a") == RequestUsage(2, 1, running=False)
    assert usage("b") == RequestUsage(2, 3, running=False)


def test_a_cancel_that_comes_too_late_still_says_what_counts(
    slots: SlotWriter, usage: Callable[[str], RequestUsage | None]
) -> None:
    run(slots, [[submit("a", most=3)], [], [], [Cancel("a", 0, generated=2)]])
    assert usage("a") == RequestUsage(2, 2, running=False)
    run(slots, [[submit("b", most=3)], [], [], [Cancel("b", 0)]])
    assert usage("b") == RequestUsage(2, 3, running=False)


def test_a_cancel_of_what_is_not_there_is_nothing(slots: SlotWriter) -> None:
    channel, core = run(slots, [[Cancel("a", 0)]])
    assert (channel.sent, core.steps) == ([], 0)


def test_a_deadline_that_has_passed_ends_a_sequence(slots: SlotWriter) -> None:
    channel, _ = run(slots, [[submit("a", deadline_ms=0), submit("b", most=1)]])
    assert [d.finish for d in channel.deltas("a")] == [Finish.DEADLINE]
    assert [d.finish for d in channel.deltas("b")] == [Finish.LENGTH]


def test_f4_a_prompt_that_breaks_the_model_costs_only_itself(
    slots: SlotWriter, usage: Callable[[str], RequestUsage | None]
) -> None:
    channel, _ = run(slots, [[submit("good"), submit("bad", [666, 1]), submit("other")], [], [], []])
    (failed,) = channel.deltas("bad")
    assert (failed.finish, failed.generated) == (Finish.ERROR, 0)
    assert failed.error == "The model failed on this request."
    for name in ("good", "other"):
        assert [d.generated for d in channel.deltas(name)] == [1, 2, 3]
    assert usage("bad") == RequestUsage(2, 0, running=False)


def test_a_row_without_a_number_costs_only_itself(slots: SlotWriter) -> None:
    channel, _ = run(slots, [[submit("bad", [667, 1]), submit("good", most=1)], []])
    assert [d.finish for d in channel.deltas("bad")] == [Finish.ERROR]
    assert [d.finish for d in channel.deltas("good")] == [Finish.LENGTH]


def test_a_model_that_fails_step_after_step_ends_the_engine(slots: SlotWriter) -> None:
    channel = FakeChannel([[submit(str(n))] for n in range(MOST_FAILED_STEPS)])
    core = Core(
        FakeRunner(broken=True),
        Scheduler(SlotPool(4, 100), 16),
        slots,
        channel,
        lambda _exc, _count: None,
        grammars=FakeGrammars(),
    )
    with pytest.raises(EngineBrokenError):
        core.run()
    # The last one too is told why: who only loses its engine tries the same again.
    assert [channel.deltas(str(n))[-1].finish for n in range(MOST_FAILED_STEPS)] == [Finish.ERROR] * MOST_FAILED_STEPS


def test_f4_a_lost_gpu_ends_the_engine_at_once_and_no_sequence_is_blamed(slots: SlotWriter) -> None:
    channel = FakeChannel([[submit("a"), submit("b")], []])
    told: list[int] = []
    scheduler = Scheduler(SlotPool(4, 100), 16)
    core = Core(
        FakeRunner(device_lost=True),
        scheduler,
        slots,
        channel,
        lambda _, sequences: told.append(sequences),
        grammars=FakeGrammars(),
    )
    with pytest.raises(EngineBrokenError, match="the GPU has failed"):
        core.run()
    assert told == [2]
    assert channel.deltas("a") == channel.deltas("b") == []


def test_f4_a_gpu_that_is_lost_while_a_culprit_is_sought_is_lost_all_the_same(slots: SlotWriter) -> None:
    channel = FakeChannel([[submit("a"), submit("b")], []])
    scheduler = Scheduler(SlotPool(4, 100), 16)
    core = Core(
        FakeRunner(lost_alone=True), scheduler, slots, channel, lambda _exc, _count: None, grammars=FakeGrammars()
    )
    with pytest.raises(EngineBrokenError, match="the GPU has failed"):
        core.run()
    assert channel.deltas("a") == channel.deltas("b") == []


def test_each_sequence_is_timed_once_until_its_work_begins_and_once_until_its_first_token(
    slots: SlotWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A second goes by whenever it is looked at.
    seconds = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: float(next(seconds)), perf_counter=time.perf_counter)
    monkeypatch.setattr("sidecar.engine.core.time", clock)
    # Four have a place, the fifth waits for the first of them to end; the long one is read in two steps.
    channel, _ = run(
        slots, [[submit("a"), submit("b"), submit("c"), submit("long", [1] * 300), submit("e")], *[[]] * 6]
    )
    timed = [(len(step.waits_s), len(step.prefills_s)) for step in channel.sent]
    assert timed == [(4, 3), (0, 1), (0, 0), (1, 1), (0, 0), (0, 0)]
    *at_once_s, in_turn_s = [wait_s for step in channel.sent for wait_s in step.waits_s]
    assert at_once_s == [6.0, 5.0, 4.0, 3.0]
    assert in_turn_s > 6.0


def test_a_shutdown_cancels_what_runs(slots: SlotWriter, usage: Callable[[str], RequestUsage | None]) -> None:
    run(slots, [[submit("a", most=99)], [Shutdown()]])
    assert usage("a") == RequestUsage(2, 1, running=False)


def test_each_step_beats(slots: SlotWriter, tmp_path: Path) -> None:
    run(slots, [[submit("a")], [], []])
    with SlotReader(tmp_path / "slots") as reader:
        assert reader.heartbeat().step == 3


LONG = [1] * 200


def test_what_came_from_the_prefix_cache_is_told_with_the_first_token(slots: SlotWriter) -> None:
    runner = FakeRunner()
    channel, _ = run(slots, [[submit("a", LONG, 1)], [submit("b", LONG, 2)], []], runner)
    assert [delta.cached_tokens for delta in channel.deltas("a")] == [0]
    assert [delta.cached_tokens for delta in channel.deltas("b")] == [192, 0]
    assert [(step.queried_tokens, step.cached_tokens, step.prefix_tokens) for step in channel.sent] == [
        (200, 0, 192),
        (200, 192, 192),
        (0, 0, 192),
    ]
    assert [type(copy) for copy in runner.copies] == [Save, Load]


def test_what_gives_no_number_is_not_kept(slots: SlotWriter) -> None:
    runner = FakeRunner()
    channel, _ = run(slots, [[submit("bad", [667, *LONG])], [submit("good", most=1)]], runner)
    assert channel.deltas("bad")[-1].finish is Finish.ERROR
    assert (runner.copies, channel.sent[-1].prefix_tokens) == ([], 0)


def test_a_copy_that_fails_ends_the_engine_and_no_sequence_runs_on_what_is_not_there(slots: SlotWriter) -> None:
    runner = FakeRunner(copy_error=RuntimeError("out of memory"))
    channel = FakeChannel([[submit("a", LONG, 1)], [submit("b", LONG, 1)]])
    told: list[int] = []
    scheduler = Scheduler(SlotPool(4, 1000), 256, prefixes=PrefixCache(8))
    with pytest.raises(EngineBrokenError):
        Core(
            runner, scheduler, slots, channel, lambda _, sequences: told.append(sequences), grammars=FakeGrammars()
        ).run()
    assert (told, channel.deltas("b")) == ([1], [])


def test_a_batch_that_fails_is_not_copied_again(slots: SlotWriter) -> None:
    runner = FakeRunner()
    script: list[list[Command]] = [[submit("a", LONG, 1)], [submit("b", LONG, 1), submit("bad", [666, 1])]]
    channel, _ = run(slots, script, runner)
    assert [type(copy) for copy in runner.copies] == [Save, Load]
    assert channel.deltas("b")[-1].finish is Finish.LENGTH


def finishes(channel: FakeChannel, name: str) -> list[Finish | None]:
    return [delta.finish for delta in channel.deltas(name)]


def test_a_sequence_ends_where_its_grammar_does(slots: SlotWriter) -> None:
    grammars = FakeGrammars()
    channel, _ = run(slots, [[Define("g", b""), submit("a", most=9, grammar="g")], [], []], grammars=grammars)
    assert [delta.token_ids for delta in channel.deltas("a")] == [[10], [11]]
    assert finishes(channel, "a") == [None, Finish.STOP]
    assert [one.taken for one in grammars.given] == [[10, 11]]


def test_others_do_not_wait_for_a_grammar_that_is_being_read(slots: SlotWriter) -> None:
    script: list[list[Command]] = [[Define("g", b""), submit("a", grammar="g"), submit("b", most=2)], [], [], [], []]
    channel, _ = run(slots, script, grammars=FakeGrammars(reads=3))
    assert finishes(channel, "b") == [None, Finish.LENGTH]
    assert finishes(channel, "a") == [None, Finish.STOP]
    assert channel.sent[0].deltas[0].request_id == "b"


def test_a_grammar_that_is_not_known_fails_its_request_alone(slots: SlotWriter) -> None:
    script: list[list[Command]] = [[Define("g", b""), Forget("g"), submit("a", grammar="g"), submit("b", most=1)], []]
    channel, _ = run(slots, script)
    assert finishes(channel, "a") == [Finish.ERROR]
    assert channel.deltas("a")[0].error == "The grammar of this request could not be read."
    assert finishes(channel, "b") == [Finish.LENGTH]


@pytest.mark.parametrize("told", [[Cancel("a", 0)], [Shutdown()]])
def test_a_sequence_that_waits_for_its_grammar_can_be_ended(
    slots: SlotWriter, usage: Callable[[str], RequestUsage | None], told: list[Command]
) -> None:
    script: list[list[Command]] = [[Define("g", b""), submit("a", grammar="g"), submit("c", grammar="g")], told, []]
    channel, _ = run(slots, script, grammars=FakeGrammars(reads=1000))
    assert finishes(channel, "a") == [Finish.CANCELLED]
    assert finishes(channel, "c") == [Finish.CANCELLED]
    assert usage("a") == RequestUsage(2, 0, running=False)


def test_a_deadline_does_not_wait_for_a_grammar(slots: SlotWriter) -> None:
    script: list[list[Command]] = [[Define("g", b""), submit("a", grammar="g", deadline_ms=0)], []]
    channel, _ = run(slots, script, grammars=FakeGrammars(reads=1000))
    assert finishes(channel, "a") == [Finish.DEADLINE]
