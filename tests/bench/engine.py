"""Our sidecar beside Transformers' own `transformers serve --continuous-batching`, on the same weights, in one run.

    python tests/bench/engine.py                                  # everything; about an hour on 2 cores
    python tests/bench/engine.py --concurrency 16 --prompts 30    # one cell

Each round sends the same streamed chats to each server in turn, the others stopped meanwhile (SIGSTOP), so that drift
of the machine meets all alike. What is printed is the median over the rounds of the output tokens per second, by the
server's own usage counts, and the ratios to Transformers.
"""

import argparse
import asyncio
import itertools
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
MODEL = "smollm2-135m-instruct"
OUTPUT_TOKENS = 64
START_TIMEOUT_S = 300.0
CELL_TIMEOUT_S = 1800.0
WORDS = [
    "river",
    "stone",
    "window",
    "letter",
    "garden",
    "winter",
    "engine",
    "harbour",
    "paper",
    "silver",
    "mountain",
    "question",
    "morning",
    "bridge",
]
# About one token a word of the list above, and some 25 for the chat template and the request itself.
TEMPLATE_TOKENS = 25


@dataclass(frozen=True)
class Server:
    """A started server; `socket` for a Unix socket, else `port`. `model` is the name it wants to hear."""

    name: str
    process: subprocess.Popen[bytes]
    model: str
    socket: str = ""
    port: int = 0

    def session(self) -> aiohttp.ClientSession:
        timeout = aiohttp.ClientTimeout(total=CELL_TIMEOUT_S)
        if self.socket:
            return aiohttp.ClientSession(
                "http://sidecar", connector=aiohttp.UnixConnector(self.socket, limit=0), timeout=timeout
            )
        connector = aiohttp.TCPConnector(limit=0)
        return aiohttp.ClientSession(f"http://127.0.0.1:{self.port}", connector=connector, timeout=timeout)

    def pause(self) -> None:
        os.killpg(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.killpg(self.process.pid, signal.SIGCONT)

    def end(self) -> None:
        self.resume()
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)


@dataclass(frozen=True)
class Round:
    """What one server did in one round."""

    tokens: int
    seconds: float
    first_token_s: float

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


def prompt(tokens: int, number: int) -> str:
    """About `tokens` tokens with the template around them; no two begin alike, so no prefix cache helps anybody."""
    words = [WORDS[(number * 7 + at * (number % 5 + 3)) % len(WORDS)] for at in range(max(1, tokens - TEMPLATE_TOKENS))]
    return f"Number {number}: tell a very long story with the words {' '.join(words)}."


