"""A running supervisor for each test, stopped after it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fakes.engine_link import PATIENCE_S, Bench


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path / "x.slots")
    task = asyncio.create_task(bench.supervisor.run())
    yield bench
    await bench.supervisor.stop()
    async with asyncio.timeout(PATIENCE_S):
        await task
    assert bench.supervisor.engine_pid == 0
    assert all(link.graces for link in bench.links)
