"""What a layer sees is read off the masks that the model makes for it, or the model is refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, BertConfig, BertLMHeadModel, PreTrainedModel
from transformers.masking_utils import (
    bidirectional_mask_function,
    blockwise_overlay,
    causal_mask_function,
    chunked_causal_mask_function,
    or_masks,
    sliding_window_causal_mask_function,
)

from sidecar.engine.sight import FULL, Sight, UnsupportedAttentionError, learn, sight_of
from tests.fakes.families import FAMILIES, VOCABULARY

MaskFunction = Callable[..., torch.Tensor]


def chunked(size: int) -> MaskFunction:
    made: MaskFunction = chunked_causal_mask_function(size, torch.zeros(1, dtype=torch.long))
    return made


def shown(function: MaskFunction, tokens: int) -> torch.Tensor:
    """All that a mask shows, `[query, key]`."""
    at = torch.arange(tokens)
    zero = torch.zeros(1, 1, 1, 1, dtype=torch.long)
    return function(zero, zero, at.view(1, 1, -1, 1), at.view(1, 1, 1, -1)).view(tokens, tokens)


@pytest.mark.parametrize("tokens", [1, 2, 9, 300, 100_000])
def test_a_causal_mask_shows_all_that_came_before(tokens: int) -> None:
    assert sight_of(causal_mask_function, tokens) == FULL


def test_a_window_and_a_chunk_are_told_apart() -> None:
    assert sight_of(sliding_window_causal_mask_function(60), 192) == Sight(window=60)
    assert sight_of(chunked(60), 192) == Sight(chunk=60)
    assert sight_of(sliding_window_causal_mask_function(8192), 131_072) == Sight(window=8192)
    assert sight_of(chunked(8192), 131_072) == Sight(chunk=8192)
    # What reaches beyond the context hides nothing.
    assert sight_of(sliding_window_causal_mask_function(192), 192) == FULL


@given(st.integers(1, 70), st.integers(1, 60), st.booleans())
def test_what_was_read_off_shows_what_the_mask_shows(
    tokens: int, size: int, window: bool
) -> None:  # hypothesis gives it
    function = sliding_window_causal_mask_function(size) if window else chunked(size)
    at = torch.arange(tokens)
    assert torch.equal(sight_of(function, tokens).seen(at[:, None], at), shown(function, tokens))


@pytest.mark.parametrize(
    "function",
    [
        bidirectional_mask_function,
        or_masks(causal_mask_function, blockwise_overlay((torch.arange(50) // 10)[None])),
        lambda _batch, _head, query, key: (key <= query) & ((query - key) % 3 < 2),
    ],
    ids=["both ways", "both ways within blocks", "with holes"],
)
def test_another_mask_is_refused(function: MaskFunction) -> None:
    with pytest.raises(UnsupportedAttentionError, match="hides tokens"):
        sight_of(function, 50)


def stock(name: str) -> PreTrainedModel:
    (family,) = (family for family in FAMILIES if family.name == name)
    torch.manual_seed(1)
    made: PreTrainedModel = AutoModelForCausalLM.from_config(family.config(), attn_implementation="eager")
    return made.eval()


def by_layer(model: PreTrainedModel, tokens: int = 192) -> list[Sight]:
    found: dict[Any, Sight] = {**learn(model, tokens)}
    return [sight for _, sight in sorted((module.layer_idx, sight) for module, sight in found.items())]


def test_each_layer_has_its_own_sight() -> None:
    assert by_layer(stock("llama")) == [FULL] * 3
    assert by_layer(stock("mistral with a sliding window")) == [Sight(window=9)] * 3
    assert by_layer(stock("gemma2 with soft caps")) == [Sight(window=9), FULL, Sight(window=9)]
    assert by_layer(stock("llama4")) == [*[Sight(chunk=16)] * 3, FULL]


def test_a_window_that_is_only_in_the_mask_is_found() -> None:
    assert by_layer(stock("qwen2-moe with a window")) == [Sight(window=60), FULL, FULL]


def test_a_model_is_left_as_it_was() -> None:
    model = stock("llama4")
    ids = torch.arange(VOCABULARY)[None, 20:60]
    with torch.inference_mode():
        before = model(ids).logits
        learn(model, 192)
        assert torch.equal(model(ids).logits, before)
    assert model.config._attn_implementation == "eager"
    assert not [name for module in model.modules() for name in vars(module) if name.startswith("step")]


def test_a_model_that_sees_what_comes_later_is_refused_and_left_as_it_was() -> None:
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    model = BertLMHeadModel._from_config(config, attn_implementation="eager").eval()
    with pytest.raises(UnsupportedAttentionError):
        learn(model, 50)
    assert model.config._attn_implementation == "eager"


def test_a_model_that_makes_its_own_mask_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = stock("llama")
    attention = model.model.layers[1].self_attn
    forward = attention.forward
    monkeypatch.setattr(
        attention, "forward", lambda **told: forward(**{**told, "attention_mask": torch.zeros(1, 1, 2, 2)})
    )
    with pytest.raises(UnsupportedAttentionError, match="LlamaAttention attends without a causal mask, or"):
        learn(model, 50)
