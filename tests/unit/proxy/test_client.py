"""One client's end: leaving early interrupts what runs under `present`, and nothing else."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from proxy.client import Client, LeftError
from proxy.exchange import Ending
from proxy.settings import Limits, Timeouts
from tests.fakes.proxy import ARRIVAL, FakeClock


def client() -> Client:
    request: Any = SimpleNamespace(protocol=None)
    return Client(request, ARRIVAL, limits=Limits(), timeouts=Timeouts(), clock=FakeClock())


async def wait_under_present(one: Client) -> None:
    async with one.present():
        await asyncio.Event().wait()


async def test_leaving_interrupts_a_stretch_that_waits() -> None:
    one = client()
    task = asyncio.create_task(wait_under_present(one))
    await asyncio.sleep(0)
    one.leave(Ending.CLIENT_GONE)
    with pytest.raises(LeftError) as left:
        await task
    assert left.value.ending is Ending.CLIENT_GONE


async def test_the_first_reason_stands() -> None:
    one = client()
    task = asyncio.create_task(wait_under_present(one))
    await asyncio.sleep(0)
    one.leave(Ending.REVOKED)
    one.leave(Ending.CLIENT_GONE)
    with pytest.raises(LeftError) as left:
        await task
    assert left.value.ending is Ending.REVOKED


async def test_a_stretch_after_leaving_does_not_begin() -> None:
    one = client()
    one.leave(Ending.SHUTTING_DOWN)
    with pytest.raises(LeftError):
        async with one.present():
            raise AssertionError("it began")


async def test_what_runs_outside_of_a_stretch_is_not_interrupted() -> None:
    one = client()
    async with one.present():
        pass
    one.leave(Ending.CLIENT_GONE)
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def test_another_time_out_keeps_its_own_name() -> None:
    one = client()
    with pytest.raises(TimeoutError):
        async with one.present():
            raise TimeoutError
    async with one.present():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await asyncio.Event().wait()


async def test_a_cancellation_from_outside_stays_one() -> None:
    one = client()
    task = asyncio.create_task(wait_under_present(one))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_answer_has_not_begun_at_first() -> None:
    one = client()
    assert not one.answered
    assert one.response.status == 499
