"""Proves, at load, that an execution tier computes what the stock model's `generate` computes.

Before anything is changed, `generate` answers a few prompts, real ones where there is a tokenizer. Then the same
prompts go through the tier: whole and in chunks, side by side in one batch, token by token, and once more after a
preemption. Each time the log-probabilities must agree, and the likeliest token must be the one that `generate` chose.
"""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from sidecar.engine.batch import Batch, Chunk
from sidecar.engine.model_runner import Forward
from sidecar.engine.sequence import Sequence
from sidecar.wire.frames import Sampling, Submit

# Largest difference of a log-probability, in fp32: other kernels add in another order, about 1e-5 in practice.
TOLERANCE: Final = 1e-3
# By the dtype that products are rounded to. In 16 bits SmolLM2 differs from itself by up to 0.63 (bf16) and 0.09
# (fp16), so that only coarse mistakes show: where it can be, a tier is proven in fp32 and its weights rounded then.
TOLERANCES: Final = {"float32": TOLERANCE, "bfloat16": 1.5, "float16": 0.25}
_TEXTS: Final = (
    "The quick brown fox jumps over the lazy dog. In 1815, near Waterloo, a long day of rain turned the fields to mud.",
    "def greet(name):",
    "Question: what is the capital of France, and which river runs through it?\nAnswer:",
)
# In tokens, where there is no tokenizer.
_LENGTHS: Final = (30, 6, 18)
_LONGEST: Final = 48
_ANSWER: Final = 4
_FIRST_CHUNK: Final = 7


class ParityError(Exception):
    """The tier's logits are not the stock model's."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A prompt, what `generate` answered, and the log-probabilities `[answer, vocabulary]` it chose from."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    logprobs: torch.Tensor


@torch.inference_mode()
def references(model: PreTrainedModel, folder: Path) -> list[Reference]:
    """What the stock model's `generate` answers, greedily."""
    return [_generate(model, prompt) for prompt in prompts(folder, int(model.config.get_text_config().vocab_size))]


def prompts(folder: Path, vocabulary: int) -> list[tuple[int, ...]]:
    """Prompts for a model: texts in its own tokens, or tokens by a fixed choice; the first one is the longest."""
    file = folder / "tokenizer.json"
    if file.is_file():
        tokenizer = Tokenizer.from_file(str(file))
        encoded = [tuple(tokenizer.encode(text).ids[:_LONGEST]) for text in _TEXTS]
        if all(len(ids) > 1 and max(ids) < vocabulary for ids in encoded) and len(encoded[0]) > _FIRST_CHUNK:
            return encoded
    # A fixed choice of tokens: a start must not differ from the next one.
    chooser = random.Random(0)
    return [tuple(chooser.randrange(vocabulary) for _ in range(length)) for length in _LENGTHS]


def _generate(model: PreTrainedModel, prompt: tuple[int, ...]) -> Reference:
    ids = torch.tensor([prompt], device=model.device)
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=_ANSWER,
        do_sample=False,
        num_beams=1,
        eos_token_id=None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    logits = torch.cat(out.logits).float()
    return Reference(prompt, tuple(out.sequences[0, len(prompt) :].tolist()), logits.log_softmax(-1))


def check(forward: Forward, wanted: list[Reference], tolerance: float = TOLERANCE, *, chunks: bool = True) -> float:
    """The largest difference found; `chunks`: whether a prompt may be cut. Raises ParityError above `tolerance`."""
    sequences = [_sequence(reference, slot) for slot, reference in enumerate(wanted)]
    first = _FIRST_CHUNK if chunks else 0
    if first:
        forward.logits(Batch((), (Chunk(sequences[0], 0, first),)))
    # The first prompt goes on beside the others, which come whole.
    starts = [first] + [0] * (len(sequences) - 1)
    begun = tuple(Chunk(s, start, len(s.tokens) - start) for s, start in zip(sequences, starts, strict=True))
    worst = _compare(forward.logits(Batch((), begun)), wanted, 0, tolerance)
    for step in range(1, _ANSWER):
        for sequence, reference in zip(sequences, wanted, strict=True):
            sequence.tokens.append(reference.answer[step - 1])
        decodes = tuple(Chunk(s, len(s.tokens) - 1, 1) for s in sequences)
        worst = max(worst, _compare(forward.logits(Batch(decodes, ())), wanted, step, tolerance))
    return max(worst, _preempted(forward, sequences, wanted, tolerance))


def _preempted(forward: Forward, sequences: list[Sequence], wanted: list[Reference], tolerance: float) -> float:
    """Two sequences leave, and the first comes back: computed again from its tokens."""
    for sequence in sequences[:2]:
        forward.release(sequence.slot)
    again = sequences[0]
    logits = forward.logits(Batch((), (Chunk(again, 0, len(again.tokens)),)))
    worst = _compare(logits, wanted[:1], _ANSWER - 1, tolerance)
    for sequence in (again, *sequences[2:]):
        forward.release(sequence.slot)
    return worst


def _compare(logits: torch.Tensor, wanted: list[Reference], step: int, tolerance: float) -> float:
    """The largest difference in this step of the answers."""
    worst = 0.0
    for row, reference in enumerate(wanted):
        ours, theirs = logits[row].log_softmax(-1), reference.logprobs[step]
        difference = float((ours - theirs).abs().max())
        if not difference <= tolerance:
            raise ParityError(
                f"log-probabilities differ by {difference:.3g} from those of generate, {tolerance:g} is allowed"
            )
        gap = float(theirs[reference.answer[step]] - theirs[int(ours.argmax())])
        if gap > 2 * tolerance:
            raise ParityError(f"token {int(ours.argmax())} is chosen where generate chooses {reference.answer[step]}")
        worst = max(worst, difference)
    return worst


def _sequence(reference: Reference, slot: int) -> Sequence:
    submit = Submit(f"parity-{slot}", 0, list(reference.prompt), _ANSWER, Sampling(temperature=0), [])
    return Sequence(submit, arrival=slot, record=-1, slot=slot)
