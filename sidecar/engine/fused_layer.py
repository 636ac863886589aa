"""The decoder layer that most families share, written with as few operations as PyTorch allows, for TorchScript.

A step of a small model is a thousand operations of some microseconds, and Python takes as long to call them as they
take; Transformers' layer needs twice as many. This one folds the norms' weights into the linears, turns queries and
keys in one go, and is compiled by TorchScript, which needs no compiler on the host and no time. It takes the place of a
layer that looks as expected (LLaMA, Mistral, Qwen2 and their like). Whether it computes the same is not judged by
looks: the parity probe decides, and the loader goes back to the model's own layers if it says no.
"""

import warnings
from typing import Any, Final

import torch
from torch import nn
from torch.nn.functional import silu
from typing_extensions import override

from sidecar.engine.attention import Projected, Scoring
from sidecar.engine.kernels import PLAIN, make_kernel, packed_bytes
from sidecar.engine.linears import is_plain, joined
from sidecar.engine.norms import NativeNorm
from sidecar.engine.sight import Sight
from sidecar.engine.slot_attention import Bags, SlotContext, weighted

_LAYER: Final = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION: Final = {"q_proj", "k_proj", "v_proj", "o_proj"}
_MLP: Final = {"gate_proj", "up_proj", "down_proj", "act_fn"}
_SILU: Final = {"SiLU", "SiLUActivation"}
_KERNELS: Final = ("qkv", "out", "gate_up", "down")


