"""A sidecar alone, with a tiny model."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fakes import tiny
from tests.fakes.served import Served, starter


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder starts processes and reads their files."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker("e2e")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def serve(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Served]]:
    """See `starter`; what it starts is ended after the module."""
    with starter(tiny_folder, lambda: tmp_path_factory.mktemp("f")) as start:
        yield start
