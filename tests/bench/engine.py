"""Our sidecar beside other servers of the same weights, in one run.

    python tests/bench/engine.py                                  # beside Transformers; about an hour on 2 cores
    python tests/bench/engine.py --concurrency 16 --prompts 30    # one cell
    python tests/bench/engine.py --peers transformers,transformers-cb,llama-q8,llama-f32,vllm --peers-folder FOLDER
    python tests/bench/engine.py --repetitive --concurrency 1     # answers that repeat the prompt: speculation

`peers.py` says how to make the folder. Each round sends the same streamed chats to each server in turn, the others
stopped meanwhile (SIGSTOP), so that drift of the machine meets all alike. No server has a prefix cache, and all end at
64 tokens or at the model's end of text; the prompts are such that the answers are long. What is printed is the median
over the rounds of the output tokens per second, by the server's own usage counts, and for ours the ratio to the best
peer: our int8 to the best of all, our fp32 to the best that computes in fp32.
"""

import argparse
import asyncio
import itertools
import json
import signal
import statistics
import subprocess
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from peers import BIN, OURS, PEERS, Answer, Server, chat, running, start_ours, start_peer

ROOT = Path(__file__).parents[2]
OUTPUT_TOKENS = 64
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
# A word of the list above is about one token; the rest of `essay` and the chat template are these.
ESSAY_TOKENS = 28
# Of the sentence in `pattern`. The model needs to see a dozen of them before it goes on by itself.
SENTENCE_TOKENS, MIN_SENTENCES = 11, 12


@dataclass(frozen=True)
class Round:
    """What one server did in one round."""

    answers: list[Answer]
    seconds: float

    @property
    def rate(self) -> float:
        return sum(answer.tokens for answer in self.answers) / self.seconds

    @property
    def first_token_s(self) -> float:
        return statistics.median(answer.first_token_s for answer in self.answers)


def essay(tokens: int, number: int) -> str:
    """About `tokens` tokens with the template around them; no two begin alike, so no prefix cache helps anybody."""
    words = [WORDS[(number * 7 + at * (number % 5 + 3)) % len(WORDS)] for at in range(max(1, tokens - ESSAY_TOKENS))]
    return f"Number {number}: {' '.join(words)}. Write a long essay about these."


