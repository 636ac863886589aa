"""An hour's load in ten minutes: does the front ever take a busy engine for a stuck one?

    python tests/bench/soak.py --minutes 10

Short and long prompts, streams and whole answers, clients that leave, and pauses in which nothing is asked, on the real
model. Prints how often the engine was restarted (it must be 0), what went wrong, latencies, and the memory of each
process at the start and at the end. Exits with 1 if there was a restart or an error.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from ours import FIRST_ID, LAST_ID, Ours, ask, idle, quantile, rss_mb, running, state

CLIENTS = 24
# Now and then nobody asks for a while: an idle engine that gets work again is not stuck either.
BUSY_S, PAUSE_S = 50.0, 12.0
SHORT_PROMPTS, LONG_PROMPTS = (8, 30, 120), (600, 2000, 4000)
LONG_SHARE, LEAVING_SHARE = 0.15, 0.2


@dataclass
class Tally:
    """What came of the requests. Mutable: all of it."""

    endings: Counter[str] = field(default_factory=Counter)
    firsts_s: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    tokens: int = 0


async def client(session: aiohttp.ClientSession, tally: Tally, until_s: float, seed: int) -> None:
    """Ask, one request after the other, but not in the pauses, which all clients make together."""
    dice = random.Random(seed)
    while (now_s := time.monotonic()) < until_s:
        if (now_s % (BUSY_S + PAUSE_S)) > BUSY_S:
            await asyncio.sleep(0.2)
            continue
        length = dice.choice(LONG_PROMPTS if dice.random() < LONG_SHARE else SHORT_PROMPTS)
        prompt = [dice.randrange(FIRST_ID, LAST_ID) for _ in range(length)]
        headers = {"x-tollhouse-tenant": dice.choice("abc")}
        leaves_s = dice.random() * 8 if dice.random() < LEAVING_SHARE else None
        try:
            async with asyncio.timeout(leaves_s):
                timed = await ask(session, prompt, dice.choice((4, 32, 128)), headers, seed=dice.randrange(2**32))
        except TimeoutError:
            tally.endings["left"] += 1
            continue
        except aiohttp.ClientError as exc:
            tally.endings[f"error: {exc!r}"] += 1
            await asyncio.sleep(1)
            continue
        tally.endings[f"error: {timed.error}" if timed.error else "whole"] += 1
        if timed.error:
            await asyncio.sleep(1)
            continue
        tally.firsts_s.append(timed.first_s)
        tally.gaps_s += [gap for _, gap in timed.gaps]
        tally.tokens += timed.tokens


async def soak(ours: Ours, minutes: float) -> bool:
    """Whether all was well."""
    tally = Tally()
    async with ours.session() as session:
        before = await state(session)
        rss = {"front": rss_mb(ours.process.pid), "engine": rss_mb(before["engine_pid"])}
        until_s = time.monotonic() + minutes * 60
        async with asyncio.TaskGroup() as tasks:
            for number in range(CLIENTS):
                tasks.create_task(client(session, tally, until_s, number))
        await idle(session)
        after = await state(session)
    restarts = after["restarts"] + len(ours.events("engine_stalled"))
    print(f"{minutes:g} minutes, {CLIENTS} clients, {tally.tokens} tokens: {dict(tally.endings)}")
    print(f"restarts {restarts}; {after['kv_used_tokens']} tokens left in the KV cache")
    for name, values in (("first token", tally.firsts_s), ("between tokens", tally.gaps_s)):
        if values:
            p50, p99 = quantile(values, 0.5), quantile(values, 0.99)
            print(f"{name}: p50 {p50:.3f} s, p99 {p99:.3f} s, max {max(values):.3f} s")
    for name, pid in (("front", ours.process.pid), ("engine", after["engine_pid"])):
        print(f"memory of the {name}: {rss[name]:.0f} MB at the start, {rss_mb(pid):.0f} MB at the end")
    errors = sum(count for ending, count in tally.endings.items() if ending.startswith("error"))
    return not (restarts or errors or after["kv_used_tokens"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--precision", default="fp32")
    arguments = parser.parse_args()
    settings = {"engine": {"precision": arguments.precision}}
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), **settings) as ours:
        well = asyncio.run(soak(ours, arguments.minutes))
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
