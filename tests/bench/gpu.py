"""Our sidecar on a GPU beside Transformers' continuous batching: the same random weights, prompts and lengths.

    python tests/bench/gpu.py --shape llama-1b --tokenizer FOLDER        # a folder with tokenizer.json and its config
    python tests/bench/gpu.py --shape mistral-7b --concurrency 64 --ours-only

Weights are random, in bf16: how fast a model is does not depend on what it says. Each request has a prompt of its own
and writes all its tokens; no prefix cache, no speculation. Printed are output tokens per second of all requests
together, the second of two rounds: the first one records the graphs.
"""

import argparse
import asyncio
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, MistralConfig

MODEL = "random"
VOCABULARY = 49152
START_TIMEOUT_S = 300.0
SHAPES: dict[str, Any] = {
    "llama-1b": LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, head_dim=64, max_position_embeddings=8192, tie_word_embeddings=True,
    ),
    "mistral-7b": MistralConfig(
        vocab_size=VOCABULARY, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, max_position_embeddings=8192, sliding_window=None,
    ),
}  # fmt: skip


def make(shape: str, tokenizer: Path, folder: Path) -> Path:
    """A model folder with random weights of a shape."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(SHAPES[shape], dtype=torch.bfloat16)
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tokenizer / file, folder / file)
    return folder


def prompts(count: int, tokens: int, seed: int) -> list[list[int]]:
    chooser = random.Random(seed)
    return [[chooser.randrange(1000, 40_000) for _ in range(tokens)] for _ in range(count)]


@contextmanager
def sidecar(model: Path, folder: Path, engine: dict[str, Any]) -> Iterator[Path]:
    """A started sidecar's socket."""
    told = {"precision": "bf16", "device": "cuda", "max_sequences": 256, "step_token_budget": 2048, "speculation": 0}
    config = {
        "model": {"id": MODEL, "source": str(model), "max_context": 8192},
        "socket": str(folder / "s.sock"),
        "engine": {**told, "prefix_cache_tokens": 0, **engine},
    }
    (folder / "sidecar.yaml").write_text(json.dumps(config))
    log = folder / "log"
    with log.open("wb") as out:
        command = [sys.executable, "-m", "sidecar", "serve", "--config", str(folder / "sidecar.yaml")]
        process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while '"event":"ready"' not in log.read_text():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(log.read_text())
            time.sleep(0.1)
        yield folder / "s.sock"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        print("\n".join(line for line in log.read_text().splitlines() if "graph" in line or "stepped" in line))


async def ask(socket: Path, texts: list[list[int]], tokens: int) -> float:
    """Output tokens per second of all together."""
    connector = aiohttp.UnixConnector(str(socket), limit=0)
    async with aiohttp.ClientSession(
        "http://sidecar", connector=connector, timeout=aiohttp.ClientTimeout(total=600)
    ) as session:

        async def one(text: list[int]) -> int:
            asked = {"model": MODEL, "prompt": text, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
            async with session.post("/v1/completions", json=asked) as response:
                told = await response.json()
                if response.status != 200:
                    raise SystemExit(told)
                return int(told["usage"]["completion_tokens"])

        started = time.perf_counter()
        written = sum(await asyncio.gather(*map(one, texts)))
        return written / (time.perf_counter() - started)


def batching(model: Path, counts: list[int], length: int, tokens: int) -> list[float]:
    """Transformers' continuous batching, in this process."""
    stock = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16, device_map="cuda").eval()
    how = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
    rates: list[float] = []
    with stock.continuous_batching_context_manager(generation_config=how) as manager:
        for count in counts:
            rate = 0.0
            for turn in range(2):
                started = time.perf_counter()
                manager.add_requests(inputs=prompts(count, length, turn), max_new_tokens=tokens)
                done = written = 0
                while done < count:
                    result = manager.get_result(timeout=60)
                    if result is None:
                        raise SystemExit("transformers gave no result")
                    if result.is_finished():
                        done += 1
                        written += len(result.generated_tokens)
                rate = written / (time.perf_counter() - started)
            rates.append(rate)
            print(f"transformers  {count:>4} at once  {rate:>9.1f} tokens/s", flush=True)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llama-1b")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--concurrency", default="1,8,64,256")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of an answer")
    parser.add_argument("--engine", type=json.loads, default={}, help="settings of the engine, as JSON")
    parser.add_argument("--ours-only", action="store_true")
    parser.add_argument("--made", type=Path, help="where the weights are kept from one run to the next")
    arguments = parser.parse_args()
    counts = [int(count) for count in arguments.concurrency.split(",")]
    print(torch.cuda.get_device_name(), "torch", torch.__version__, arguments.shape, flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = arguments.made or folder / "model"
        if not model.exists():
            make(arguments.shape, arguments.tokenizer, model)
        torch.cuda.empty_cache()
        with sidecar(model, folder, arguments.engine) as socket:
            for count in counts:
                rates = [
                    asyncio.run(ask(socket, prompts(count, arguments.prompt, turn), arguments.tokens))
                    for turn in range(2)
                ]
                print(f"ours          {count:>4} at once  {rates[1]:>9.1f} tokens/s", flush=True)
        if not arguments.ours_only:
            batching(model, counts, arguments.prompt, arguments.tokens)


if __name__ == "__main__":
    main()
