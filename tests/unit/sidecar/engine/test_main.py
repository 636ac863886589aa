"""What the engine process does before there is an engine."""

import subprocess
import sys
from collections.abc import Callable

import pytest

from sidecar.engine.__main__ import openmp_settings
from sidecar.engine.assembly import prefix_tokens
from sidecar.engine.config import EngineConfig


def test_threads_are_bound_only_where_each_processor_has_one() -> None:
    bound = {"GOMP_SPINCOUNT": "20000", "OMP_PLACES": "cores", "OMP_PROC_BIND": "close"}
    assert openmp_settings(None, 8) == openmp_settings(8, 8) == bound
    assert openmp_settings(2, 8) == {"GOMP_SPINCOUNT": "20000"}


@pytest.mark.parametrize(("told", "kept"), [(None, 250), (0, 0), (5000, 5000)])
def test_a_quarter_is_kept_of_prompts_unless_it_is_said_how_much(
    told: int | None, kept: int, engine_config: Callable[..., EngineConfig]
) -> None:
    assert prefix_tokens(engine_config(prefix_tokens=told), 1000) == kept


def test_a_command_line_without_a_configuration_is_refused() -> None:
    done = subprocess.run([sys.executable, "-m", "sidecar.engine"], capture_output=True, check=False, text=True)
    assert done.returncode == 2
    assert "--fd" in done.stderr
