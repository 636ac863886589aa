"""What the engine process does before there is an engine."""

import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from sidecar.engine.__main__ import openmp_settings
from tests.fakes.engine_config import engine_config

CHAT = engine_config(Path("model"), Path("slots"))


@pytest.mark.parametrize("threads", [None, 8])
def test_threads_are_bound_where_a_chat_model_has_all_processors(threads: int | None) -> None:
    bound = {"GOMP_SPINCOUNT": "20000", "OMP_PLACES": "cores", "OMP_PROC_BIND": "close"}
    assert openmp_settings(replace(CHAT, threads=threads), 8) == bound


@pytest.mark.parametrize("other", [{"threads": 2}, {"device": "cuda"}, {"embeds": True}])
def test_the_threads_of_other_engines_are_not_bound(other: dict[str, object]) -> None:
    assert openmp_settings(replace(CHAT, **other), 8) == {"GOMP_SPINCOUNT": "20000"}


def test_a_command_line_without_a_configuration_is_refused() -> None:
    done = subprocess.run([sys.executable, "-m", "sidecar.engine"], capture_output=True, check=False, text=True)
    assert done.returncode == 2
    assert "--fd" in done.stderr
