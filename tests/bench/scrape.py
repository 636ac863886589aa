"""What a scrape costs: the metrics page of a Tollhouse that fifty keys use, and what streams feel of it.

    python tests/bench/scrape.py

Fifty keys ask for whole answers and streams on several endpoints; then the page is asked for again and again, first
alone, then while paced streams run. Printed are the page's lines, the milliseconds of a scrape, and the longest gap
between two chunks of a stream with and without scrapes beside it.
"""

import argparse
import asyncio
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Final

import aiohttp
import gates
from instant import INSTANT, PACED, WORD

KEYS: Final = 50
SCRAPES: Final = 100
STREAMS: Final = 20
CHUNKS: Final = 150
PAUSE_S: Final = 0.02
TEXT: Final = "text/plain"
OPENMETRICS: Final = "application/openmetrics-text;version=1.0.0"
TARGET_MS: Final = 10.0


async def ask(session: aiohttp.ClientSession, key: str, path: str, model: str, **told: object) -> list[float]:
    """When each chunk of an answer came, in seconds."""
    body: dict[str, object] = {"model": model, **told}
    body |= {"prompt": "x"} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "x"}]}
    async with session.post(path, json=body, headers={"authorization": f"Bearer {key}"}) as response:
        return [time.perf_counter() async for line in response.content if WORD in line]


async def use(session: aiohttp.ClientSession, keys: list[str]) -> None:
    for key in keys:
        for stream in (True, False):
            await ask(session, key, "/v1/chat/completions", INSTANT, stream=stream, max_tokens=4)
        async with session.get("/v1/models", headers={"authorization": f"Bearer {key}"}):
            pass
        async with session.get(f"/{key[-4:]}"):
            pass


async def scrape(admin: aiohttp.ClientSession, times: int, accept: str) -> tuple[list[float], int]:
    """The milliseconds of each scrape, and the page's lines."""
    took_ms: list[float] = []
    lines = 0
    for _ in range(times):
        begun_s = time.perf_counter()
        async with admin.get("/metrics", headers={"accept": accept}) as response:
            page = await response.read()
        took_ms.append((time.perf_counter() - begun_s) * 1000)
        lines = len(page.splitlines())
        await asyncio.sleep(PAUSE_S)
    return took_ms, lines


async def longest_gap_ms(session: aiohttp.ClientSession, key: str) -> float:
    """Of some paced streams at once, the longest time between two chunks of one."""
    asks = (ask(session, key, "/v1/chat/completions", PACED, stream=True, max_tokens=CHUNKS) for _ in range(STREAMS))
    came = await asyncio.gather(*asks)
    return max((after - before) * 1000 for chunks in came for before, after in itertools.pairwise(chunks))


async def measure(gate: gates.Gate, admin_port: int, keys: list[str]) -> None:
    unlimited = aiohttp.TCPConnector(limit=0)
    async with (
        aiohttp.ClientSession(f"http://127.0.0.1:{gate.port}", connector=unlimited) as session,
        aiohttp.ClientSession(f"http://127.0.0.1:{admin_port}") as admin,
    ):
        await use(session, keys)
        alone_ms, lines = await scrape(admin, SCRAPES, TEXT)
        openmetrics_ms, _ = await scrape(admin, SCRAPES, OPENMETRICS)
        quiet_ms = await longest_gap_ms(session, keys[0])
        (beside_ms, _), scraped_ms = await asyncio.gather(
            scrape(admin, SCRAPES, OPENMETRICS), longest_gap_ms(session, keys[0])
        )
    print(f"{len(keys)} keys, {lines} lines")
    shown = (("alone", alone_ms), ("as OpenMetrics", openmetrics_ms), (f"beside {STREAMS} streams", beside_ms))
    for name, took_ms in shown:
        ordered = sorted(took_ms)
        median_ms, p95_ms = statistics.median(ordered), ordered[int(0.95 * len(ordered))]
        reached = "reached" if median_ms < TARGET_MS else "missed"
        print(f"scrape {name}: median {median_ms:.1f} ms, p95 {p95_ms:.1f} ms, most {ordered[-1]:.1f} ms", end=" ")
        print(f"(less than {TARGET_MS:.0f} ms: {reached})")
    print(f"longest gap of a stream: {quiet_ms:.0f} ms without scrapes, {scraped_ms:.0f} ms with {SCRAPES} of them")


def admin_port_of(log: Path) -> int:
    for line in log.read_text().splitlines():
        if '"event":"ready"' in line:
            return int(json.loads(line)["admin_port"])
    raise SystemExit(f"Tollhouse is not ready:\n{log.read_text()[-2000:]}")


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory(prefix="th-") as made:
        folder = Path(made)
        upstream, process = gates.start_upstream(folder, None)
        try:
            gate = gates.start("tollhouse", upstream, None, folder)
            try:
                gate.wait()
                keys = gates.more_keys(gate.folder, KEYS)
                asyncio.run(measure(gate, admin_port_of(gate.log), keys))
            finally:
                gate.end()
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()
