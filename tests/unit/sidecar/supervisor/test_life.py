"""The engine's life: ready, lost, restarted, stalled, stopped."""

import asyncio
import time
from pathlib import Path

import pytest

from sidecar.engine.client import EngineProtocolError
from sidecar.engine.config import EngineConfig
from sidecar.supervisor import EngineLostError
from sidecar.wire.frames import Delta, Failed
from sidecar.wire.internal import RequestState
from sidecar.wire.slots import SlotWriter
from tests.fakes.engine_link import PATIENCE_S, Bench, FakeLink, refused, step, submit, until


async def test_a_dead_engine_loses_its_requests_and_comes_back(bench: Bench) -> None:
    link = await bench.made_ready()
    sequences = bench.supervisor.open("r", [submit("r")])
    closed = asyncio.create_task(sequences.closed())
    link.say(step(Delta("r", 0, [5], 1), running=1))
    await until(lambda: bench.supervisor.running == 1)
    await bench.crash()
    await closed
    assert (bench.supervisor.ready, bench.supervisor.reason) == (False, "restarting")
    assert bench.supervisor.last_step is None
    assert await anext(sequences) == Delta("r", 0, [5], 1)
    with pytest.raises(EngineLostError):
        await anext(sequences)
    sequences.cancel()  # nobody is there to be told
    assert bench.supervisor.usage("r") == RequestState(True, False, 3, 1)
    assert refused(bench).code == "model_loading"
    await bench.pass_time(1)
    await bench.made_ready(2)
    assert bench.supervisor.restarts == 1
    ended = [line for line in bench.events() if line["event"] == "engine_ended"]
    assert [(line["exit_code"], line["requests"], line["level"]) for line in ended] == [(70, 1, "error")]


async def test_a_crashing_engine_is_started_ever_more_slowly_until_it_holds(bench: Bench) -> None:
    await bench.started()
    for count, delay_s in enumerate([1, 2, 4, 8, 16, 30, 30], start=1):
        await bench.crash()
        assert bench.supervisor.reason == "failed"
        await bench.pass_time(delay_s - 0.5)
        assert len(bench.links) == count
        await bench.pass_time(0.5)
        await bench.started(count + 1)
        assert bench.supervisor.reason == "loading"
    link = await bench.made_ready(8)
    await bench.pass_time(61)
    link.die(1)
    await until(lambda: bench.supervisor.engine_pid == 0)
    await bench.pass_time(1)
    await bench.started(9)
    assert bench.supervisor.reason == "restarting"
    assert bench.supervisor.restarts == 8


async def test_a_program_that_cannot_be_started_is_tried_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "x.slots")
    bench.spawn_errors.append(OSError("no memory"))
    task = asyncio.create_task(bench.supervisor.run())
    await until(lambda: bench.supervisor.reason == "failed")
    await bench.pass_time(1)
    await bench.started()
    await bench.supervisor.stop()
    await task


async def test_an_engine_with_work_that_takes_no_step_is_ended(bench: Bench) -> None:
    link = await bench.made_ready()
    sequences = bench.supervisor.open("r", [submit("r")])
    await bench.pass_time(20)
    link.say(step(Delta("r", 0, [5], 1), running=1))
    await bench.pass_time(29)
    assert bench.supervisor.ready
    assert 28 <= (bench.supervisor.heartbeat_age_s or 0) <= 30
    await bench.pass_time(3)
    assert not bench.supervisor.ready
    assert link.graces[0] == 0.0
    stalled = [line for line in bench.events() if line["event"] == "engine_stalled"]
    assert [line["reason"] for line in stalled] == ["stalled"]
    assert (await anext(sequences)).token_ids == [5]
    with pytest.raises(EngineLostError):
        await anext(sequences)
    await bench.pass_time(1)
    await bench.made_ready(2)


async def test_a_step_in_the_slot_file_is_a_sign_of_life(tmp_path: Path) -> None:
    path = tmp_path / "x.slots"
    bench = Bench(path)
    task = asyncio.create_task(bench.supervisor.run())
    await bench.started()
    writer = await asyncio.to_thread(SlotWriter, path)
    await bench.made_ready()
    bench.supervisor.open("r", [submit("r")])
    bench.now_s = time.monotonic() - 25  # so that the file's clock, the machine's, is 25 seconds ahead
    writer.beat(1)
    await bench.pass_time(50)
    assert bench.supervisor.ready
    await bench.pass_time(10)
    assert not bench.supervisor.ready
    await bench.supervisor.stop()
    await task
    writer.close()


