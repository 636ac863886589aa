"""What others feel: of a long prompt, of a shared prefix, of another tenant's queue. Through a sidecar's socket.

    python tests/bench/latency.py                       # all of it; some minutes on 2 cores
    python tests/bench/latency.py --only prefill        # or prefix, tenants, weights
    python tests/bench/latency.py --precision int8

- prefill: while a prompt of 4,000 tokens is read, the time between the tokens of running streams, beside the time of
  the steps that compute its chunks;
- prefix: time to first token of 1,500 tokens of which nine tenths were seen before: never, in the same cache scope, in
  another one;
- tenants: one has 50 requests queued, another one sends 2: how long these wait, and how long they do where the first
  one takes half the engine's places;
- weights: two tenants of weights 3 and 1 with full queues: their shares of the tokens while both have some waiting.
"""

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import aiohttp
from ours import FIRST_ID, LAST_ID, Ours, Timed, ask, idle, metrics, quantile, running, until

MIXED = 'tollhouse_sidecar_step_duration_seconds_{}{{phase="mixed"}}'
STREAMS = 8
LONG_PROMPT, SHORT_PROMPT = 4000, 32
PREFIX_PROMPT, SHARED = 1500, 1350
PLACES = 8
QUEUED, ASKED = 50, 2
WEIGHTS = {"three": 3, "one": 1}


