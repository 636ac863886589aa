"""A tiny random LLaMA whose greedy output varies, and what runs it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from sidecar.engine.config import EngineConfig

VOCABULARY = 160

# Threads that wait for each other on a busy machine take twenty times as long over tensors as small as these.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: grouped query heads, three layers, tied output."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
    )
    folder = tmp_path_factory.mktemp("tiny")
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_model(tiny_folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = LlamaForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    return model.eval().requires_grad_(requires_grad=False)


@pytest.fixture
def engine_config(tiny_folder: Path, tmp_path: Path) -> Callable[..., EngineConfig]:
    def make(**changed: object) -> EngineConfig:
        told: dict[str, object] = {
            "model_path": str(tiny_folder),
            "slots_path": str(tmp_path / "slots"),
            "precision": "fp32",
            "device": "cpu",
            "max_sequences": 8,
            "step_token_budget": 16,
            "max_context": None,
            "kv_tokens": 600,
            "threads": None,
            **changed,
        }
        return EngineConfig(**told)  # type: ignore[arg-type]  # a test's shorthand

    return make
