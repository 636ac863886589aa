"""A fused layer is the model's own, with windows and biases too; its int8 rows do not know of each other."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from sidecar.engine import linears
from sidecar.engine.attention import StepContext, install
from sidecar.engine.batch import Batch, Chunk
from sidecar.engine.fused_model import FusedModel, fuse
from sidecar.engine.kv_cache import SlotCache
from sidecar.engine.norms import use_native_norms
from sidecar.engine.packed import PackedForward
from sidecar.engine.sequence import Sequence
from sidecar.wire.frames import Sampling, Submit

VOCABULARY, CONTEXT = 120, 512
TINY: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.3,
    "attn_implementation": "eager",
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama, two query heads a key head": LlamaConfig(**TINY, num_key_value_heads=4),
    "llama, four": LlamaConfig(**TINY, num_key_value_heads=2),
    "mistral with a window": MistralConfig(**TINY, num_key_value_heads=2, sliding_window=60),
    "qwen2 with a window in one layer": Qwen2Config(
        **TINY, num_key_value_heads=1, use_sliding_window=True, sliding_window=60, max_window_layers=1
    ),
}
LENGTHS = (300, 40, 452, 210)


@dataclass
class House:
    """A fused model, and what it was made of. Mutable: the forward's KV cache."""

    stock: PreTrainedModel
    network: FusedModel
    forward: PackedForward
    sequences: list[Sequence]

    def computed(self, *slots: int) -> torch.Tensor:
        """The last tokens' logits of sequences that decode side by side; the rest of them was computed before."""
        chunks = [self._chunk(slot, len(self.sequences[slot].tokens) - 1, 1) for slot in slots]
        return self.forward.logits(Batch(tuple(chunks), ()))

    def prefill(self) -> None:
        for sequence in self.sequences:
            for start in range(0, len(sequence.tokens) - 1, 64):
                count = min(64, len(sequence.tokens) - 1 - start)
                self.forward.logits(Batch((), (self._chunk(sequence.slot, start, count),)))

    def _chunk(self, slot: int, start: int, count: int) -> Chunk:
        return Chunk(self.sequences[slot], start, count)


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS.keys())
def house(request: pytest.FixtureRequest) -> House:
    torch.manual_seed(4)
    stock, model = (AutoModelForCausalLM.from_config(request.param).eval() for _ in range(2))
    for name, parameter in stock.named_parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=1.0 if name.endswith("weight") else 0.0, std=0.2)
    model.load_state_dict(stock.state_dict())
    context = StepContext(SlotCache(len(LENGTHS), CONTEXT))
    install(model, context)
    use_native_norms(model)
    network = fuse(model, context)
    assert network is not None
    chosen = torch.randint(3, VOCABULARY, (len(LENGTHS), max(LENGTHS)))
    sequences = [
        Sequence(Submit(str(slot), 0, chosen[slot, :length].tolist(), 1, Sampling(), []), slot, record=slot, slot=slot)
        for slot, length in enumerate(LENGTHS)
    ]
    return House(stock, network, PackedForward(network, context), sequences)


@torch.inference_mode()
def test_it_gives_the_models_own_logits(house: House) -> None:
    linears.pack(house.network, "fp32")
    house.prefill()
    ours = house.computed(0, 1, 2, 3)
    for row, sequence in enumerate(house.sequences):
        theirs = house.stock(torch.tensor([sequence.tokens])).logits[0, -1]
        assert (ours[row].log_softmax(-1) - theirs.log_softmax(-1)).abs().max() < 1e-3


def test_with_int8_a_row_is_the_same_alone_and_in_any_company_to_the_last_bit(house: House) -> None:
    linears.pack(house.network, "int8")
    house.prefill()
    together = house.computed(0, 1, 2, 3)
    for slot in range(len(LENGTHS)):
        assert torch.equal(house.computed(slot)[0], together[slot])
    # Slots that are no neighbours, and a prompt in the same step: not one call for all, and not the compiled one.
    assert torch.equal(house.computed(0, 2), together[[0, 2]])
    begun = Batch((Chunk(house.sequences[0], LENGTHS[0] - 1, 1),), (Chunk(house.sequences[1], 0, 30),))
    assert torch.equal(house.forward.logits(begun)[0], together[0])


def test_with_int8_a_guess_is_computed_as_if_it_was_decoded(house: House) -> None:
    linears.pack(house.network, "int8")
    house.prefill()
    sequence = house.sequences[0]
    guesses = (5, 6, 7)
    drafted = house.forward.logits(Batch((), (Chunk(sequence, LENGTHS[0] - 1, 4, guesses),)))
    for row, token in enumerate((*guesses, 0)):
        assert torch.equal(house.computed(0)[0], drafted[row])
        sequence.tokens.append(token)
