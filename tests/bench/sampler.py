"""What sampling costs beside greedy picking: milliseconds a step, and its share of the throughput of greedy.

    python tests/bench/sampler.py --step-ms 45       # the time of the engine's step at the number of rows, by itself

The ways are interleaved; what is printed is the median over the rounds.
"""

import argparse
import statistics
import time

import torch

from sidecar.engine.sampler import Row, sample
from sidecar.wire.frames import Sampling

WAYS = {
    "greedy": Sampling(temperature=0),
    "temperature": Sampling(temperature=0.8),
    "top_p 0.9": Sampling(temperature=0.8, top_p=0.9),
    "top_k 50, top_p 0.9": Sampling(temperature=0.8, top_k=50, top_p=0.9),
    "top_k 100, top_p 0.9": Sampling(temperature=0.8, top_k=100, top_p=0.9),
    "min_p 0.05": Sampling(temperature=0.8, min_p=0.05),
    "penalties": Sampling(temperature=0.8, top_p=0.9, presence_penalty=0.5, repetition_penalty=1.1),
    "logprobs 5": Sampling(temperature=0),
}


def once(logits: torch.Tensor, name: str, sampling: Sampling) -> float:
    asked = 5 if name.startswith("logprobs") else None
    rows = [Row(sampling, list(range(n, n + 200)), 100, logprobs=asked) for n in range(len(logits))]
    started = time.perf_counter()
    sample(logits, rows)
    return (time.perf_counter() - started) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--step-ms", type=float, default=45.0, help="a greedy step without its sampling")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    told = parser.parse_args()
    torch.set_num_threads(told.threads)
    torch.manual_seed(0)
    # As peaked as a language model's: probabilities fall with their rank by a power law.
    ranks = torch.stack([torch.randperm(told.vocabulary) for _ in range(told.rows)]) + 1
    logits = -1.6 * ranks.log() + torch.randn(told.rows, told.vocabulary) * 0.3
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(told.rounds):
        for name, sampling in WAYS.items():
            times[name].append(once(logits, name, sampling))
    greedy = statistics.median(times["greedy"])
    for name, found in times.items():
        median = statistics.median(found)
        share = (told.step_ms + greedy) / (told.step_ms + median)
        print(f"{name:22} {median:7.2f} ms   {share:6.1%} of greedy's throughput")


if __name__ == "__main__":
    with torch.inference_mode():
        main()
