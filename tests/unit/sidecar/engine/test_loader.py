"""A loaded model gives what `generate` gives, alone and in company, whole and in chunks; a wrong one does not load."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GraniteConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.llama import modeling_llama

from proxy.cli.loadbar import PHASES
from sidecar.engine import loader, parity
from sidecar.engine.config import EngineConfig
from sidecar.engine.loader import ModelUnusableError, fingerprint
from sidecar.engine.norms import use_native_norms
from sidecar.engine.slot_attention import SlotContext
from sidecar.wire.frames import Sampling
from tests.fakes.families import FAMILIES, build
from tests.fakes.steps import Bench, generate

PROMPTS = [
    [3, 14, 15, 92, 65],
    [35] * 3 + list(range(20, 60)),
    [7],
    list(range(100, 119)),
    [9, 8, 7, 6, 5, 4, 3, 9, 8, 7],
]


def answers(model: PreTrainedModel, prompts: list[list[int]] | None = None) -> list[list[int]]:
    return [generate(model, prompt)[0] for prompt in prompts or PROMPTS]


def test_answers_are_those_of_generate(tiny_model: PreTrainedModel, engine_config: Callable[..., EngineConfig]) -> None:
    wanted = answers(tiny_model)
    loaded = loader.load(engine_config())
    assert (loaded.tier.name, loaded.tier.fused, loaded.tier.steps_down) == ("packed", True, ())
    assert loaded.parity < 1e-3
    for budget in (7, 16, 200):
        assert Bench(loaded, budget=budget).answers(PROMPTS) == wanted
    assert [Bench(loaded).answers([prompt])[0] for prompt in PROMPTS] == wanted


def test_each_phase_of_a_load_is_told_as_it_begins(engine_config: Callable[..., EngineConfig]) -> None:
    begun: list[str] = []
    loaded = loader.load(engine_config(), begun.append)
    assert begun == ["read", "reference", "parity", "pack", "warm"]
    assert set(begun) == set(loaded.seconds) == set(PHASES)


def test_guesses_are_kept_where_they_are_right_and_never_change_an_answer(
    engine_config: Callable[..., EngineConfig],
) -> None:
    loaded = loader.load(engine_config())
    repeating = Sampling(temperature=1, seed=3, logit_bias={7: 60.0, 9: 60.0})
    # What may be picked changes in the midst of guesses.
    holding = Sampling(temperature=1, logit_bias={7: 90.0, 9: 60.0}, min_tokens=9, end_token_ids=[7])
    breaking = Sampling(temperature=1, logit_bias={7: 90.0, 9: 60.0}, bad_words=[[7, 7, 7]])
    for how in (repeating, breaking, holding):
        plain, guessing = Bench(loaded, budget=64), Bench(loaded, budget=64, speculation=4)
        (answer,) = guessing.answers(PROMPTS[:1], how)
        assert [answer] == plain.answers(PROMPTS[:1], how)
        assert guessing.accepted > 0
        assert plain.drafted == 0
    assert answer == [9] * 9 + [7] * 3


def test_int8_does_not_depend_on_the_batch(engine_config: Callable[..., EngineConfig]) -> None:
    loaded = loader.load(engine_config(precision="int8"))
    sampling = Sampling(temperature=1, seed=7)
    for how in (Sampling(temperature=0), sampling):
        together = Bench(loaded, budget=200).answers(PROMPTS, how)
        assert [Bench(loaded, budget=200).answers([prompt], how)[0] for prompt in PROMPTS] == together
        assert Bench(loaded, budget=200, speculation=4).answers(PROMPTS[:1], how) == together[:1]
    assert loaded.weights_bytes < loader.load(engine_config()).weights_bytes


def wrong_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant a mistake in our attention: five per cent too much."""
    attend = SlotContext.attend

    def wrong(*args: Any) -> torch.Tensor:
        *before, scoring, sight = args
        return attend(*before, replace(scoring, scale=scoring.scale * 1.05), sight)

    monkeypatch.setattr(SlotContext, "attend", wrong)


def test_a_wrong_attention_steps_down_and_the_answers_stay_right(
    monkeypatch: pytest.MonkeyPatch, tiny_model: PreTrainedModel, engine_config: Callable[..., EngineConfig]
) -> None:
    wrong_scale(monkeypatch)
    loaded = loader.load(engine_config())
    assert loaded.tier.name == "rows"
    assert [reason.split(":")[0] for reason in loaded.tier.steps_down] == [
        "packed with our attention",
        "packed with the model's own layers",
    ]
    assert all("log-probabilities differ" in reason for reason in loaded.tier.steps_down)
    assert Bench(loaded).answers(PROMPTS) == answers(tiny_model)
    ready = loader.report(loaded, engine_config(), 10)
    assert (ready.tier, len(ready.steps_down)) == ("rows", 2)


