"""What each precision costs and gives: memory of the weights, tokens a second, and how much worse it predicts a text.

    python tests/bench/precision.py                          # the catalogue's small model, every mode
    python tests/bench/precision.py --model path/to/folder --modes fp32 int8

Every mode runs in a process of its own, one after the other, through the engine's loader and forward. The text is this
repository's pages. It prints a table in Markdown, the one in docs/precision.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer

from sidecar.catalog.fetch import resolve
from sidecar.catalog.models import MODELS
from sidecar.engine import loader
from sidecar.engine.batch import Batch, Chunk
from sidecar.engine.config import EngineConfig
from sidecar.engine.sequence import Sequence
from sidecar.wire.frames import Sampling, Submit

ROOT = Path(__file__).resolve().parents[2]
MODES = ("fp32", "bf16", "fp16", "int8", "bnb_int8", "nf4")
BATCHES = (1, 16)
WINDOW = 512
PROMPT = 32


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--model", type=Path, help="a folder in Hugging Face layout; default: the catalogue's")
    made.add_argument("--cache", type=Path, default=Path("~/.cache/tollhouse").expanduser())
    made.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    made.add_argument("--tokens", type=int, default=4 * WINDOW, help="of the text")
    made.add_argument("--steps", type=int, default=32, help="of decoding, for each batch size")
    made.add_argument("--threads", type=int, default=os.cpu_count())
    made.add_argument("--one", choices=MODES, help=argparse.SUPPRESS)
    return made


def folder(told: argparse.Namespace) -> Path:
    found: Path | None = told.model or resolve(MODELS[0].name, told.cache)
    if found is None:
        raise SystemExit(f"{MODELS[0].name} is not in {told.cache}: run `tollhouse-sidecar fetch`")
    return found


def measure(told: argparse.Namespace) -> dict[str, object]:
    """One mode, in this process."""
    torch.set_num_threads(told.threads)
    place = folder(told)
    config = EngineConfig(
        model_path=str(place),
        slots_path="",
        precision=told.one,
        device="cpu",
        max_sequences=max(BATCHES),
        step_token_budget=WINDOW,
        max_context=2 * WINDOW,
        kv_tokens=None,
        threads=told.threads,
    )
    try:
        loaded = loader.load(config)
    except loader.ModelUnusableError as exc:
        return {"refused": str(exc)}
    text = "\n".join(page.read_text() for page in sorted((ROOT / "docs").glob("*.md")))
    tokens = Tokenizer.from_file(str(place / "tokenizer.json")).encode(text).ids[: told.tokens]
    return {
        "runs as": loaded.precision,
        "tier": loaded.tier.name,
        "bytes": loaded.weights_bytes,
        "nll": nll(loaded, tokens),
        "speeds": [speed(loaded, tokens, rows, told.steps) for rows in BATCHES],
    }


def nll(loaded: loader.Loaded, tokens: list[int]) -> float:
    """The mean negative log-likelihood of a token, in nats, in windows of WINDOW tokens."""
    total, count = 0.0, 0
    for start in range(0, len(tokens) - 1, WINDOW):
        window = tokens[start : start + WINDOW]
        one = sequence(window, 0, scored=True)
        logits = loaded.runner.forward.logits(Batch((), (Chunk(one, 0, len(window)),)))
        loaded.runner.forward.release(0)
        told = logits[:-1].log_softmax(-1).gather(1, torch.tensor(window[1:])[:, None])
        total -= float(told.sum())
        count += len(window) - 1
    return total / count


def speed(loaded: loader.Loaded, tokens: list[int], rows: int, steps: int) -> float:
    """Decoded tokens a second, greedy, from the median step."""
    forward = loaded.runner.forward
    running = [sequence(tokens[at * PROMPT : (at + 1) * PROMPT], at) for at in range(rows)]
    for one in running:
        one.tokens.append(int(forward.logits(Batch((), (Chunk(one, 0, PROMPT),))).argmax()))
    times: list[float] = []
    for _ in range(steps):
        started = time.perf_counter()
        chosen = forward.logits(Batch(tuple(Chunk(one, len(one.tokens) - 1, 1) for one in running), ())).argmax(-1)
        times.append(time.perf_counter() - started)
        for one, token in zip(running, chosen.tolist(), strict=True):
            one.tokens.append(token)
    for one in running:
        forward.release(one.slot)
    return rows / statistics.median(times)


def sequence(tokens: list[int], slot: int, *, scored: bool = False) -> Sequence:
    submit = Submit(str(slot), 0, tokens, 1, Sampling(temperature=0), [], prompt_logprobs=0 if scored else None)
    return Sequence(submit, arrival=slot, record=slot, slot=slot)


def main() -> None:
    told = parser().parse_args()
    if told.tokens < max(BATCHES) * PROMPT:
        parser().error(f"--tokens: the prompts take {max(BATCHES) * PROMPT}")
    if told.one:
        print(json.dumps(measure(told)))
        return
    speeds = " | ".join(f"tokens/s, {rows} at once" for rows in BATCHES)
    print(f"| `engine.precision` | runs as | weights, MB | {speeds} | NLL |")
    print("|---|---|---|" + "---|" * len(BATCHES) + "---|")
    exact: float | None = None
    for mode in told.modes:
        command = [sys.executable, __file__, *sys.argv[1:], "--one", mode]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, capture_output=True, env=environment, check=False)
        if done.returncode:
            raise SystemExit(done.stderr.decode())
        found = json.loads(done.stdout.splitlines()[-1])
        if "refused" in found:
            print(f"| `{mode}` | {found['refused']} |")
            continue
        exact = found["nll"] if mode == "fp32" else exact
        worse = "" if exact is None or mode == "fp32" else f" ({found['nll'] - exact:+.4f})"
        speeds = " | ".join(f"{value:.0f}" for value in found["speeds"])
        runs = f"{found['runs as']}, {found['tier']}"
        print(f"| `{mode}` | {runs} | {found['bytes'] / 1e6:.0f} | {speeds} | {found['nll']:.4f}{worse} |", flush=True)


if __name__ == "__main__":
    main()
