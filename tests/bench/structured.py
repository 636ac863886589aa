"""What structured output costs: the time of a token with a grammar beside one without. Through a sidecar's socket.

    python tests/bench/structured.py                     # fp32; about two minutes on 2 cores
    python tests/bench/structured.py --precision int8

Streams of the same length, side by side, 1, 8 and 32 at a time, in turns: free, under a schema with free strings in it,
and under a pattern. Guessing is off, so that the texts do not matter. The median of all tokens' times, and the ratio.
Then what compiling takes: the first schema of all, one that is new, and one that was there before.
"""

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
from ours import FIRST_ID, LAST_ID, Timed, ask, idle, running

TOKENS, PROMPT = 96, 32
BATCHES = (1, 8, 32)
ROUNDS = 6
ITEM = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "count": {"type": "integer"}, "tags": {"enum": ["new", "old"]}},
    "required": ["name", "count", "tags"],
    "additionalProperties": False,
}
FORMS: dict[str, dict[str, Any]] = {
    "free": {"ignore_eos": True},
    # Longer than the answer: none of them ends by itself.
    "schema": {"structured_outputs": {"json": {"type": "array", "items": ITEM, "minItems": 100}}},
    "pattern": {"structured_outputs": {"regex": r"[a-z ,.]{1200,}"}},
}


def prompt(choose: random.Random) -> list[int]:
    return [choose.randrange(FIRST_ID, LAST_ID) for _ in range(PROMPT)]


async def step_times(session: aiohttp.ClientSession, choose: random.Random, batch: int, form: str) -> list[float]:
    """Seconds between pieces, once all streams run."""
    asked = {"temperature": 0, **FORMS[form]}
    streams = [Timed(0.0) for _ in range(batch)]
    await asyncio.gather(*(ask(session, prompt(choose), TOKENS, timed=one, **asked) for one in streams))
    for one in streams:
        if one.error or one.tokens != TOKENS:
            raise SystemExit(f"{form}: {one.tokens} tokens, {one.error}")
    begun = max(one.pieces_s[0] for one in streams)
    await idle(session)
    return [(one.ended_s - begun) / TOKENS for one in streams]


async def compile_s(session: aiohttp.ClientSession, schema: dict[str, Any]) -> float:
    began = time.perf_counter()
    body = {"model": "smollm2-135m-instruct", "prompt": "a", "max_tokens": 1, "structured_outputs": {"json": schema}}
    async with session.post("/v1/completions", json=body) as response:
        if response.status != 200:
            raise SystemExit(await response.text())
    return time.perf_counter() - began


async def bench(session: aiohttp.ClientSession) -> None:
    choose = random.Random(1)
    told = {
        "the first, with the start of the compiler": ITEM,
        "a small one": {"type": "object", "properties": {"a": {"type": "integer"}}},
        "one with lengths": {"type": "object", "properties": {"a": {"type": "string", "maxLength": 200}}},
        "the same again": ITEM,
    }
    for name, schema in told.items():
        print(f"compile: {name}: {await compile_s(session, schema) * 1000:.0f} ms, one token included")
    for batch in BATCHES:
        times: dict[str, list[float]] = {form: [] for form in FORMS}
        for form in FORMS:
            await step_times(session, choose, batch, form)
        for _ in range(ROUNDS):
            for form in FORMS:
                times[form] += await step_times(session, choose, batch, form)
        free = statistics.median(times["free"])
        line = ", ".join(
            f"{form} {statistics.median(found) * 1000:.2f} ms ({statistics.median(found) / free:.3f})"
            for form, found in times.items()
        )
        print(f"batch {batch}: a token takes {line}", flush=True)


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--precision", default="fp32")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        engine = {"precision": arguments.precision, "speculation": 0}
        with running(Path(folder), engine=engine) as ours:
            async with ours.session() as session:
                await bench(session)


if __name__ == "__main__":
    asyncio.run(main())
