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
    BloomConfig,
    BloomForCausalLM,
    GraniteConfig,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.llama import modeling_llama

from sidecar.engine import attention, fused_layer, loader
from sidecar.engine.config import EngineConfig
from sidecar.engine.loader import Loaded, ModelUnusableError, fingerprint
from sidecar.engine.norms import use_native_norms
from sidecar.engine.scheduler import Scheduler
from sidecar.engine.sequence import Phase, Sequence
from sidecar.engine.slot_pool import SlotPool
from sidecar.wire.frames import Sampling, Submit

NEW_TOKENS = 12
PROMPTS = [
    [3, 14, 15, 92, 65],
    [35] * 3 + list(range(20, 60)),
    [7],
    list(range(100, 119)),
    [9, 8, 7, 6, 5, 4, 3, 9, 8, 7],
]


def run(
    loaded: Loaded, prompts: list[list[int]], budget: int, capacity: int = 600, speculation: int = 0
) -> list[list[int]]:
    """Greedy answers, all prompts at once."""
    scheduler = Scheduler(SlotPool(8, capacity, loaded.runner.forward.release), budget, speculation=speculation)
    made = [
        Sequence(Submit(str(n), 0, prompt, NEW_TOKENS, Sampling(temperature=0), []), arrival=n, record=n)
        for n, prompt in enumerate(prompts)
    ]
    for sequence in made:
        scheduler.add(sequence)
    while scheduler.has_work:
        batch = scheduler.schedule()
        for outcome in loaded.runner.run(batch).outcomes:
            assert not outcome.failed
            sequence = outcome.chunk.sequence
            scheduler.computed(outcome.chunk, len(outcome.tokens))
            for token in outcome.tokens:
                if sequence.phase is not Phase.ENDED:
                    sequence.append(token)
            if sequence.phase is Phase.ENDED:
                scheduler.retire(sequence)
    return [sequence.tokens[sequence.prompt_tokens :] for sequence in made]


@torch.inference_mode()
def generate(model: PreTrainedModel, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    found: list[int] = out[0, len(prompt) :].tolist()
    return found


def test_answers_are_those_of_generate(tiny_model: PreTrainedModel, engine_config: Callable[..., EngineConfig]) -> None:
    wanted = [generate(tiny_model, prompt) for prompt in PROMPTS]
    assert len({token for answer in wanted for token in answer}) >= 8
    loaded = loader.load(engine_config())
    assert loaded.parity < 1e-3
    for budget in (7, 16, 200):
        assert run(loaded, PROMPTS, budget) == wanted
    assert [run(loaded, [prompt], 16)[0] for prompt in PROMPTS] == wanted
    assert run(loaded, PROMPTS, 200, speculation=4) == wanted


def test_a_preempted_sequence_gives_the_same_answer(
    tiny_model: PreTrainedModel, engine_config: Callable[..., EngineConfig]
) -> None:
    loaded = loader.load(engine_config())
    assert run(loaded, PROMPTS, 16, capacity=70) == [generate(tiny_model, prompt) for prompt in PROMPTS]


def test_a_sliding_window_is_kept(tmp_path: Path, engine_config: Callable[..., EngineConfig]) -> None:
    torch.manual_seed(1)
    config = MistralConfig(
        vocab_size=120,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=6,
        max_position_embeddings=128,
        initializer_range=0.4,
    )
    stock = MistralForCausalLM(config).eval()
    stock.save_pretrained(tmp_path / "model")
    prompts = [[token % 120 for token in prompt] for prompt in PROMPTS]
    wanted = [generate(stock, prompt) for prompt in prompts]
    assert len({token for answer in wanted for token in answer}) >= 8
    loaded = loader.load(engine_config(model_path=str(tmp_path / "model")))
    assert run(loaded, prompts, 16) == wanted


def test_int8_does_not_depend_on_the_batch(engine_config: Callable[..., EngineConfig]) -> None:
    loaded = loader.load(engine_config(precision="int8"))
    together = run(loaded, PROMPTS, 200)
    assert [run(loaded, [prompt], 200)[0] for prompt in PROMPTS] == together
    assert loaded.weights_bytes < loader.load(engine_config()).weights_bytes


def test_an_attention_that_is_not_ours_to_compute_is_refused(
    tmp_path: Path, engine_config: Callable[..., EngineConfig]
) -> None:
    BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4)).save_pretrained(
        tmp_path / "model"
    )
    with pytest.raises(ModelUnusableError, match="does not use Transformers' attention interface"):
        loader.load(engine_config(model_path=str(tmp_path / "model")))


def test_a_planted_mistake_does_not_load(
    monkeypatch: pytest.MonkeyPatch, engine_config: Callable[..., EngineConfig]
) -> None:
    attend_rows = attention.attend_rows

    def wrong(*args: Any) -> torch.Tensor:
        *before, scoring, sight = args
        return attend_rows(*before, replace(scoring, scale=scoring.scale * 1.05), sight)

    monkeypatch.setattr(attention, "attend_rows", wrong)
    monkeypatch.setattr(fused_layer, "attend_rows", wrong)
    with pytest.raises(ModelUnusableError, match="log-probabilities differ"):
        loader.load(engine_config())


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
    wanted = [generate(stock, prompt) for prompt in prompts]
    loaded = loader.load(engine_config(model_path=str(tmp_path / "model")))
    assert loaded.fused == fused
    assert run(loaded, prompts, 16) == wanted


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
    assert fingerprint(copy, "fp32") == fingerprint(tiny_folder, "fp32") != fingerprint(tiny_folder, "int8")
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert fingerprint(copy, "fp32") != fingerprint(tiny_folder, "fp32")
    assert json.loads((copy / "config.json").read_text())["model_type"] == "llama"
