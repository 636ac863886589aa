"""Plants a fault in an engine process whose PYTHONPATH has this folder: a step with the cursed token in it raises.

Python imports a module of this name by itself at start.
"""

import sys
from typing import Any

CURSED = 66

if "sidecar.engine" in sys.orig_argv:
    from sidecar.engine.model_runner import ModelRunner

    _run = ModelRunner.run

    def run(self: ModelRunner, batch: Any) -> Any:
        if any(CURSED in chunk.sequence.submit.prompt_ids for chunk in batch.chunks):
            raise RuntimeError("planted")
        return _run(self, batch)

    ModelRunner.run = run  # type: ignore[method-assign]  # that is the plant
