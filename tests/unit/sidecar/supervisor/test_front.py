"""What the front asks of its engine: requests in, deltas out, refusals, and what a request has used."""

import asyncio
import weakref
from pathlib import Path

import pytest

from sidecar.wire.errors import ApiError
from sidecar.wire.frames import Cancel, Delta, Finish, Logprobs, Ready
from sidecar.wire.internal import RequestState
from sidecar.wire.slots import DEFAULT_CAPACITY, SlotWriter
from tests.fakes.engine_link import READY, Bench, refused, step, submit, until


async def test_it_is_not_ready_until_the_engine_says_so(bench: Bench) -> None:
    link = await bench.started()
    assert (bench.supervisor.ready, bench.supervisor.reason, bench.supervisor.info) == (False, "loading", None)
    assert bench.supervisor.heartbeat_age_s is None
    error = refused(bench)
    assert (error.status, error.code) == (503, "model_loading")
    assert error.headers()["retry-after"] == "10"
    seen: list[Ready] = []
    bench.supervisor.on_ready.append(seen.append)
    link.say(READY)
    await until(lambda: bench.supervisor.ready)
    assert (bench.supervisor.reason, bench.supervisor.info, seen) == ("", READY, [READY])
    assert bench.supervisor.engine_pid == link.pid
    assert bench.supervisor.heartbeat_age_s == 0


async def test_a_request_s_deltas_come_merged_over_its_sequences_until_each_has_ended(bench: Bench) -> None:
    link = await bench.made_ready()
    steps: list[int] = []
    bench.supervisor.on_step.append(lambda step: steps.append(step.number))
    submits = [submit("r", 0), submit("r", 1)]
    async with bench.supervisor.open("r", submits) as sequences:
        assert link.sent == submits
        assert (bench.supervisor.running, bench.supervisor.waiting) == (0, 2)
        link.say(step(Delta("r", 0, [5], 1), Delta("other", 0, [9], 1), number=1, running=1))
        assert await anext(sequences) == Delta("r", 0, [5], 1)
        assert (bench.supervisor.running, bench.supervisor.waiting) == (1, 1)
        link.say(step(Delta("r", 0, [6], 2, Finish.STOP), Delta("r", 1, [7], 1), number=2, running=1))
        link.say(step(Delta("r", 1, [8], 2, Finish.LENGTH), number=3))
        rest = [delta async for delta in sequences]
        assert rest == [Delta("r", 0, [6], 2, Finish.STOP), Delta("r", 1, [7, 8], 2, Finish.LENGTH)]
    assert steps == [1, 2, 3]
    assert link.sent == submits  # nothing was left to cancel
    assert bench.supervisor.usage("r") == RequestState(True, False, 3, 4)
    await bench.supervisor.idle()


async def test_a_stop_string_found_after_the_end_still_says_what_counts(bench: Bench) -> None:
    link = await bench.made_ready()
    async with bench.supervisor.open("r", [submit("r")]) as sequences:
        link.say(step(Delta("r", 0, [5, 6, 7], 3, Finish.LENGTH), number=1))
        await anext(sequences)
        sequences.cancel(0, generated=2)
        sequences.cancel(0)
    assert link.sent[1:] == [Cancel("r", 0, 2)]
    assert bench.supervisor.usage("r").completion_tokens == 2


async def test_what_nobody_fetches_is_merged(bench: Bench) -> None:
    link = await bench.made_ready()
    sequences = bench.supervisor.open("r", [submit("r")])
    for number in range(1, 50):
        link.say(step(Delta("r", 0, [number], number), number=number, running=1))
    await until(lambda: bench.supervisor.usage("r").completion_tokens == 49)
    assert await anext(sequences) == Delta("r", 0, list(range(1, 50)), 49)


class Watcher:
    """Mutable: `seen`."""

    def __init__(self) -> None:
        self.seen: list[Delta] = []

    def watch(self, delta: Delta) -> None:
        self.seen.append(delta)


async def test_who_watches_is_told_of_each_delta_while_none_is_fetched(bench: Bench) -> None:
    link = await bench.made_ready()
    watcher, sequences = Watcher(), bench.supervisor.open("r", [submit("r")])
    sequences.watch(watcher.watch)
    deltas = [Delta("r", 0, [5], 1), Delta("r", 0, [6, 7], 3), Delta("r", 0, [8], 4, Finish.STOP)]
    for number, delta in enumerate(deltas, start=1):
        link.say(step(delta, Delta("other", 0, [9], 1), number=number))
    await until(lambda: not bench.supervisor.usage("r").running)
    assert watcher.seen == deltas
    assert await anext(sequences) == Delta("r", 0, [5, 6, 7, 8], 4, Finish.STOP)


