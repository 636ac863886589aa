import asyncio

import pytest

from proxy.patience import Stretch, done_within, unless_late


async def test_what_is_done_in_time_is_done() -> None:
    loop = asyncio.get_running_loop()
    waited: asyncio.Future[int] = loop.create_future()
    loop.call_soon(waited.set_result, 1)
    assert await done_within(waited, 10.0)
    assert await done_within(waited, 0.0)


async def test_what_is_late_is_left_to_itself() -> None:
    waited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    assert not await done_within(waited, 0.0)
    assert not waited.done()


async def test_what_fails_is_done_and_its_error_is_the_caller_s() -> None:
    loop = asyncio.get_running_loop()
    waited: asyncio.Future[int] = loop.create_future()
    loop.call_soon(waited.set_exception, ValueError("no"))
    assert await done_within(waited, 10.0)
    assert isinstance(waited.exception(), ValueError)


async def test_who_waits_may_be_cancelled_and_what_is_waited_for_goes_on() -> None:
    waited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(done_within(waited, 10.0))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not waited.done()
    waited.set_result(1)


async def test_work_that_is_late_is_told_once() -> None:
    told: list[None] = []
    end = asyncio.Event()

    def late() -> None:
        told.append(None)
        end.set()

    async def work() -> None:
        await end.wait()

    await unless_late(work(), 0.0, late)
    assert told == [None]


async def test_work_in_time_is_told_nothing() -> None:
    async def work() -> None:
        await asyncio.sleep(0)

    await unless_late(work(), 10.0, pytest.fail)


async def test_a_stretch_that_is_cut_ends_with_a_time_out() -> None:
    stretch = Stretch()
    loop = asyncio.get_running_loop()
    loop.call_soon(stretch.cut)
    loop.call_soon(stretch.cut)
    with pytest.raises(TimeoutError):
        async with stretch:
            await loop.create_future()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)


async def test_a_stretch_that_is_over_cannot_be_cut() -> None:
    stretch = Stretch()
    async with stretch:
        stretch.cut()
    await asyncio.sleep(0)
    assert not stretch.was_cut


async def test_who_cancels_the_task_comes_first() -> None:
    stretch = Stretch()

    async def work() -> None:
        async with stretch:
            await asyncio.get_running_loop().create_future()

    working = asyncio.create_task(work())
    await asyncio.sleep(0)
    stretch.cut()
    await asyncio.sleep(0)
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working


async def test_an_error_in_a_stretch_that_is_cut_is_not_hidden() -> None:
    stretch = Stretch()

    async def work() -> None:
        async with stretch:
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                raise ValueError("while it ended") from None

    working = asyncio.create_task(work())
    await asyncio.sleep(0)
    stretch.cut()
    with pytest.raises(ValueError, match="while"):
        await working
