"""Proves, at load, that the engine computes what the stock model computes.

Before the model is changed, its own logits are taken on a few prompts. Afterwards the same prompts go through the
engine's runner: whole and in chunks, side by side in one batch, then token by token. The logits must agree.
"""

import random
from dataclasses import dataclass
from typing import Final

import torch
from transformers import PreTrainedModel

from sidecar.engine.batch import Batch, Chunk
from sidecar.engine.model_runner import Forward
from sidecar.engine.sequence import Sequence
from sidecar.wire.frames import Sampling, Submit

# Largest difference of a log-probability, in fp32: other kernels add in another order, about 1e-5 in practice.
TOLERANCE: Final = 1e-3
_LENGTHS: Final = (33, 9, 21)
_DECODED: Final = 3
_FIRST_CHUNK: Final = 7


class ParityError(Exception):
    """The engine's logits are not the stock model's."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A prompt, and the stock model's log-probabilities `[decoded + 1, vocabulary]` at its last positions."""

    tokens: tuple[int, ...]
    logprobs: torch.Tensor


@torch.inference_mode()
def references(model: PreTrainedModel) -> list[Reference]:
    """What the stock model says to prompts made of its vocabulary."""
    vocabulary = int(model.config.get_text_config().vocab_size)
    # A fixed choice of tokens: a start must not differ from the next one.
    chooser = random.Random(0)
    found: list[Reference] = []
    for length in _LENGTHS:
        tokens = tuple(chooser.randrange(vocabulary) for _ in range(length))
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -_DECODED - 1 :]
        found.append(Reference(tokens, logits.float().log_softmax(-1)))
    return found


def check(forward: Forward, wanted: list[Reference], tolerance: float = TOLERANCE) -> float:
    """The largest difference found. Raises ParityError if it is above `tolerance`."""
    sequences = [_sequence(reference, slot) for slot, reference in enumerate(wanted)]
    prompts = [len(sequence.tokens) for sequence in sequences]
    # The first prompt in two chunks, the second one beside its other others.
    worst = 0.0
    forward.logits(Batch((), (Chunk(sequences[0], 0, _FIRST_CHUNK),)))
    starts = [_FIRST_CHUNK] + [0] * (len(sequences) - 1)
    chunks = [Chunk(s, start, len(s.tokens) - start) for s, start in zip(sequences, starts, strict=True)]
    logits = forward.logits(Batch((), tuple(chunks)))
    for step in range(_DECODED + 1):
        for row, reference in enumerate(wanted):
            ours = logits[row].log_softmax(-1)
            worst = max(worst, float((ours - reference.logprobs[step]).abs().max()))
        if step < _DECODED:
            for sequence, reference, prompt in zip(sequences, wanted, prompts, strict=True):
                sequence.tokens.append(reference.tokens[prompt + step])
            decodes = tuple(Chunk(s, len(s.tokens) - 1, 1) for s in sequences)
            logits = forward.logits(Batch(decodes, ()))
    if not worst <= tolerance:
        raise ParityError(f"log-probabilities differ by {worst:.3g} from the stock model's, {tolerance:g} is allowed")
    return worst


def _sequence(reference: Reference, slot: int) -> Sequence:
    prompt = list(reference.tokens[:-_DECODED])
    submit = Submit(f"parity-{slot}", 0, prompt, 1, Sampling(temperature=0), [])
    return Sequence(submit, arrival=slot, record=-1, slot=slot)
