"""A loop whose time jumps: what waits in it comes in order, at its moment, and at once."""

import asyncio
import datetime as dt

import pytest

from proxy.simulation.time import JumpingClock, JumpingLoop, NothingLeftError

START = dt.datetime(2026, 11, 30, 23, 59, tzinfo=dt.UTC)


def test_a_day_passes_in_no_time_and_in_order() -> None:
    came: list[tuple[str, float, dt.datetime]] = []

    async def day(loop: JumpingLoop) -> None:
        clock = JumpingClock(loop, START)

        async def one(name: str, at_s: float) -> None:
            await loop.until(at_s)
            came.append((name, clock.monotonic(), clock.now()))

        async with asyncio.TaskGroup() as group:
            for name, at_s in (("late", 200_000.25), ("early", 0.000001), ("over", 0.0)):
                group.create_task(one(name, at_s))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(60.5):
                    await asyncio.Event().wait()
            came.append(("timeout", clock.monotonic(), clock.now()))

    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, JumpingLoop)
        runner.run(day(loop))
    assert [(name, at_s) for name, at_s, _ in came] == [
        ("over", 0.0),
        ("early", 0.000001),
        ("timeout", pytest.approx(60.5)),
        ("late", 200_000.25),
    ]
    assert came[-1][2] == START + dt.timedelta(seconds=200_000.25)


def test_who_waits_for_nothing_is_told() -> None:
    async def wait() -> None:
        await asyncio.Event().wait()

    loop = JumpingLoop()
    task = loop.create_task(wait())
    with pytest.raises(NothingLeftError):
        loop.run_until_complete(task)
    task.cancel()
    loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
    loop.close()