@pytest.mark.parametrize("lost", [False, True])
async def test_who_watched_is_forgotten_before_the_request_is(bench: Bench, *, lost: bool) -> None:
    link = await bench.made_ready()
    watcher = Watcher()
    bench.supervisor.open("r", [submit("r")]).watch(watcher.watch)
    kept = weakref.ref(watcher)
    del watcher
    assert kept() is not None
    if lost:
        link.die(1)
    else:
        link.say(step(Delta("r", 0, [5], 1, Finish.STOP)))
    await until(lambda: not bench.supervisor.usage("r").running)
    assert kept() is None


async def test_nothing_of_a_delta_is_lost_when_it_is_merged(bench: Bench) -> None:
    link = await bench.made_ready()
    sequences = bench.supervisor.open("r", [submit("r")])
    one, two, three = Logprobs(-1.0, [5], [-0.5]), Logprobs(-2.0), Logprobs(-3.0)
    link.say(step(Delta("r", 0, [], 0, prompt_logprobs=[one]), running=1))
    link.say(step(Delta("r", 0, [5], 1, logprobs=[two], prompt_logprobs=[three], cached_tokens=64), running=1))
    link.say(step(Delta("r", 0, [6], 2, Finish.STOP, logprobs=[three], embedding=b"1234")))
    await until(lambda: not bench.supervisor.usage("r").running)
    assert await anext(sequences) == Delta(
        "r",
        0,
        [5, 6],
        2,
        Finish.STOP,
        logprobs=[two, three],
        prompt_logprobs=[one, three],
        cached_tokens=64,
        embedding=b"1234",
    )


async def test_who_leaves_cancels_what_still_runs(bench: Bench) -> None:
    link = await bench.made_ready()
    async with bench.supervisor.open("r", [submit("r", 0), submit("r", 1)]) as sequences:
        link.say(step(Delta("r", 0, [5], 1, Finish.STOP), running=1))
        await anext(sequences)
    assert link.sent[2:] == [Cancel("r", 1)]
    assert bench.supervisor.usage("r").running
    assert bench.supervisor.running == 1
    link.say(step(Delta("r", 1, [], 0, Finish.CANCELLED)))
    await sequences.closed()
    assert bench.supervisor.usage("r") == RequestState(True, False, 3, 1)


async def test_a_stop_string_ends_one_sequence_and_says_what_counts(bench: Bench) -> None:
    link = await bench.made_ready()
    sequences = bench.supervisor.open("r", [submit("r", 0), submit("r", 1)])
    link.say(step(Delta("r", 0, [5, 6, 7], 3), running=2))
    await anext(sequences)
    sequences.cancel(0, generated=2)
    assert link.sent[2:] == [Cancel("r", 0, 2)]
    link.say(step(Delta("r", 0, [], 2, Finish.CANCELLED), running=1))
    await anext(sequences)
    sequences.cancel(0)  # it has ended
    assert len(link.sent) == 3
    assert bench.supervisor.usage("r").completion_tokens == 2


async def test_an_id_that_runs_is_not_taken_twice(bench: Bench) -> None:
    link = await bench.made_ready()
    bench.supervisor.open("r", [submit("r")])
    assert refused(bench).status == 409
    link.say(step(Delta("r", 0, [5], 1, Finish.STOP)))
    await bench.supervisor.idle()
    bench.supervisor.open("r", [submit("r")])
    assert bench.supervisor.usage("r") == RequestState(True, True, 3, 0)


async def test_a_full_queue_says_when_to_come_back(bench: Bench) -> None:
    link = await bench.made_ready()
    for number in range(4):
        bench.supervisor.open(f"r{number}", [submit(f"r{number}")])
    error = refused(bench)
    assert (error.status, error.code, error.should_retry) == (503, "server_is_overloaded", True)
    assert error.headers()["retry-after"] == "1"  # nothing has ended yet: no pace is known
    await bench.jump(1)
    link.say(step(Delta("r0", 0, [5], 1, Finish.STOP), running=2))
    await until(lambda: bench.supervisor.waiting == 1)
    await bench.jump(20)
    bench.supervisor.open("r4", [submit("r4")])
    assert refused(bench).headers()["retry-after"] == "20"  # one ended in the last 20 seconds


async def test_a_request_of_several_sequences_is_taken_whole(bench: Bench) -> None:
    await bench.made_ready()
    bench.supervisor.open("r", [submit("r", index) for index in range(9)])
    assert bench.supervisor.waiting == 9
    assert refused(bench, "s").code == "server_is_overloaded"


