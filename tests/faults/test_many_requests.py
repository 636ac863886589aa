"""Random requests, a third of them hostile or left alone: the engine lives, each ends once, and nothing stays behind.

TOLLHOUSE_FAULTS_REQUESTS=10000 makes it as many; the seed is fixed, and the moments are those of the machine.
"""

import asyncio
import io
import json
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from sidecar.wire.slots import DEFAULT_CAPACITY, SlotReader
from tests.fakes.tiny import CONTEXT
from tests.fakes.traffic import Ask, Traffic

REQUESTS = int(os.environ.get("TOLLHOUSE_FAULTS_REQUESTS", "1000"))
AT_ONCE = 32
SEED = 20
# What a request may meet that is not its own fault: the queue is full, its deadline passes.
OVERLOADED, TOO_LATE = 503, 504
# A page of memory, in bytes.
PAGE = os.sysconf("SC_PAGE_SIZE")
# A process that serves grows to what its largest batch needs, and by what the front remembers of the last requests; in
# 10,000 requests as in 1,000. What is left of each would pass this by far.
MOST_GROWTH_MB = 160
# So many requests, of several sequences some of them, are surely still in the usage slots.
RECORDED = DEFAULT_CAPACITY // 4
# What a log of this test may not have.
NEVER = ("engine_ended", "engine_stalled", "step_failed", "sequence_failed", "request_failed", "handler_failed")
ENGINE = {"max_sequences": 12, "kv_tokens": 2048, "step_token_budget": 64, "prefix_cache_tokens": 1024, "threads": 1}


@dataclass
class Answer:
    """What a client saw. `tokens` is None without a usage; `left`: it went before the end."""

    ask: Ask
    request_id: str = ""
    status: int = 0
    tokens: int | None = None
    error: str = ""
    left: bool = False


