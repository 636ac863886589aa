"""Rotary embeddings whose frequencies depend on how long the text is, made to depend on nothing.

Phi-3's long versions have two sets of frequencies (LongRoPE, arXiv 2402.13753), and Transformers takes the set by the
highest position in a forward: a long neighbour would turn a short sequence, and a sequence that grows would not fit
its own cache. Up to the length where the sets change, nothing needs to be done; a longer context has the long set for
every text, as vLLM has it.
"""

from typing import Any, Final

import torch
from transformers import PreTrainedModel

_CHANGING: Final = "longrope"


class UnsteadyRotaryError(Exception):
    """The model turns positions by the length of the text, and cannot be told not to."""


def steady_positions(config: Any) -> int | None:
    """How many positions the model has before it changes its frequencies; None if it never does.

    `config` is a text model's. With `rope_type` dynamic the change comes after `max_position_embeddings`.
    """
    told = getattr(config, "rope_parameters", None) or {}
    limits = [
        part.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
        for part in (told, *told.values())
        if isinstance(part, dict) and part.get("rope_type") == _CHANGING
    ]
    return min((int(limit) for limit in limits if limit), default=None)


@torch.inference_mode()
def settle(model: PreTrainedModel, context: int) -> None:
    """Take the frequencies of a context of so many tokens for good. Raises UnsteadyRotaryError."""
    limit = steady_positions(model.config.get_text_config())
    if limit is None or context <= limit:
        return
    for module in model.modules():
        rotary: Any = module
        kind = getattr(module, "rope_type", None)
        if isinstance(kind, dict) and _CHANGING in kind.values():
            raise UnsteadyRotaryError("kinds of layers have frequencies of their own that depend on the text's length")
        if kind == _CHANGING:
            # The module itself changes over, and is not asked again.
            _cosines(rotary, limit)
            rotary.rope_type = f"{_CHANGING}, long"
            if not torch.equal(_cosines(rotary), _cosines(rotary, limit)):
                raise UnsteadyRotaryError(f"{type(module).__name__} turns positions by the length of the text")


def _cosines(rotary: Any, *others: int) -> torch.Tensor:
    """Of position 1, beside other positions."""
    # On its device: it keeps the frequencies where it is asked for them.
    device = rotary.inv_freq.device
    asked = torch.tensor([[1, *others]], device=device)
    cosines: torch.Tensor = rotary(torch.zeros(1, 1, device=device), asked)[0][:, :1]
    return cosines