async def test_an_engine_that_takes_no_commands_gets_no_more(bench: Bench) -> None:
    link = await bench.made_ready()
    link.congested = True
    assert refused(bench).code == "server_is_overloaded"
    assert link.sent == []


async def test_an_engine_that_hung_up_a_moment_ago_takes_nothing(bench: Bench) -> None:
    link = await bench.made_ready()
    link.gone = True
    assert refused(bench).code == "model_loading"
    assert bench.supervisor.usage("r") == RequestState(False, False, 0, 0)


async def test_no_more_sequences_run_than_there_are_usage_slots(bench: Bench) -> None:
    await bench.made_ready()
    with pytest.raises(ApiError) as never:
        bench.supervisor.open("r", [submit("r", at) for at in range(DEFAULT_CAPACITY + 1)])
    assert never.value.status == 400
    bench.supervisor.open("r", [submit("r", 0)])
    with pytest.raises(ApiError) as later:
        bench.supervisor.open("s", [submit("s", at) for at in range(DEFAULT_CAPACITY)])
    assert (later.value.status, later.value.code) == (503, "server_is_overloaded")
    bench.supervisor.open("s", [submit("s", at) for at in range(DEFAULT_CAPACITY - 1)])
    assert len(bench.link.sent) == DEFAULT_CAPACITY


async def test_draining_takes_nothing_new_and_lets_the_rest_end(bench: Bench) -> None:
    link = await bench.made_ready()
    sequences = bench.supervisor.open("r", [submit("r")])
    bench.supervisor.drain()
    assert (bench.supervisor.ready, bench.supervisor.reason) == (False, "draining")
    assert refused(bench, "s").code == "shutting_down"
    idle = asyncio.create_task(bench.supervisor.idle())
    await bench.jump(0)
    assert not idle.done()
    link.say(step(Delta("r", 0, [5], 1, Finish.STOP)))
    assert [delta.finish async for delta in sequences] == [Finish.STOP]
    await idle


async def test_what_a_lost_request_used_is_in_the_slots(tmp_path: Path) -> None:
    path = tmp_path / "x.slots"
    writer = await asyncio.to_thread(SlotWriter, path)
    writer.count(writer.claim("earlier", 0, 7), 9)
    bench = Bench(path)
    task = asyncio.create_task(bench.supervisor.run())
    await bench.started()
    # Running by the file, but by an engine that is no more.
    assert bench.supervisor.usage("earlier") == RequestState(True, False, 7, 9)
    assert bench.supervisor.usage("never") == RequestState(False, False, 0, 0)
    link = await bench.made_ready()
    bench.supervisor.open("r", [submit("r")])
    place = writer.claim("r", 0, 3)
    link.say(step(Delta("r", 0, [5], 1), running=1))
    await until(lambda: bench.supervisor.running == 1)
    writer.count(place, 2)  # a step whose frame never came
    assert bench.supervisor.usage("r") == RequestState(True, True, 3, 1)
    bench.supervisor.open("unread", [submit("unread")])
    await bench.crash()
    assert bench.supervisor.usage("r") == RequestState(True, False, 3, 2)
    # The engine died before it took this one up: not even its prompt was read.
    assert bench.supervisor.usage("unread") == RequestState(False, False, 0, 0)
    await bench.supervisor.stop()
    await task
    writer.close()


async def test_cancelling_a_request_waits_until_the_engine_has_let_go(bench: Bench) -> None:
    link = await bench.made_ready()
    bench.supervisor.open("r", [submit("r", 0), submit("r", 1)])
    cancelling = asyncio.create_task(bench.supervisor.cancel_request("r"))
    await until(lambda: len(link.sent) == 4)
    assert link.sent[2:] == [Cancel("r", 0), Cancel("r", 1)]
    link.say(step(Delta("r", 0, [5], 1, Finish.CANCELLED), running=1))
    await bench.jump(0)
    assert not cancelling.done()
    link.say(step(Delta("r", 1, [6], 1, Finish.STOP)))
    assert await cancelling == RequestState(True, False, 3, 2)
    assert await bench.supervisor.cancel_request("r") == RequestState(True, False, 3, 2)
    assert await bench.supervisor.cancel_request("never") == RequestState(False, False, 0, 0)


async def test_a_cancelled_request_of_a_dead_engine_is_over(bench: Bench) -> None:
    await bench.made_ready()
    bench.supervisor.open("r", [submit("r")])
    cancelling = asyncio.create_task(bench.supervisor.cancel_request("r"))
    await bench.jump(0)
    await bench.crash()
    assert await cancelling == RequestState(True, False, 3, 0)