class Prompts:
    """Mutable: the random numbers. No two prompts begin alike."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def ids(self, count: int) -> list[int]:
        return [self._random.randrange(FIRST_ID, LAST_ID) for _ in range(count)]


async def prefill(session: aiohttp.ClientSession, prompts: Prompts, rounds: int) -> None:
    gaps: list[float] = []
    before = await metrics(session)
    waits: list[float] = []
    for _ in range(rounds):
        streams = [Timed(0.0) for _ in range(STREAMS)]
        tasks = [asyncio.create_task(ask(session, prompts.ids(SHORT_PROMPT), 2000, timed=stream)) for stream in streams]
        await until(lambda: all(len(stream.pieces_s) > 3 for stream in streams))  # noqa: B023  # not kept
        long = await ask(session, prompts.ids(LONG_PROMPT), 1)
        waits.append(long.first_s)
        window = (long.sent_s, long.pieces_s[0])
        gaps += [gap for stream in streams for at, gap in stream.gaps if window[0] < at <= window[1]]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await idle(session)
    after = await metrics(session)
    total, steps = (after[MIXED.format(what)] - before[MIXED.format(what)] for what in ("sum", "count"))
    chunk_s = total / steps
    p99 = quantile(gaps, 0.99)
    print(
        f"prefill: {LONG_PROMPT} tokens read in {statistics.median(waits):.2f} s beside {STREAMS} streams;"
        f" chunk step {chunk_s * 1000:.0f} ms (mean of {steps:.0f});"
        f" between tokens p50 {quantile(gaps, 0.5) * 1000:.0f}, p99 {p99 * 1000:.0f}, max {max(gaps) * 1000:.0f} ms"
        f" of {len(gaps)}; p99 / chunk = {p99 / chunk_s:.2f}"
    )


async def prefix(session: aiohttp.ClientSession, prompts: Prompts, rounds: int) -> None:
    found: dict[str, list[float]] = {"never": [], "same scope": [], "another scope": []}
    for _ in range(rounds):
        shared = prompts.ids(SHARED)
        for name, scope in (("never", "a:1"), ("same scope", "a:1"), ("another scope", "a:2")):
            prompt = shared + prompts.ids(PREFIX_PROMPT - SHARED)
            timed = await ask(session, prompt, 1, {"x-tollhouse-cache-scope": scope})
            found[name].append(timed.first_s)
            await idle(session)
    medians = {name: statistics.median(values) for name, values in found.items()}
    shown = ", ".join(f"{name} {value * 1000:.0f} ms" for name, value in medians.items())
    print(
        f"prefix: first token of {PREFIX_PROMPT} tokens, {SHARED} seen before: {shown};"
        f" saved {1 - medians['same scope'] / medians['never']:.0%},"
        f" by another scope's {1 - medians['another scope'] / medians['never']:.0%}"
    )


async def tenants(session: aiohttp.ClientSession, prompts: Prompts, rounds: int) -> None:
    waits: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, others in (("half-idle", PLACES // 2), ("queue", QUEUED)):
            busy = [Timed(0.0) for _ in range(others)]
            tasks = [
                asyncio.create_task(ask(session, prompts.ids(64), 96, _tenant("busy"), timed=timed)) for timed in busy
            ]
            begun = min(others, PLACES)
            await until(lambda: sum(bool(timed.pieces_s) for timed in busy) >= begun)  # noqa: B023  # not kept
            rare = await asyncio.gather(*(ask(session, prompts.ids(64), 32, _tenant("rare")) for _ in range(ASKED)))
            waits.setdefault(f"first, {name}", []).extend(timed.first_s for timed in rare)
            waits.setdefault(f"whole, {name}", []).extend(timed.ended_s - timed.sent_s for timed in rare)
            await asyncio.gather(*tasks)
            waits.setdefault(f"others' first, {name}", []).extend(timed.first_s for timed in busy)
    shown = "; ".join(f"{name} {quantile(values, 0.5):.2f} (max {max(values):.2f})" for name, values in waits.items())
    print(f"tenants: {ASKED} requests beside {QUEUED} in {PLACES} places, median seconds: {shown}")


async def weights(session: aiohttp.ClientSession, prompts: Prompts, rounds: int) -> None:
    shares: list[float] = []
    for _ in range(rounds):
        timed = {name: [Timed(0.0) for _ in range(QUEUED)] for name in WEIGHTS}
        tasks = [
            asyncio.create_task(ask(session, prompts.ids(64), 48, _tenant(name, WEIGHTS[name]), timed=one))
            for at in range(QUEUED)
            for name, all_ in timed.items()
            for one in (all_[at],)
        ]
        # Both have some waiting: who has none leaves all places to the other, from the same step on.
        begun = QUEUED - PLACES
        await until(lambda: any(sum(bool(one.pieces_s) for one in all_) >= begun for all_ in timed.values()))  # noqa: B023  # not kept
        until_s = time.perf_counter()
        # The prompt's tokens count once each, the answer's twice, as the scheduler has it.
        served = {
            name: sum(64 * bool(one.pieces_s) + 2 * sum(at <= until_s for at in one.pieces_s) for one in all_)
            for name, all_ in timed.items()
        }
        shares.append(served["three"] / served["one"])
        await asyncio.gather(*tasks)
    print(f"weights: 3 to 1 gave {statistics.median(shares):.2f} to 1 while both had a queue")


def _tenant(name: str, weight: int = 1) -> dict[str, str]:
    return {"x-tollhouse-tenant": name, "x-tollhouse-weight": str(weight), "x-tollhouse-cache-scope": name}


Part = Callable[[aiohttp.ClientSession, Prompts, int], Coroutine[Any, Any, None]]
# With the settings each needs beside the defaults.
PARTS: dict[str, tuple[Part, dict[str, Any]]] = {
    "prefill": (prefill, {}),
    "prefix": (prefix, {}),
    "tenants": (tenants, {"max_sequences": PLACES}),
    "weights": (weights, {"max_sequences": PLACES, "speculation": 0}),
}


async def run(part: Part, ours: Ours, rounds: int) -> None:
    async with ours.session() as session:
        prompts = Prompts(seed=1)
        await ask(session, prompts.ids(600), 8)
        await part(session, prompts, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, action="append", help="one part; may be given again")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    for name in arguments.only or PARTS:
        part, engine = PARTS[name]
        settings = {"engine": {"precision": arguments.precision, **engine}, "max_queue": 4 * QUEUED}
        with tempfile.TemporaryDirectory() as folder, running(Path(folder), **settings) as ours:
            asyncio.run(run(part, ours, arguments.rounds))


if __name__ == "__main__":
    main()