def test_a_tier_can_be_told(tiny_model: PreTrainedModel, engine_config: Callable[..., EngineConfig]) -> None:
    for tier in ("rows", "sequential"):
        loaded = loader.load(engine_config(tier=tier))
        assert loaded.tier.name == tier
        assert Bench(loaded).answers(PROMPTS) == answers(tiny_model)


def test_a_model_that_is_wrong_on_every_tier_is_not_served(
    monkeypatch: pytest.MonkeyPatch, engine_config: Callable[..., EngineConfig]
) -> None:
    monkeypatch.setitem(parity.TOLERANCES, "float32", -1.0)
    with pytest.raises(
        ModelUnusableError, match=r"wrong answers on every tier: packed with our attention: .* no cache"
    ):
        loader.load(engine_config())


def test_weights_that_cannot_be_packed_stay_as_they_came(
    tmp_path: Path, engine_config: Callable[..., EngineConfig]
) -> None:
    (mamba,) = (family for family in FAMILIES if family.name == "mamba")
    stock = build(mamba, tmp_path)
    loaded = loader.load(engine_config(model_path=str(tmp_path)))
    assert "weights are not packed" in loaded.tier.steps_down[-1]
    assert Bench(loaded).answers(PROMPTS) == answers(stock, [[token % 128 for token in prompt] for prompt in PROMPTS])
    with pytest.raises(ModelUnusableError, match="precision int8 does not fit this model"):
        loader.load(engine_config(model_path=str(tmp_path), precision="int8"))


TINY: dict[str, Any] = {
    "vocab_size": 120,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.4,
}


@pytest.mark.parametrize(
    ("config", "fused"),
    [
        (Qwen2Config(**TINY), True),
        # It scales what a layer adds, which no look at its parts tells: only the probe finds out.
        (GraniteConfig(**TINY, residual_multiplier=0.7, attention_multiplier=0.2), False),
        (Qwen3Config(**TINY, head_dim=8), False),
    ],
    ids=["qwen2, with biases", "granite, scaled", "qwen3, with norms in its attention"],
)
def test_fused_layers_stay_where_the_probe_agrees(
    tmp_path: Path, engine_config: Callable[..., EngineConfig], config: PreTrainedConfig, fused: bool
) -> None:
    torch.manual_seed(2)
    stock = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in stock.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    stock.save_pretrained(tmp_path / "model")
    prompts = [[token % 120 for token in prompt] for prompt in PROMPTS]
    loaded = loader.load(engine_config(model_path=str(tmp_path / "model")))
    assert loaded.tier.fused == fused
    assert loaded.tier.name == "packed"
    assert Bench(loaded).answers(prompts) == answers(stock, prompts)


def test_norms_are_replaced_only_where_they_agree(tiny_model: PreTrainedModel) -> None:
    norms = [module for module in tiny_model.modules() if isinstance(module, modeling_llama.LlamaRMSNorm)]
    odd = norms[0]
    monkeyed = odd.forward
    odd.forward = lambda x: monkeyed(x) * 1.01  # type: ignore[method-assign]  # a norm with a formula of its own
    use_native_norms(tiny_model)
    left = [module for module in tiny_model.modules() if isinstance(module, modeling_llama.LlamaRMSNorm)]
    assert left == [odd]
    assert len(norms) == 7


def test_a_context_beyond_the_models_positions_is_refused(engine_config: Callable[..., EngineConfig]) -> None:
    with pytest.raises(ModelUnusableError, match="the model has 256 positions"):
        loader.load(engine_config(max_context=257))
    assert loader.load(engine_config(max_context=99)).max_context == 99


def test_a_context_is_no_larger_than_the_cache(engine_config: Callable[..., EngineConfig]) -> None:
    loaded = loader.load(engine_config(kv_tokens=50))
    assert (loaded.capacity_tokens, loaded.max_context) == (50, 50)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path, engine_config: Callable[..., EngineConfig]) -> None:
    with pytest.raises(ModelUnusableError, match="Transformers cannot load this model"):
        loader.load(engine_config(model_path=str(tmp_path)))


def test_a_fingerprint_tells_weights_and_precision(tiny_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_folder, copy)
    assert (
        fingerprint(copy, "fp32", "packed")
        == fingerprint(tiny_folder, "fp32", "packed")
        != fingerprint(tiny_folder, "int8", "packed")
    )
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert fingerprint(copy, "fp32", "packed") != fingerprint(tiny_folder, "fp32", "packed")
    assert json.loads((copy / "config.json").read_text())["model_type"] == "llama"


def test_a_gpu_that_is_not_there_is_refused(engine_config: Callable[..., EngineConfig]) -> None:
    with pytest.raises(ModelUnusableError, match="finds no GPU: take cpu"):
        loader.load(engine_config(device="cuda"))