async def test_an_idle_engine_need_not_step(bench: Bench) -> None:
    link = await bench.made_ready()
    await bench.pass_time(300)
    assert bench.supervisor.ready
    # Nor is it stalled the moment it has work.
    bench.supervisor.open("r", [submit("r")])
    await bench.pass_time(29)
    assert bench.supervisor.ready
    assert link.graces == []


async def test_time_in_which_we_were_stopped_ourselves_is_not_held_against_the_engine(bench: Bench) -> None:
    await bench.made_ready()
    bench.supervisor.open("r", [submit("r")])
    await bench.pass_time(2)
    await bench.jump(600)
    await bench.pass_time(28)
    assert bench.supervisor.ready
    await bench.pass_time(5)
    assert not bench.supervisor.ready


async def test_an_engine_that_loads_for_ever_is_ended(bench: Bench) -> None:
    link = await bench.started()
    await bench.pass_time(99)
    assert link.graces == []
    await bench.pass_time(3)
    assert link.graces[0] == 0.0
    assert [line["reason"] for line in bench.events() if line["event"] == "engine_stalled"] == ["loads too long"]


async def test_an_engine_that_speaks_nonsense_is_ended_at_once(bench: Bench) -> None:
    link = await bench.made_ready()
    link.say(EngineProtocolError("frame of 9 bytes"))
    await until(lambda: bench.supervisor.engine_pid == 0)
    assert link.graces == [0.0]


async def test_what_an_engine_says_before_it_fails_is_logged(bench: Bench) -> None:
    link = await bench.started()
    link.say(Failed("the weights do not fit"))
    link.die(1)
    await until(lambda: bench.supervisor.engine_pid == 0)
    assert [line["message"] for line in bench.events() if line["event"] == "engine_failed"] == [
        "the weights do not fit"
    ]


async def test_the_load_time_of_the_last_start_tells_how_long_to_wait(bench: Bench) -> None:
    await bench.started()
    await bench.pass_time(20)
    await bench.made_ready()
    await bench.crash()
    await bench.pass_time(1)
    await bench.started(2)
    await bench.pass_time(5)
    assert refused(bench).headers()["retry-after"] == "15"
    await bench.pass_time(50)
    assert refused(bench).headers()["retry-after"] == "1"


@pytest.mark.parametrize("seconds", [0.0, 0.5])
async def test_stopping_ends_the_engine_or_the_wait_for_the_next(tmp_path: Path, seconds: float) -> None:
    bench = Bench(tmp_path / "x.slots")
    task = asyncio.create_task(bench.supervisor.run())
    link = await bench.started()
    if seconds:
        await bench.crash()
        await bench.pass_time(seconds)
    await bench.supervisor.stop()
    async with asyncio.timeout(PATIENCE_S):
        await task
    assert len(bench.links) == 1
    assert link.graces[0] == 5.0


async def test_a_cancelled_run_ends_the_engine_at_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "x.slots")
    task = asyncio.create_task(bench.supervisor.run())
    link = await bench.made_ready()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert link.graces == [0.0]


async def test_stopping_while_the_engine_is_being_started_ends_it(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "x.slots")
    may_go_on = asyncio.Event()
    started = asyncio.Event()
    spawn = bench.spawn

    async def slowly(config: EngineConfig) -> FakeLink:
        started.set()
        await may_go_on.wait()
        return await spawn(config)

    bench.supervisor._life._spawn = slowly
    task = asyncio.create_task(bench.supervisor.run())
    await started.wait()
    await bench.supervisor.stop()
    may_go_on.set()
    async with asyncio.timeout(PATIENCE_S):
        await task
    assert bench.link.graces == [0.0]


async def test_an_engine_lives_while_it_serves_and_while_it_may_still_come_back(bench: Bench) -> None:
    assert bench.supervisor.lives  # it loads, and may for 100 s
    await bench.made_ready()
    await bench.pass_time(200)
    assert bench.supervisor.lives
    await bench.crash()
    assert bench.supervisor.lives
    for count in range(2, 9):
        await bench.pass_time(30)
        await bench.started(count)
        await bench.crash()
        # Ever new starts that come to nothing are no life.
        assert bench.supervisor.lives == (30 * (count - 1) <= 100)
    await bench.pass_time(30)
    await bench.made_ready(9)
    assert bench.supervisor.lives


async def test_an_engine_that_has_work_and_takes_no_step_does_not_live(bench: Bench) -> None:
    await bench.made_ready()
    bench.supervisor.open("r", [submit("r")])
    assert bench.supervisor.lives
    # Nobody watches: the clock goes on, and no sleeper wakes.
    bench.now_s += 31
    assert not bench.supervisor.lives
