"""Our sidecar for a benchmark: started with given settings and the real model, asked, and looked at from outside."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

BIN = Path(sys.executable).parent
MODEL = "smollm2-135m-instruct"
START_TIMEOUT_S = 120.0
END_TIMEOUT_S = 40.0
ASK_TIMEOUT_S = 600.0
# Ids of ordinary tokens of the model.
FIRST_ID, LAST_ID = 1000, 40_000


@dataclass
class Timed:
    """One request: when it was sent, when each piece of its answer came (`time.perf_counter`), and how it ended."""

    sent_s: float
    pieces_s: list[float] = field(default_factory=list)
    ended_s: float = 0.0
    tokens: int = 0
    error: str = ""

    @property
    def first_s(self) -> float:
        """Seconds to the first piece."""
        return self.pieces_s[0] - self.sent_s

    @property
    def gaps(self) -> list[tuple[float, float]]:
        """Each piece but the first: when it came, and how long after the one before."""
        return [(now, now - before) for before, now in zip(self.pieces_s, self.pieces_s[1:], strict=False)]


@dataclass(frozen=True)
class Ours:
    """A started sidecar."""

    process: subprocess.Popen[bytes]
    folder: Path

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def session(self) -> aiohttp.ClientSession:
        unix = aiohttp.UnixConnector(str(self.folder / "s.sock"), limit=0)
        return aiohttp.ClientSession(
            "http://sidecar", connector=unix, timeout=aiohttp.ClientTimeout(total=ASK_TIMEOUT_S)
        )

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = (json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{"))
        return [line for line in lines if line["event"] == name]


@contextmanager
def running(folder: Path, **settings: Any) -> Iterator[Ours]:
    """A sidecar with the default model and these settings, from its readiness to its end."""
    config = {"model": {"id": MODEL, "source": MODEL}, "socket": str(folder / "s.sock"), **settings}
    # JSON is YAML, and has no anchors.
    (folder / "sidecar.yaml").write_text(json.dumps(config))
    with (folder / "log").open("wb") as out:
        process = subprocess.Popen(
            [BIN / "tollhouse-sidecar", "serve", "--config", folder / "sidecar.yaml"],
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    ours = Ours(process, folder)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not ours.events("ready"):
            if time.monotonic() > deadline or process.poll() is not None:
                raise SystemExit(f"the sidecar did not start:\n{ours.log.read_text()[-3000:]}")
            time.sleep(0.1)
        yield ours
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


async def ask(
    session: aiohttp.ClientSession,
    prompt: list[int],
    max_tokens: int,
    headers: dict[str, str] | None = None,
    timed: Timed | None = None,
    **more: Any,
) -> Timed:
    """One streamed completion. `timed` is filled on the way, so that others may look at it meanwhile."""
    timed = timed or Timed(0.0)
    body = {
        "model": MODEL,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        **more,
    }
    timed.sent_s = time.perf_counter()
    async with session.post("/v1/completions", json=body, headers=headers) as response:
        if response.status != 200:
            timed.error = f"{response.status}: {(await response.text())[:200]}"
            return timed
        async for event in _events(response):
            if "error" in event:
                timed.error = event["error"]["message"]
            elif event["usage"]:
                timed.tokens = event["usage"]["completion_tokens"]
            elif event["choices"]:
                timed.pieces_s.append(time.perf_counter())
    timed.ended_s = time.perf_counter()
    return timed


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    try:
        async for line in response.content:
            if line.startswith(b"data: {"):
                yield json.loads(line.removeprefix(b"data: "))
    except aiohttp.ClientPayloadError:
        # After an error event the connection breaks.
        return


async def state(session: aiohttp.ClientSession) -> dict[str, Any]:
    async with session.get("/internal/state") as response:
        return dict(await response.json())


async def metrics(session: aiohttp.ClientSession) -> dict[str, float]:
    """The metrics page, by name with labels."""
    async with session.get("/metrics") as response:
        lines = (await response.text()).splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


async def idle(session: aiohttp.ClientSession) -> None:
    """Wait until nothing runs or waits."""
    while (now := await state(session))["running"] or now["waiting"]:  # noqa: ASYNC110  # it is another process
        await asyncio.sleep(0.05)


async def until(what: Callable[[], bool]) -> None:
    """Wait for what requests under way bring about. Raises TimeoutError."""
    async with asyncio.timeout(ASK_TIMEOUT_S):
        while not what():  # noqa: ASYNC110  # each request would have to know what is waited for
            await asyncio.sleep(0.02)


def rss_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def quantile(values: list[float], share: float) -> float:
    """The smallest value that at least `share` of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]
