"""How an engine is put together from what it was told."""

from collections.abc import Callable

import pytest

from sidecar.engine.assembly import prefix_tokens
from sidecar.engine.config import EngineConfig


@pytest.mark.parametrize(("told", "kept"), [(None, 250), (0, 0), (5000, 5000)])
def test_a_quarter_is_kept_of_prompts_unless_it_is_said_how_much(
    told: int | None, kept: int, engine_config: Callable[..., EngineConfig]
) -> None:
    assert prefix_tokens(engine_config(prefix_tokens=told), 1000) == kept
