"""The siege of `tests/faults`, with the default model: kill -9 of the sidecar, its engine and the proxy under load.

TOLLHOUSE_FAULTS_KILLS makes it as many, up to ten: a start takes its time.
"""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.faults.besieged import BIN, ENGINE, PROXY, SIDECAR, Besieged
from tests.faults.siege import besiege

MODEL = "smollm2-135m-instruct"
KILLS = min(10, int(os.environ.get("TOLLHOUSE_FAULTS_KILLS", "2")))


@pytest.mark.timeout(300 + 60 * KILLS)
async def test_f2_kills_with_the_default_model_charge_what_was_generated(
    model_folder: Path, tmp_path_factory: Any
) -> None:
    command = (BIN / "tollhouse-sidecar", "serve", "--config", "conf/sidecar.yaml")
    house = Besieged(tmp_path_factory.mktemp("k"), command, sidecar={"model": {"id": MODEL, "source": MODEL}})
    await besiege(house, [SIDECAR, ENGINE, PROXY], KILLS, MODEL, embedder="", pause_s=(5.0, 10.0))
