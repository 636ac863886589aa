"""The whole network around fused layers: embedding, rotary table, layers, last norm and output, and nothing between.

For models whose every layer is one that `fused_layer` knows and whose outside is LLaMA's. As with the layers, looks
only propose it; the parity probe decides.
"""

from typing import Any, Final

import torch
from torch import nn
from torch.nn.functional import embedding
from transformers import PreTrainedModel
from typing_extensions import override

from sidecar.engine.fused_layer import FusedLayer, looks_as_expected
from sidecar.engine.kernels import PLAIN, make_kernel, packed_bytes
from sidecar.engine.linears import is_plain
from sidecar.engine.norms import NativeNorm
from sidecar.engine.slot_attention import SlotContext

_OUTSIDE: Final = {"model", "lm_head"}
_INSIDE: Final = {"embed_tokens", "layers", "norm", "rotary_emb"}
# Rotary tables that depend on the length of the text cannot be made beforehand.
_CHANGING: Final = {"dynamic", "longrope"}


class FusedModel(nn.Module):
    """Packed rows to logits. Mutable: the kernels, packed once. `packed_bytes` is the output layer's."""

    def __init__(self, model: Any, context: SlotContext) -> None:
        super().__init__()
        inner = model.model
        self._embedding = inner.embed_tokens.weight
        self._eps = float(inner.norm.eps)
        self.layers = nn.ModuleList(FusedLayer(layer, context) for layer in inner.layers)
        self._turns = _rotary_table(inner, context.cache.context)
        weight = model.lm_head.weight.detach() * inner.norm.weight.detach()
        self.head = make_kernel(weight, model.lm_head.bias, PLAIN)
        self.packed_bytes = packed_bytes(weight, PLAIN)

    @override
    def forward(self, tokens: torch.Tensor, positions: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """Logits, fp32 `[kept, vocabulary]`, of the rows `keep`; all int64, tokens and positions `[T]`."""
        x = embedding(tokens, self._embedding)
        turns = self._turns[positions][:, None]
        for layer in self.layers:
            x = layer(x, turns)
        head: Any = self.head
        logits: torch.Tensor = head.normed(x if len(keep) == len(x) else x[keep], self._eps)
        return logits

    def repack(self, precision: str) -> None:
        """Pack the output layer; the layers are modules of their own."""
        kernel: Any = self.head
        self.packed_bytes = packed_bytes(kernel.weight, precision)
        self.head = make_kernel(kernel.weight, kernel.bias, precision)


def fuse(model: PreTrainedModel, context: SlotContext) -> FusedModel | None:
    """The model in its fused form, if it looks as expected; the model's own layers are let go."""
    if not _looks_as_expected(model):
        return None
    fused = FusedModel(model, context)
    inner: Any = model.model
    inner.layers = nn.ModuleList()
    return fused


def _looks_as_expected(model: PreTrainedModel) -> bool:
    if set(dict(model.named_children())) != _OUTSIDE or not is_plain(model.lm_head):
        return False
    inner = dict(model.model.named_children())
    return (
        set(inner) == _INSIDE
        and type(inner["embed_tokens"]) is nn.Embedding
        and inner["embed_tokens"].weight.dtype == torch.float32
        and inner["embed_tokens"].weight.device.type == "cpu"
        and isinstance(inner["norm"], NativeNorm)
        and getattr(inner["rotary_emb"], "rope_type", "default") not in _CHANGING
        and all(looks_as_expected(layer) for layer in model.model.layers)
    )


@torch.inference_mode()
def _rotary_table(inner: Any, context: int) -> torch.Tensor:
    """What a position turns by: complex64 `[context, head_dim / 2]`, from the model's own cosines and sines."""
    cos, sin = inner.rotary_emb(inner.embed_tokens.weight[:1, None], torch.arange(context)[None])
    half = cos.shape[-1] // 2
    return torch.complex(cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous())