class Body(nn.Module):
    """A layer's arithmetic, on packed rows: tensors in, tensors out, nothing that TorchScript cannot compile.

    A head's dimensions are kept in pairs `(i, i + head_dim / 2)`, so that the rotary embedding (Su et al., arXiv
    2104.09864) is one complex product. Queries and keys alike, so their products are the same.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.head_dim = int(attention.head_dim)
        self.scaling = float(attention.scaling)
        self.eps = float(layer.input_layernorm.eps)
        self.mlp_eps = float(layer.post_attention_layernorm.eps)
        self.rotated = attention.q_proj.out_features + attention.k_proj.out_features
        self.heads = attention.q_proj.out_features // self.head_dim
        self.kv_heads = attention.k_proj.out_features // self.head_dim
        self.inner = mlp.down_proj.in_features
        # A norm's weight goes into the linear behind it: `W (x × w) = (W × w) x`.
        weight, bias = joined(
            [attention.q_proj, attention.k_proj, attention.v_proj], layer.input_layernorm.weight.detach()
        )
        order = self._pairs(weight.shape[0])
        self.qkv = make_kernel(weight[order], None if bias is None else bias[order], PLAIN)
        self.out = make_kernel(attention.o_proj.weight, attention.o_proj.bias, PLAIN)
        gate_up = joined([mlp.gate_proj, mlp.up_proj], layer.post_attention_layernorm.weight.detach())
        self.gate_up = make_kernel(*gate_up, PLAIN)
        self.down = make_kernel(mlp.down_proj.weight, mlp.down_proj.bias, PLAIN)

    def _pairs(self, rows: int) -> torch.Tensor:
        """The order of the joined linear's rows: queries' and keys' dimensions in pairs, values' as they were."""
        turned = torch.arange(self.rotated).view(-1, 2, self.head_dim // 2).transpose(1, 2).flatten()
        return torch.cat([turned, torch.arange(self.rotated, rows)])

    def project(self, x: torch.Tensor, turns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries `[T, heads, head_dim]`, keys and values `[T, kv_heads, head_dim]`.

        `x` is `[T, hidden]`, `turns` complex `[T, 1, head_dim / 2]`.
        """
        tokens = x.shape[0]
        qkv = self.qkv.normed(x, self.eps)
        pairs = qkv[:, : self.rotated].view(tokens, self.heads + self.kv_heads, self.head_dim // 2, 2)
        turned = torch.view_as_real(torch.view_as_complex(pairs) * turns).flatten(2)
        values = qkv[:, self.rotated :].view(tokens, self.kv_heads, self.head_dim)
        return turned[:, : self.heads], turned[:, self.heads :], values

    def finish(self, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """What comes after attention. `attended` is `[T, heads × head_dim]`."""
        x = self.out.added(attended, x)
        gate_up = self.gate_up.normed(x, self.mlp_eps)
        return self.down.added(silu(gate_up[:, : self.inner]).mul_(gate_up[:, self.inner :]), x)

    @override
    def forward(  # TorchScript takes tensors, not records
        self,
        x: torch.Tensor,
        turns: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        places: torch.Tensor,
        mask: torch.Tensor,
        own: Bags,
        slot: int,
        longest: int,
    ) -> torch.Tensor:
        """A decode step of neighbouring slots from `slot` on, a token each, with nothing else in the batch.

        `keys` and `values` are a layer's cache, `[slots, kv_heads, context, head_dim]`; `places`, `mask` and `own` as
        `slot_attention` has them; the first `longest` keys are read.
        """
        count = x.shape[0]
        query = self._stored(x, turns, keys, values, places)
        seen = keys[slot : slot + count].flatten(0, 1)[:, :longest]
        weights = self._weights(query.reshape(count * self.kv_heads, -1, self.head_dim), seen, mask)
        return self.finish(x, weighted(weights, values, own).view(count, -1))

    @torch.jit.export
    def guess(  # noqa: PLR0917  # as forward
        self,
        x: torch.Tensor,
        turns: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        places: torch.Tensor,
        mask: torch.Tensor,
        own: Bags,
        slot: int,
        longest: int,
    ) -> torch.Tensor:
        """A few tokens of one sequence, with nothing else in the batch; each attends as if it was decoded alone.

        `mask` is `[T, longest]`.
        """
        query = self._stored(x, turns, keys, values, places)
        seen = keys[slot, :, :longest]
        attended: list[torch.Tensor] = []
        for token in range(x.shape[0]):
            one = query[token].reshape(self.kv_heads, -1, self.head_dim)
            attended.append(weighted(self._weights(one, seen, mask[token]), values, own).view(1, -1))
        return self.finish(x, torch.cat(attended))

    def _stored(
        self, x: torch.Tensor, turns: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, places: torch.Tensor
    ) -> torch.Tensor:
        """The queries; keys and values go into the cache."""
        query, key, value = self.project(x, turns)
        keys.view(-1, self.head_dim).index_copy_(0, places, key.reshape(-1, self.head_dim))
        values.view(-1, self.head_dim).index_copy_(0, places, value.reshape(-1, self.head_dim))
        return query

    def _weights(self, query: torch.Tensor, keys: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """`[n, rows, seen]`, as `attention.weights_of` has it."""
        return torch.baddbmm(mask, query, keys.transpose(1, 2), alpha=self.scaling).softmax(-1)


class FusedLayer(nn.Module):
    """One layer. `layer` is the one it takes the weights of. Mutable: `body`, packed and compiled once."""

    def __init__(self, layer: Any, context: SlotContext) -> None:
        super().__init__()
        # A context is no module, and its tensors are no parameters.
        object.__setattr__(self, "_context", context)
        self._layer_idx = int(layer.self_attn.layer_idx)
        self._sight: Sight = layer.self_attn.step_sight
        self._plain = Body(layer)
        self.body: Any = self._plain
        self.packed_bytes = self._bytes(PLAIN)

    @override
    def forward(self, x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
        """`[T, hidden]` to `[T, hidden]`; `turns` as in `Body`."""
        context: Any = self._context
        body = self.body
        cached = context.cache.layers.get(self._layer_idx)
        if cached is not None and ((run := context.single) or (guess := context.guess)):
            told = (x, turns, cached.keys, cached.values, context.places(cached.kv_heads))
            out: torch.Tensor
            if run is not None:
                mask = run.mask(self._sight, cached.kv_heads, x.dtype)
                out = body(*told, mask, context.bags(cached, run, self._plain.heads), run.slot, run.longest)
            else:
                mask = guess.mask(self._sight, x.dtype)
                out = body.guess(*told, mask, context.bags(cached, guess, self._plain.heads), guess.slot, guess.longest)
            return out
        given = Projected(*body.project(x, turns))
        attended = context.attend(self._layer_idx, given, Scoring(self._plain.scaling), self._sight)
        finished: torch.Tensor = body.finish(x, attended.view(x.shape[0], -1))
        return finished

    def repack(self, precision: str) -> None:
        """Pack the plain weights, and compile."""
        self.packed_bytes = self._bytes(precision)
        for name in _KERNELS:
            kernel = getattr(self._plain, name)
            setattr(self._plain, name, make_kernel(kernel.weight, kernel.bias, precision))
        self.body = scripted(self._plain)

    def _bytes(self, precision: str) -> int:
        return sum(packed_bytes(getattr(self._plain, name).weight, precision) for name in _KERNELS)


def scripted(module: nn.Module) -> nn.Module:
    """The module, compiled by TorchScript; as it is where this PyTorch has no TorchScript any more."""
    with warnings.catch_warnings():
        # PyTorch recommends `torch.compile`, which takes a C++ compiler on the host and a minute.
        warnings.simplefilter("ignore")
        try:
            made: nn.Module = torch.jit.script(module)
        except (AttributeError, RuntimeError, NotImplementedError):
            return module
    return made


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
        and all(hasattr(children["self_attn"], name) for name in ("layer_idx", "head_dim", "scaling", "step_sight"))
    )
