"""A tiny random LLaMA whose greedy output varies, and what runs it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedModel

from sidecar.engine.config import EngineConfig
from tests.fakes import engine_config as configs
from tests.fakes import tiny

VOCABULARY = 160

# Threads that wait for each other on a busy machine take twenty times as long over tensors as small as these.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder, of `tests.fakes.tiny`'s LLaMA."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny.llama(VOCABULARY, 256, bos=1, eos=2).save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_model(tiny_folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = LlamaForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    return model.eval().requires_grad_(requires_grad=False)


@pytest.fixture
def engine_config(tiny_folder: Path, tmp_path: Path) -> Callable[..., EngineConfig]:
    return partial(configs.engine_config, tiny_folder, tmp_path / "slots")
