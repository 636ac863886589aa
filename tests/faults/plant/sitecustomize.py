"""Plants faults in an engine process whose PYTHONPATH has this folder; what a step does depends on its prompts.

A cursed token raises. A slow one takes its time, so that what streams is still there when the test gets to it,
however busy the machine is. Python imports a module of this name by itself at start.
"""

import sys
import time
from typing import Any

CURSED = 66
SLOW = 67
SLOW_STEP_S = 0.02

if "sidecar.engine" in sys.orig_argv:
    from sidecar.engine.model_runner import ModelRunner

    _run = ModelRunner.run

    def run(self: ModelRunner, batch: Any) -> Any:
        tokens = {token for chunk in batch.chunks for token in chunk.sequence.submit.prompt_ids}
        if CURSED in tokens:
            raise RuntimeError("planted")
        if SLOW in tokens:
            time.sleep(SLOW_STEP_S)
        return _run(self, batch)

    ModelRunner.run = run  # type: ignore[method-assign]  # that is the plant
