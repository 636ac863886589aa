"""Frequencies that depend on the length of a text are taken for good, so that no neighbour's length shows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config, PhimoeConfig, PreTrainedModel

from sidecar.engine import loader
from sidecar.engine.config import EngineConfig
from sidecar.engine.loader import ModelUnusableError
from sidecar.engine.rotary import UnsteadyRotaryError, settle, steady_positions
from tests.fakes.steps import Bench, generate

FIRST = 64
LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 3.0, 4.0, 5.0],
    "original_max_position_embeddings": FIRST,
}
TINY: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "max_position_embeddings": 192,
    "original_max_position_embeddings": FIRST,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "bos_token_id": 1,
}
SHORT = [[3, 14, 15, 92, 65], list(range(20, 60))]
LONG = [[(17 * n + 5) % 128 for n in range(150)], [(7 * n + 3) % 128 for n in range(90)]]


def phi3(folder: Path) -> PreTrainedModel:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(Phi3Config(**TINY, rope_parameters=dict(LONGROPE))).save_pretrained(folder)
    made: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    return made.eval()


def cosines(model: PreTrainedModel, *positions: int) -> torch.Tensor:
    """Of position 1, beside others."""
    rotary: Any = model.model.rotary_emb
    found: torch.Tensor = rotary(torch.zeros(1, 1), torch.tensor([[1, *positions]]))[0][:, :1]
    return found.clone()


def test_only_frequencies_that_change_have_a_limit() -> None:
    assert steady_positions(Phi3Config(**TINY, rope_parameters=dict(LONGROPE))) == FIRST
    assert steady_positions(Phi3Config(**TINY)) is None
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    assert steady_positions(LlamaConfig(rope_parameters=dynamic)) is None
    assert steady_positions(object()) is None


def test_a_long_context_has_the_long_frequencies_for_every_text(tmp_path: Path) -> None:
    model = phi3(tmp_path)
    short, long = cosines(model), cosines(model, FIRST)
    assert not torch.equal(short, long)
    settle(model, FIRST)
    assert torch.equal(cosines(model), short)
    settle(model, FIRST + 1)
    assert torch.equal(cosines(model), long)
    assert torch.equal(cosines(model, FIRST), long)


def test_frequencies_that_cannot_be_settled_are_refused() -> None:
    # It has a scale beside them that goes by the length, too.
    told = {**LONGROPE, "short_mscale": 1.0, "long_mscale": 1.2}
    config = PhimoeConfig(**TINY, num_local_experts=2, num_experts_per_tok=1, rope_parameters=told)
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(UnsteadyRotaryError, match="PhimoeRotaryEmbedding turns positions by the length of the text"):
        settle(model, FIRST + 1)


def test_layers_of_several_kinds_are_refused_where_one_of_them_changes(tiny_model: PreTrainedModel) -> None:
    tiny_model.config.rope_parameters = {"full_attention": dict(LONGROPE), "sliding_attention": {}}
    tiny_model.model.rotary_emb.rope_type = {"full_attention": "longrope", "sliding_attention": "default"}
    with pytest.raises(UnsteadyRotaryError, match="kinds of layers"):
        settle(tiny_model, FIRST + 1)


def test_a_context_keeps_to_the_first_frequencies_unless_it_is_told_otherwise(
    tmp_path: Path, engine_config: Callable[..., EngineConfig]
) -> None:
    stock = phi3(tmp_path)
    loaded = loader.load(engine_config(model_path=str(tmp_path)))
    assert (loaded.tier.name, loaded.max_context) == ("packed", FIRST)
    assert Bench(loaded).answers(SHORT) == [generate(stock, prompt)[0] for prompt in SHORT]


def test_in_a_long_context_no_neighbour_changes_an_answer(
    tmp_path: Path, engine_config: Callable[..., EngineConfig]
) -> None:
    stock = phi3(tmp_path)
    loaded = loader.load(engine_config(model_path=str(tmp_path), max_context=192))
    assert (loaded.tier.name, loaded.max_context) == ("packed", 192)
    together = Bench(loaded, budget=50).answers(SHORT + LONG)
    assert together == [Bench(loaded).answers([prompt])[0] for prompt in SHORT + LONG]
    # A text that is long from the start has the long frequencies in Transformers, too.
    assert together[len(SHORT) :] == [generate(stock, prompt)[0] for prompt in LONG]
    settle(stock, 192)
    assert together == [generate(stock, prompt)[0] for prompt in SHORT + LONG]


def test_a_model_that_cannot_be_settled_is_refused_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, engine_config: Callable[..., EngineConfig]
) -> None:
    def unsteady(*_: object) -> None:
        raise UnsteadyRotaryError("it turns")

    monkeypatch.setattr(loader.rotary, "settle", unsteady)
    with pytest.raises(ModelUnusableError, match="choose a smaller max_context: it turns"):
        loader.load(engine_config())
