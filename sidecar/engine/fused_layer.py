"""The decoder layer that most families share, written with as few operations as PyTorch allows.

A step of a small model is a thousand operations of some microseconds; Transformers' layer needs twice as many as this
one, which folds the norms' weights into the linears and turns queries and keys in one go. It takes the place of a layer
that looks as expected (LLaMA, Mistral, Qwen2 and their like). Whether it computes the same is not judged by looks: the
parity probe decides, and the loader goes back to the model's own layers if it says no.
"""

from typing import Any, Final

import torch
from torch import nn
from torch.nn.functional import silu
from transformers import PreTrainedModel
from typing_extensions import override

from sidecar.engine.attention import StepContext, attend_rows
from sidecar.engine.linears import PLAIN, is_plain, join
from sidecar.engine.norms import NativeNorm

_LAYER: Final = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION: Final = {"q_proj", "k_proj", "v_proj", "o_proj"}
_MLP: Final = {"gate_proj", "up_proj", "down_proj", "act_fn"}
_SILU: Final = {"SiLU", "SiLUActivation"}


class FusedLayer(nn.Module):
    """One layer, on packed rows. `layer` is the one it takes the weights of."""

    def __init__(self, layer: Any, context: StepContext) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        # A context is no module, and its tensors are no parameters.
        object.__setattr__(self, "_context", context)
        self._layer_idx = int(attention.layer_idx)
        self._head_dim = int(attention.head_dim)
        self._scaling = float(attention.scaling)
        self._eps = (layer.input_layernorm.eps, layer.post_attention_layernorm.eps)
        self._rotated = attention.q_proj.out_features + attention.k_proj.out_features
        self._heads = attention.q_proj.out_features // self._head_dim
        # A norm's weight goes into the linear behind it: `W (x × w) = (W × w) x`.
        self.qkv = join(
            [attention.q_proj, attention.k_proj, attention.v_proj], PLAIN, layer.input_layernorm.weight.detach()
        )
        self.out = join([attention.o_proj], PLAIN)
        self.gate_up = join([mlp.gate_proj, mlp.up_proj], PLAIN, layer.post_attention_layernorm.weight.detach())
        self.down = join([mlp.down_proj], PLAIN)

    @override
    def forward(
        self, hidden_states: torch.Tensor, position_embeddings: tuple[torch.Tensor, torch.Tensor], **_: object
    ) -> torch.Tensor:
        """`[1, T, hidden]` to `[1, T, hidden]`; the embeddings are cosines and sines, `[1, T, head_dim]`."""
        x = hidden_states[0]
        x = x + self.out.rows(self._attend(x, position_embeddings))
        gate, up = self.gate_up.rows(_normed(x, self._eps[1])).chunk(2, dim=-1)
        return (x + self.down.rows(silu(gate).mul_(up)))[None]

    def _attend(self, x: torch.Tensor, embeddings: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        context: Any = self._context
        cos, sin = context.rotary(embeddings)
        qkv = self.qkv.rows(_normed(x, self._eps[0]))
        tokens = x.shape[0]
        turning = qkv[:, : self._rotated].view(tokens, -1, self._head_dim)
        # Rotary embedding (Su et al., arXiv 2104.09864) on halves: the sine has its sign by half already.
        turned = torch.addcmul(turning * cos, turning.roll(self._head_dim // 2, -1), sin)
        values = qkv[:, self._rotated :].view(tokens, -1, self._head_dim)
        queries, keys = turned[:, : self._heads], turned[:, self._heads :]
        return attend_rows(context, self._layer_idx, queries, keys, values, self._scaling, None).view(tokens, -1)


def fuse(model: PreTrainedModel, context: StepContext) -> int:
    """Put fused layers in the place of those that look as expected, and say how many; the old ones are let go."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if getattr(config, "sliding_window", None) is not None or kinds != {"full_attention"}:
        return 0
    fused = 0
    for module in list(model.modules()):
        if isinstance(module, nn.ModuleList):
            for index, layer in enumerate(module):
                if looks_as_expected(layer):
                    module[index] = FusedLayer(layer, context)
                    fused += 1
    return fused


def looks_as_expected(layer: nn.Module) -> bool:
    """Whether a layer has the parts of a pre-norm decoder layer with a gated SiLU, and no others."""
    children = dict(layer.named_children())
    if set(children) != _LAYER:
        return False
    attention, mlp = dict(children["self_attn"].named_children()), dict(children["mlp"].named_children())
    linears = [*attention.values(), *(part for name, part in mlp.items() if name != "act_fn")]
    norms = (children["input_layernorm"], children["post_attention_layernorm"])
    return (
        set(attention) == _ATTENTION
        and set(mlp) == _MLP
        and all(is_plain(linear) for linear in linears)
        and all(isinstance(norm, NativeNorm) for norm in norms)
        and type(mlp["act_fn"]).__name__ in _SILU
        and all(hasattr(children["self_attn"], name) for name in ("layer_idx", "head_dim", "scaling"))
    )


def _normed(x: torch.Tensor, eps: float) -> torch.Tensor:
    """`x / sqrt(mean(x²) + eps)`, by row."""
    scale: torch.Tensor = torch.linalg.vecdot(x, x).mul_(1 / x.shape[-1]).add_(eps).rsqrt_()
    return x * scale[:, None]