async def chat(session: aiohttp.ClientSession, server: Server, text: str) -> tuple[int, float]:
    """One streamed chat: the tokens it produced, and the seconds to its first text."""
    body = {
        "model": server.model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": OUTPUT_TOKENS,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if not server.socket:
        # Transformers refuses fields it does not know, and sends usage unasked.
        del body["stream_options"]
    started = time.perf_counter()
    first: float | None = None
    tokens = 0
    async with session.post("/v1/chat/completions", json=body) as response:
        if response.status != 200:
            raise RuntimeError(f"{server.name} answered {response.status}: {(await response.text())[:300]}")
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if event.get("error"):
                raise RuntimeError(f"{server.name} broke off: {event['error']}")
            if first is None and event["choices"] and event["choices"][0]["delta"].get("content"):
                first = time.perf_counter() - started
            if event.get("usage"):
                tokens = event["usage"]["completion_tokens"]
    return tokens, first or 0.0


async def measure(server: Server, prompts: list[str], concurrency: int) -> Round:
    """Send the prompts, `concurrency` at a time."""
    gate = asyncio.Semaphore(concurrency)
    async with server.session() as session:

        async def one(text: str) -> tuple[int, float]:
            async with gate:
                return await chat(session, server, text)

        started = time.perf_counter()
        answers = await asyncio.gather(*(one(text) for text in prompts))
        seconds = time.perf_counter() - started
    return Round(sum(tokens for tokens, _ in answers), seconds, statistics.median(first for _, first in answers))


@contextmanager
def started(server: Server, log: Path) -> Iterator[Server]:
    """Wait until a server answers a chat; end it at the end."""

    async def ready() -> bool:
        async with server.session() as session:
            try:
                return (await chat(session, server, "Hello."))[0] > 0
            except (aiohttp.ClientError, OSError, RuntimeError):
                return False

    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not asyncio.run(ready()):
            if time.monotonic() > deadline or server.process.poll() is not None:
                raise SystemExit(f"{server.name} did not start:\n{log.read_text()[-3000:]}")
            time.sleep(1)
        server.pause()
        yield server
    finally:
        server.end()


def start(command: list[str], log: Path, **environ: str) -> subprocess.Popen[bytes]:
    with log.open("wb") as out:
        return subprocess.Popen(
            command, stdout=out, stderr=out, cwd=log.parent, env={**os.environ, **environ}, start_new_session=True
        )


def ours(precision: str, folder: Path) -> Server:
    path = folder / precision
    path.mkdir()
    config = path / "sidecar.yaml"
    socket_path = str(path / "run" / "s.sock")
    config.write_text(
        json.dumps({"model": {"id": MODEL, "source": MODEL}, "socket": socket_path, "engine": {"precision": precision}})
    )
    process = start([str(BIN / "tollhouse-sidecar"), "serve", "--config", str(config)], path / "log")
    return Server(f"tollhouse {precision}", process, MODEL, socket=socket_path)


def theirs(weights: Path, folder: Path) -> Server:
    path = folder / "transformers"
    path.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(BIN / "transformers"), "serve", str(weights), "--continuous-batching", "--device", "cpu"]
    command += ["--dtype", "float32", "--host", "127.0.0.1", "--port", str(port)]
    process = start(command, path / "log", HF_HUB_OFFLINE="1")
    return Server("transformers fp32", process, str(weights), port=port)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concurrency", default="1,4,16,64")
    parser.add_argument("--prompts", default="30,500")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON document at the end")
    arguments = parser.parse_args()
    fetch = [str(BIN / "tollhouse-sidecar"), "fetch", "--config", str(ROOT / "conf/sidecar.yaml"), "--json"]
    weights = Path(json.loads(subprocess.run(fetch, check=True, capture_output=True, cwd=ROOT).stdout)["path"])
    cells: list[dict[str, Any]] = []
    lengths, at_once = (list(map(int, text.split(","))) for text in (arguments.prompts, arguments.concurrency))
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        servers: list[Server] = []
        for make in (lambda: theirs(weights, folder), lambda: ours("fp32", folder), lambda: ours("int8", folder)):
            server = make()
            servers.append(stack.enter_context(started(server, _log(server, folder))))
        print(f"{'prompt':>6} {'at once':>7}  {'server':<18} {'tok/s':>8} {'first token':>12} {'ratio':>6}")
        for tokens, concurrency in itertools.product(lengths, at_once):
            cells.append(cell(servers, tokens, concurrency, arguments.rounds))  # prints as it goes
    if arguments.json:
        print(json.dumps(cells))


def _log(server: Server, folder: Path) -> Path:
    return folder / server.name.split()[0 if server.port else 1] / "log"


def cell(servers: list[Server], tokens: int, concurrency: int, rounds: int) -> dict[str, Any]:
    """One prompt length at one concurrency: every server in turn, `rounds` times."""
    found: dict[str, list[Round]] = {server.name: [] for server in servers}
    for number in range(rounds):
        prompts = [prompt(tokens, number * 1000 + at) for at in range(max(concurrency, 2))]
        for server in servers:
            server.resume()
            found[server.name].append(asyncio.run(measure(server, prompts, concurrency)))
            server.pause()
    reference = statistics.median(taken.rate for taken in found[servers[0].name])
    rows: dict[str, Any] = {"prompt": tokens, "concurrency": concurrency}
    for name, taken in found.items():
        rate = statistics.median(one.rate for one in taken)
        first = statistics.median(one.first_token_s for one in taken)
        print(
            f"{tokens:>6} {concurrency:>7}  {name:<18} {rate:>8.1f} {first:>10.2f} s {rate / reference:>6.2f}",
            flush=True,
        )
        rows[name] = {
            "tokens_per_s": round(rate, 1),
            "first_token_s": round(first, 3),
            "ratio": round(rate / reference, 2),
        }
    return rows


if __name__ == "__main__":
    main()
