"""What needs a GPU: skipped without one. `python -m pytest tests/gpu` on a machine that has it."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from sidecar.engine.config import EngineConfig
from tests.fakes import engine_config as configs
from tests.fakes import tiny
from tests.fakes.served import Served, starter

REASON = f"needs a GPU: PyTorch {torch.__version__} finds none"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder; a library's warning about a GPU that it does not know proves nothing wrong."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker("e2e")
            item.add_marker(pytest.mark.timeout(300))
            item.add_marker(pytest.mark.filterwarnings("default"))
            item.add_marker(pytest.mark.skipif(not torch.cuda.is_available(), reason=REASON))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a tokenizer, in a folder."""
    return tiny.build(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def serve(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Served]]:
    """See `starter`; what it starts is ended after the module."""
    with starter(tiny_folder, lambda: tmp_path_factory.mktemp("g")) as start:
        yield start


@pytest.fixture
def engine_config(tiny_folder: Path, tmp_path: Path) -> Callable[..., EngineConfig]:
    gpu = {"device": "cuda", "max_sequences": 64, "step_token_budget": 512, "kv_tokens": 8000}
    return partial(configs.engine_config, tiny_folder, tmp_path / "slots", **gpu)
