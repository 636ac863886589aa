"""Which earlier tokens an attention layer sees, learnt from the masks that the model itself makes.

Masks are not built in a step. What a layer hides may be in its mask and nowhere else: Qwen2-MoE's window is no argument
of its attention. So the model runs once, on two tokens, with functions in the place of its masks and of its attention:
each layer notes which mask it was handed, and what that mask hides is read off it, as far as the context reaches.
A prompt of the parity probe is shorter than most windows, so it would not notice one that was missed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import causal_mask_function

_NAME: Final = "tollhouse_look"


class UnsupportedAttentionError(Exception):
    """The model's attention needs something that this tier does not compute."""


@dataclass(frozen=True, slots=True)
class Sight:
    """Which earlier tokens a query sees: the last `window`, those of its own `chunk`; None for all."""

    window: int | None = None
    chunk: int | None = None

    def seen(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """bool: whether a query sees a key, by their positions, which broadcast."""
        seen = keys <= queries
        if self.window is not None:
            seen = seen & (keys > queries - self.window)
        if self.chunk is not None:
            seen = seen & (keys // self.chunk == queries // self.chunk)
        return seen


FULL: Final = Sight()


def additive(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A mask to add to scores: 0 where a key is seen and -inf where not."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))


@dataclass(frozen=True, slots=True)
class Mask:
    """In the place of a mask: `function(batch, head, query, key)` says whether a query sees a key, by their positions.

    All are int64 tensors that broadcast; so Transformers has it (masking_utils.py).
    """

    function: Callable[..., torch.Tensor]


def learn(model: PreTrainedModel, tokens: int) -> dict[torch.nn.Module, Sight]:
    """What each attention layer sees of up to `tokens` tokens. The model is left as it was.

    Raises UnsupportedAttentionError if no `Sight` says it, and what the model raises.
    """
    # Transformers' registries are global; what is put there holds no state.
    AttentionInterface.register(_NAME, _look)
    AttentionMaskInterface.register(_NAME, _mask)
    before = model.config._attn_implementation  # noqa: SLF001  # no public name
    model.set_attn_implementation(_NAME)
    two = torch.arange(2, device=model.device)[None]
    try:
        with torch.inference_mode():
            model(input_ids=two, position_ids=two, use_cache=False)
    finally:
        model.set_attn_implementation(before)
        handed = {module: mask for module in model.modules() if (mask := module.__dict__.pop("step_mask", None))}
    known: dict[Mask, Sight] = {}
    for mask in handed.values():
        if mask not in known:
            known[mask] = sight_of(mask.function, tokens, model.device)
    return {module: known[mask] for module, mask in handed.items()}


def sight_of(function: Callable[..., torch.Tensor], tokens: int, device: torch.device | str = "cpu") -> Sight:
    """What a mask's function shows of `tokens` tokens. Raises UnsupportedAttentionError.

    `device`: where the model is, since what a mask is made of may be there.
    """
    keys = torch.arange(tokens, device=device)

    def row(query: int) -> torch.Tensor:
        at = torch.zeros(4, 1, 1, 1, 1, dtype=torch.long, device=device)
        at[2] = query
        return function(at[0], at[1], at[2], keys.view(1, 1, 1, -1)).broadcast_to(1, 1, 1, tokens).view(-1)

    def first(query: int) -> int:
        return int(row(query).int().argmax())

    last = tokens - 1
    start = first(last)
    candidates = [Sight()] if start == 0 else [Sight(window=tokens - start), Sight(chunk=start - first(start - 1))]
    queries = {0, 1, max(0, start - 1), start, start + 1, last // 3, last // 2, last - 1, last}
    rows = {query: row(query) for query in queries if 0 <= query <= last}
    for sight in candidates:
        if all(torch.equal(sight.seen(torch.tensor(query, device=device), keys), seen) for query, seen in rows.items()):
            return sight
    raise UnsupportedAttentionError("the model hides tokens from each other in a way that is not computed here")


def _look(  # the signature is Transformers'
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,  # noqa: ARG001  # as above
    value: torch.Tensor,
    attention_mask: object = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """In the place of attention: note the mask on the module, and give zeros `[1, T, heads, head_dim]`."""
    noted: Any = module
    causal = kwargs.get("is_causal")
    if attention_mask is None and (getattr(module, "is_causal", True) if causal is None else causal):
        noted.step_mask = Mask(causal_mask_function)
    elif isinstance(attention_mask, Mask):
        noted.step_mask = attention_mask
    else:
        raise UnsupportedAttentionError(f"{type(module).__name__} attends without a causal mask, or with its own")
    return value.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[-1]), None


def _mask(*_: object, mask_function: Callable[..., torch.Tensor], **__: object) -> Mask:
    """Transformers' mask function, made a record."""
    return Mask(mask_function)
