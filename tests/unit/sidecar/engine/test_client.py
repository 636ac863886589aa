"""The front's end of a real child process, one that speaks the engine's frames and runs no model."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sidecar.engine import client
from sidecar.engine.client import EngineProcess, EngineProtocolError, EngineUnreachableError
from sidecar.engine.config import EngineConfig
from sidecar.wire.frames import Ready, Sampling, Step, Submit

PROGRAM = (sys.executable, str(Path(__file__).with_name("fake_engine.py")))


def config(behaviour: str) -> EngineConfig:
    return EngineConfig(
        model_path=behaviour,
        slots_path="unused",
        precision="fp32",
        device="cpu",
        max_sequences=4,
        step_token_budget=16,
        max_context=None,
        kv_tokens=None,
        threads=None,
    )


def submit(request_id: str, prompt_ids: list[int]) -> Submit:
    return Submit(request_id, 0, prompt_ids, 5, Sampling(), [])


@asynccontextmanager
async def engine(behaviour: str) -> AsyncIterator[EngineProcess]:
    process = await EngineProcess.start(config(behaviour), PROGRAM)
    try:
        yield process
    finally:
        await process.terminate(0)


async def test_commands_go_in_and_reports_come_out() -> None:
    async with engine("echo") as process:
        reports = process.reports()
        assert isinstance(await anext(reports), Ready)
        process.send(submit("a", [1, 2, 3]))
        process.send(submit("b", [4] * 50_000))
        answers = [await anext(reports), await anext(reports)]
        assert all(isinstance(answer, Step) for answer in answers)
        assert [answer.deltas[0].token_ids for answer in answers] == [[1, 2, 3], [4] * 50_000]
        assert await process.terminate(10) == 0
        assert [report async for report in reports] == []


async def test_frames_that_come_byte_by_byte_are_put_together() -> None:
    async with engine("slow") as process:
        assert isinstance(await anext(process.reports()), Ready)


async def test_the_reports_of_a_process_that_ends_end_too_and_its_code_is_told() -> None:
    async with engine("crash") as process:
        reports = [report async for report in process.reports()]
        assert [type(report) for report in reports] == [Ready]
        assert await process.terminate(10) == 70


async def test_bytes_that_are_no_frame_are_an_error() -> None:
    async with engine("garbage") as process:
        with pytest.raises(EngineProtocolError, match="4294967295"):
            await anext(process.reports())


async def test_a_process_that_does_not_leave_is_killed() -> None:
    async with engine("deaf") as process:
        assert isinstance(await anext(process.reports()), Ready)
        assert await process.terminate(0.05) == -9
        with pytest.raises(ProcessLookupError):
            os.kill(process.pid, 0)


async def test_a_process_that_is_gone_takes_no_commands() -> None:
    async with engine("echo") as process:
        await process.terminate(0)
        with pytest.raises(EngineUnreachableError):
            process.send(submit("a", [1]))
        assert [report async for report in process.reports()] == []


async def test_what_a_deaf_process_does_not_take_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MAX_UNSENT_BYTES", 100_000)
    async with engine("deaf") as process:
        assert not process.congested
        process.send(submit("a", [70_000] * 200_000))
        assert process.congested


async def test_a_cancelled_goodbye_leaves_no_process_behind() -> None:
    async with engine("deaf") as process:
        assert isinstance(await anext(process.reports()), Ready)
        leaving = asyncio.create_task(process.terminate(60))
        await asyncio.sleep(0)
        leaving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await leaving
        assert await process.terminate(0) == -9


async def test_a_program_that_is_not_there_is_an_os_error() -> None:
    with pytest.raises(OSError, match="no-such-program"):
        await EngineProcess.start(config("echo"), ("/no-such-program",))


async def test_the_child_has_no_other_way_to_the_front_s_files() -> None:
    async with engine("deaf") as process:
        assert isinstance(await anext(process.reports()), Ready)
        files = Path(f"/proc/{process.pid}/fd")
        held = await asyncio.to_thread(lambda: [str(file.readlink()) for file in files.iterdir()])
        assert sum(name.startswith("socket:") for name in held) == 1