@pytest.mark.timeout(60 + REQUESTS // 10)
def test_every_request_ends_once_and_nothing_stays_behind(serve: Callable[..., Any]) -> None:
    served = serve(engine=ENGINE, max_queue=100)
    before = served.state()
    pids = {"front": served.popen.pid, "engine": before["engine_pid"]}
    # The first ones warm up what is made once.
    asyncio.run(send_all(served, Traffic(1, "tiny", CONTEXT), min(100, REQUESTS)))
    rss_before = {name: rss_mb(pid) for name, pid in pids.items()}
    started = time.perf_counter()
    answers = asyncio.run(send_all(served, Traffic(SEED, "tiny", CONTEXT), REQUESTS))
    seconds = time.perf_counter() - started
    growth = {name: round(rss_mb(pid) - rss_before[name], 1) for name, pid in pids.items()}
    until_idle(served)

    state = served.state()
    assert (state["ready"], state["restarts"], state["engine_pid"]) == (True, 0, pids["engine"])
    assert (state["running"], state["waiting"], state["kv_used_tokens"]) == (0, 0, 0)
    for name in NEVER:
        assert served.events(name) == []

    check_what_clients_saw(answers)
    check_the_log(served, answers)
    check_the_slots(served.slots, answers)
    kinds = Counter("left" if answer.left else f"{answer.status}" for answer in answers)
    figures = f"{REQUESTS} requests in {seconds:.1f} s: {REQUESTS / seconds:.0f}/s; RSS grew {growth} MB; {dict(kinds)}"
    print(figures)  # noqa: T201  # for a run with `-s`
    assert max(growth.values()) < MOST_GROWTH_MB
    # Without these the test would not show what it says.
    assert kinds["200"] > REQUESTS / 3
    assert kinds["left"] > REQUESTS / 20
    assert kinds["400"] > REQUESTS / 20


def check_what_clients_saw(answers: list[Answer]) -> None:
    for answer in answers:
        ask = answer.ask
        if answer.left:
            assert ask.leaving is not None
        elif ask.hostile:
            assert 400 <= answer.status < 500, (answer.status, ask.headers, ask.path, ask.body[:300])
            assert answer.error
        elif answer.error:
            allowed = {OVERLOADED} | ({TOO_LATE, 200, 0} if ask.timed else set())
            assert answer.status in allowed, (answer.status, answer.error, ask.headers, ask.body[:300])
            assert answer.error in {"server_is_overloaded", "timeout"}
        else:
            assert (answer.status, answer.tokens is not None) == (200, True), (answer, ask.body[:300])


def check_the_log(served: Any, answers: list[Answer]) -> None:
    """One line for each accepted request, none for the refused; the counts are those of the answers and the metrics."""
    lines = {line["request_id"]: line for line in served.events("request")}
    assert len(lines) == len(served.events("request"))
    for answer in answers:
        line = lines.get(answer.request_id)
        if answer.left:
            # It may have gone before it was accepted.
            assert answer.status != 200 or line is not None
        elif answer.error == "timeout":
            assert line is not None
            assert line["ending"] == "deadline"
        elif answer.error:
            assert line is None
        else:
            assert line is not None
            assert (line["ending"], line["completion_tokens"]) == ("complete", answer.tokens)
    metrics = served.metrics()
    counted = sum(line["completion_tokens"] for line in lines.values())
    assert metrics["tollhouse_sidecar_generation_tokens_total"] == counted
    ended = sum(value for name, value in metrics.items() if name.startswith("tollhouse_sidecar_requests_total{"))
    assert ended == len(lines)


def check_the_slots(path: Path, answers: list[Answer]) -> None:
    """Every record is closed, and has what the answer said."""
    checked = 0
    with SlotReader(path) as reader:
        for answer in answers[-RECORDED:]:
            usage = reader.usage(answer.request_id) if answer.request_id else None
            if usage is None:
                continue
            assert not usage.running
            if answer.tokens is not None:
                checked += 1
                assert usage.completion_tokens == answer.tokens
    assert checked > min(REQUESTS, RECORDED) / 3


async def send_all(served: Any, traffic: Traffic, count: int) -> list[Answer]:
    """Send them, some at once."""
    asks = iter([traffic.next() for _ in range(count)])
    answers: list[Answer] = []

    async def worker(session: aiohttp.ClientSession) -> None:
        for ask in asks:
            answer = Answer(ask, ask.headers.get("x-tollhouse-request-id", ""))
            answers.append(answer)
            await send(session, answer)

    async with served.session() as session, asyncio.TaskGroup() as tasks:
        for _ in range(AT_ONCE):
            tasks.create_task(worker(session))
    return answers


async def send(session: aiohttp.ClientSession, answer: Answer) -> None:
    """One request to its end, or to the moment its client leaves."""
    leaving = answer.ask.leaving
    after_s = None if leaving is None else leaving.after_s
    try:
        # Cancelled, the session drops the connection.
        async with asyncio.timeout(after_s):
            await ask_for(session, answer)
    except TimeoutError:
        if after_s is None:
            raise
        answer.left = True
    except aiohttp.ServerDisconnectedError:
        # A proxy's request is broken off, so that the proxy asks what is owed for it.
        assert answer.ask.timed
        assert "x-tollhouse-request-id" in answer.ask.headers
        answer.error = "timeout"


async def ask_for(session: aiohttp.ClientSession, answer: Answer) -> None:
    ask = answer.ask
    headers = {"content-type": "application/json", **ask.headers}
    async with session.request(ask.method, ask.path, data=io.BytesIO(ask.body), headers=headers) as response:
        answer.status = response.status
        answer.request_id = response.headers["x-request-id"]
        if ask.stream and response.status == 200:
            await read_events(response, answer)
            return
        if ask.leaving is not None and ask.leaving.after_lines == 0:
            answer.left = True
            response.close()
            return
        document = json.loads(await response.read())
        note(document, answer)


async def read_events(response: aiohttp.ClientResponse, answer: Answer) -> None:
    """Read a stream to its proper end, or to its error event and the broken connection."""
    most = None if answer.ask.leaving is None else answer.ask.leaving.after_lines
    comment: dict[str, Any] | None = None
    done = False
    lines = 0
    try:
        async for line in response.content:
            lines += 1
            if most is not None and lines > most:
                answer.left = True
                response.close()
                return
            if line.startswith(b": tollhouse-usage "):
                comment = json.loads(line.removeprefix(b": tollhouse-usage "))
            if line.startswith(b"data: {"):
                assert not done
                note(json.loads(line.removeprefix(b"data: ")), answer)
            done = done or line == b"data: [DONE]\n"
    except aiohttp.ClientPayloadError:
        assert answer.error, "a stream broke off without saying why"
    assert done != bool(answer.error), "a stream ends either well or with an error"
    if done and "x-tollhouse-request-id" in answer.ask.headers:
        assert comment is not None
        assert comment["completion_tokens"] == answer.tokens


def note(document: dict[str, Any], answer: Answer) -> None:
    if "error" in document:
        answer.error = document["error"]["code"] or document["error"]["type"]
    if usage := document.get("usage"):
        answer.tokens = usage["completion_tokens"]


def until_idle(served: Any) -> None:
    """The clients that left last are let go of within a step or two."""
    deadline = time.monotonic() + 10
    while (state := served.state())["running"] or state["waiting"]:
        assert time.monotonic() < deadline, state
        time.sleep(0.02)


def rss_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE / 1e6
