"""Plants a fault in an engine process whose PYTHONPATH has this folder: the GPU fails at the cursed token.

Python imports a module of this name by itself at start.
"""

import sys
from typing import Any

CURSED = 66

if "sidecar.engine" in sys.orig_argv:
    import torch

    from sidecar.engine.packed import PackedForward

    _logits = PackedForward.logits

    def logits(self: PackedForward, batch: Any) -> Any:
        given = _logits(self, batch)
        if any(CURSED in chunk.sequence.submit.prompt_ids for chunk in batch.chunks):
            # An index behind the end: CUDA says so when somebody next waits for it, and nothing works from there on.
            given = given + given.flatten()[torch.full((1,), given.numel() + 9, device=given.device)]
        return given

    PackedForward.logits = logits  # type: ignore[method-assign]  # that is the plant
