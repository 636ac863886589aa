"""What the engine process does before there is an engine."""

import subprocess
import sys

from sidecar.engine.__main__ import openmp_settings


def test_threads_are_bound_only_where_each_processor_has_one() -> None:
    bound = {"GOMP_SPINCOUNT": "20000", "OMP_PLACES": "cores", "OMP_PROC_BIND": "close"}
    assert openmp_settings(None, 8) == openmp_settings(8, 8) == bound
    assert openmp_settings(2, 8) == {"GOMP_SPINCOUNT": "20000"}


def test_a_command_line_without_a_configuration_is_refused() -> None:
    done = subprocess.run([sys.executable, "-m", "sidecar.engine"], capture_output=True, check=False, text=True)
    assert done.returncode == 2
    assert "--fd" in done.stderr