def pattern(tokens: int, number: int) -> str:
    """As `essay`, at least some 150 tokens, and its greedy answer repeats it."""
    first, second, third = (WORDS[(number * step + offset) % len(WORDS)] for step, offset in ((1, 0), (3, 5), (5, 2)))
    sentences = [f"The {first} is by the {second} and the {third}."] * max(MIN_SENTENCES, tokens // SENTENCE_TOKENS)
    return f"{number}. {' '.join(sentences)} Continue this text."


async def measure(server: Server, prompts: list[str], concurrency: int) -> Round:
    """Send the prompts, `concurrency` at a time."""
    gate = asyncio.Semaphore(concurrency)
    async with server.session() as session:

        async def one(text: str) -> Answer:
            async with gate:
                return await chat(session, server, text, OUTPUT_TOKENS)

        started = time.perf_counter()
        answers = await asyncio.gather(*(one(text) for text in prompts))
        return Round(answers, time.perf_counter() - started)


def rounds_of(servers: list[Server], batches: list[list[str]], concurrency: int) -> dict[str, list[Round]]:
    """Every server in turn for each batch of prompts, each time another one first."""
    found: dict[str, list[Round]] = {server.name: [] for server in servers}
    for number, prompts in enumerate(batches):
        first = number % len(servers)
        for server in servers[first:] + servers[:first]:
            server.resume()
            found[server.name].append(asyncio.run(measure(server, prompts, concurrency)))
            server.pause()
    return found


def rows_of(servers: list[Server], found: dict[str, list[Round]]) -> list[dict[str, Any]]:
    """The medians of one cell, a row for each server; `ratio` and `best_peer` are None where no peer compares."""
    rates = {name: statistics.median(taken.rate for taken in rounds) for name, rounds in found.items()}
    rows: list[dict[str, Any]] = []
    for server in servers:
        rounds = found[server.name]
        answers = [answer for taken in rounds for answer in taken.answers]
        peers = [peer.name for peer in servers if not peer.ours and (server.eight_bit or not peer.eight_bit)]
        best = max(peers, key=rates.__getitem__) if server.ours and peers else None
        rows.append(
            {
                "server": server.name,
                "prompt_tokens": round(statistics.mean(answer.prompt_tokens for answer in answers)),
                "output_tokens": round(statistics.mean(answer.tokens for answer in answers), 1),
                "tokens_per_s": round(rates[server.name], 1),
                "first_token_s": round(statistics.median(taken.first_token_s for taken in rounds), 3),
                "ratio": round(rates[server.name] / rates[best], 2) if best else None,
                "best_peer": best,
            }
        )
    return rows


def print_rows(concurrency: int, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        ratio = f"{row['ratio']:>6.2f} × {row['best_peer']}" if row["best_peer"] else ""
        print(
            f"{row['prompt_tokens']:>6} {concurrency:>7}  {row['server']:<16} {row['tokens_per_s']:>8.1f}"
            f" {row['first_token_s']:>10.2f} s {row['output_tokens']:>8.1f} {ratio}",
            flush=True,
        )


def print_answers(servers: list[Server], text: str) -> None:
    for server in servers:
        server.resume()
        answer = asyncio.run(measure(server, [text], 1)).answers[0]
        server.pause()
        print(f"{server.name}: {json.dumps(answer.text, ensure_ascii=False)}", flush=True)


def names(allowed: tuple[str, ...]) -> Any:
    """An argparse type: names out of `allowed`, between commas; none for an empty text."""

    def parse(text: str) -> list[str]:
        given = [name for name in text.split(",") if name]
        if unknown := set(given) - set(allowed):
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: not one of {', '.join(allowed)}")
        return given

    return parse


def counts(text: str) -> list[int]:
    return [int(count) for count in text.split(",")]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concurrency", type=counts, default="1,4,16,64")
    parser.add_argument("--prompts", type=counts, default="30,500", help="lengths in tokens")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ours", type=names(OURS), default="fp32,int8", help="of ours: fp32, int8")
    parser.add_argument("--peers", type=names(PEERS), default="transformers-cb", help=", ".join(PEERS))
    parser.add_argument("--peers-folder", type=Path, default=Path("peers"), help="where llama.cpp and vLLM live")
    parser.add_argument("--repetitive", action="store_true", help="prompts whose answers repeat them")
    parser.add_argument("--texts", action="store_true", help="first print what each server answers to one prompt")
    parser.add_argument("--json", action="store_true", help="print one JSON document at the end")
    return parser.parse_args()


def terminate(number: int, frame: FrameType | None) -> None:
    """As Ctrl-C does, unwind: else stopped servers would stay behind."""
    raise SystemExit(128 + number)


def main() -> None:
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, terminate)
    fetch = [str(BIN / "tollhouse-sidecar"), "fetch", "--config", str(ROOT / "conf/sidecar.yaml"), "--json"]
    weights = Path(json.loads(subprocess.run(fetch, check=True, capture_output=True, cwd=ROOT).stdout)["path"])
    prompt = pattern if arguments.repetitive else essay
    cells: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder, peers = Path(name), arguments.peers_folder.resolve()
        servers = [stack.enter_context(running(start_peer(peer, weights, peers, folder))) for peer in arguments.peers]
        servers += [stack.enter_context(running(start_ours(precision, folder))) for precision in arguments.ours]
        if arguments.texts:
            print_answers(servers, prompt(arguments.prompts[0], 7))
        print(f"{'prompt':>6} {'at once':>7}  {'server':<16} {'tok/s':>8} {'first token':>12} {'answer':>8}  ratio")
        for tokens, concurrency in itertools.product(arguments.prompts, arguments.concurrency):
            batches = [
                [prompt(tokens, number * 1000 + at) for at in range(max(concurrency, 2))]
                for number in range(arguments.rounds)
            ]
            rows = rows_of(servers, rounds_of(servers, batches, concurrency))
            print_rows(concurrency, rows)
            cells.append({"prompt": tokens, "concurrency": concurrency, "servers": rows})
    if arguments.json:
        print(json.dumps(cells))


if __name__ == "__main__":
    main()
