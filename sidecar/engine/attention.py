"""Our attention, put into unmodified Transformers models through their attention interface.

What attention is told of a step comes from a `Context`, not from kwargs: `slot_attention` has the one for a CPU,
`paged_attention` the one for a GPU.
"""

from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

import torch
from transformers import AttentionInterface, PreTrainedModel

from sidecar.engine.batch import Batch
from sidecar.engine.sight import Sight, UnsupportedAttentionError, learn

NAME: Final = "tollhouse_slots"
# Arguments that change the result and are not computed here; a model that needs one must not run on this tier.
_REFUSED: Final = ("head_mask", "position_bias")


@dataclass(frozen=True, slots=True)
class Scoring:
    """How scores become weights: `scale` × the products, capped by `softcap × tanh(s / softcap)`, with `sinks`.

    Sinks, `[heads]`, are scores that take weight and give nothing (Xiao et al., arXiv 2309.17453; gpt-oss).
    """

    scale: float
    softcap: float | None = None
    sinks: torch.Tensor | None = None

    @property
    def plain(self) -> bool:
        return self.softcap is None and self.sinks is None


class Projected(NamedTuple):
    """What a layer makes of a step's tokens: queries `[T, heads, head_dim]`, keys and values `[T, kv_heads, head_dim]`.

    The values' head_dim may be another.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor


class Context(Protocol):
    """What attention is told of the step under way, and where its keys and values are.

    `positions`: int64 `[T]`, of each token of the step in its sequence.
    """

    @property
    def positions(self) -> torch.Tensor: ...
    def begin(self, batch: Batch, positions: torch.Tensor) -> None:
        """Start a step."""

    def attend(self, layer_idx: int, given: Projected, scoring: Scoring, sight: Sight) -> torch.Tensor:
        """Store keys and values, and give what the queries see, `[T, heads, head_dim]`."""


def install(model: PreTrainedModel, context: Context, tokens: int) -> None:
    """Make every attention layer of `model` use the cache of `context`, for sequences of up to `tokens` tokens.

    Raises UnsupportedAttentionError if the model does not go through the attention interface, or sees other tokens than
    a `Sight` can say. The model is then as it was.
    """
    if not getattr(model, "_supports_attention_backend", False):
        raise UnsupportedAttentionError(f"{type(model).__name__} does not use Transformers' attention interface")
    sights = learn(model, tokens)
    # Transformers' registry is global, and what we put there holds no state: a layer's context hangs on the layer.
    # No mask function is registered beside it, so Transformers makes no masks.
    AttentionInterface.register(NAME, attend)
    model.set_attn_implementation(NAME)
    for module, sight in sights.items():
        attention: Any = module
        attention.step_context = context
        attention.step_sight = sight
        attention.step_temperature = _take_temperature(module)


def _take_temperature(module: Any) -> tuple[float, float] | None:
    """Llama 4 scales queries by their position, which it takes from the row: switched off there, done in `attend`."""
    if not getattr(module, "attn_temperature_tuning", False) or getattr(module, "use_rope", True):
        return None
    module.attn_temperature_tuning = False
    return float(module.floor_scale), float(module.attn_scale)


def attend(  # noqa: PLR0917  # the signature is Transformers'
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001  # none is made
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention, as Transformers calls it.

    `query` is `[1, heads, T, head_dim]`, `key` and `value` are `[1, kv_heads, T, head_dim]`; the values' head_dim may
    be another. Gives `[1, T, heads, head_dim]`. Raises UnsupportedAttentionError for an argument in `_REFUSED`.
    """
    for name in _REFUSED:
        if kwargs.get(name) is not None:
            raise UnsupportedAttentionError(f"the model's attention uses {name!r}")
    told: Any = module
    given = Projected(*(x[0].transpose(0, 1) for x in (query, key, value)))
    if told.step_temperature is not None:
        by_position = _temperatures(told.step_context.positions, *told.step_temperature)[:, None, None]
        given = given._replace(queries=given.queries * by_position)
    scoring = Scoring(query.shape[-1] ** -0.5 if scaling is None else scaling, softcap, s_aux)
    seen: torch.Tensor = told.step_context.attend(told.layer_idx, given, scoring, told.step_sight)
    return seen[None], None


def _temperatures(positions: torch.Tensor, floor_scale: float, attn_scale: float) -> torch.Tensor:
    """What Llama 4 multiplies the queries of its layers without rotary embedding by (arXiv 2501.19399)."""
    return torch.log1p(torch.floor((positions.float() + 1) / floor_scale)) * attn_scale + 1


def weights_of(
    queries: torch.Tensor, keys: torch.Tensor, mask: torch.Tensor, scoring: Scoring, kv_heads: int
) -> torch.Tensor:
    """`queries` `[n, rows, head_dim]`, `keys` `[n, seen, head_dim]`, `mask` broadcast to `[n, rows, seen]`.

    `n` counts key heads, of one sequence after the other; `rows` the query heads of each, each with as many tokens.
    """
    if scoring.plain:
        return torch.baddbmm(mask, queries, keys.transpose(1, 2), alpha=scoring.scale).softmax(-1)
    scores = torch.bmm(queries, keys.transpose(1, 2)).mul_(scoring.scale)
    if scoring.softcap is not None:
        scores = scores.div_(scoring.softcap).tanh_().mul_(scoring.softcap)
    scores += mask
    if scoring.sinks is None:
        return scores.softmax(-1)
    sinks = scoring.sinks.to(scores.dtype).view(kv_heads, -1).repeat(scores.shape[0] // kv_heads, 1)
    sinks = sinks.repeat_interleave(scores.shape[1] // sinks.shape[1], 1)[..., None]
    return torch.cat([scores, sinks], -1).softmax(-1)[..., :-1]
