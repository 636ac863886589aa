"""Linear layers as the engine runs them on a CPU: packed once, those with one input joined. `kernels` multiplies."""

from typing import Any, Final, Protocol, TypeGuard, runtime_checkable

import torch
from torch import nn
from typing_extensions import override

from sidecar.engine.kernels import BYTES, Kernel, make_kernel, packed_bytes


@runtime_checkable
class Packable(Protocol):
    """A module that holds weights to be packed. `packed_bytes`: what they take as they are now."""

    packed_bytes: int

    def repack(self, precision: str) -> None: ...


class PackedLinear(nn.Module):
    """In the place of an `nn.Linear`: `[..., in]` → `[..., out]`."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, precision: str) -> None:
        super().__init__()
        self._in = weight.shape[1]
        self._out = weight.shape[0]
        self.packed_bytes = packed_bytes(weight, precision)
        self._kernel: Kernel = make_kernel(weight, bias, precision)

    @override
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._kernel(x.reshape(-1, self._in)).view(*x.shape[:-1], self._out)


def joined(linears: list[nn.Linear], columns: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight and bias of linears with one input as one linear's. `columns` `[in]` are multiplied into the columns."""
    weight = torch.cat([linear.weight.detach() for linear in linears])
    if columns is not None:
        weight = weight * columns
    biases: list[torch.Tensor | None] = [linear.bias for linear in linears]
    if all(bias is None for bias in biases):
        return weight, None
    rows = [
        torch.zeros(linear.out_features) if bias is None else bias.detach()
        for linear, bias in zip(linears, biases, strict=True)
    ]
    return weight, torch.cat(rows)


class FusedPart(nn.Module):
    """One of several linears with the same input, computed together when the first of them is called."""

    def __init__(self, group: "FusedGroup", index: int) -> None:
        super().__init__()
        # Not a child module: the group belongs to all its parts.
        object.__setattr__(self, "_group", group)
        self._index = index
        self.packed_bytes = 0 if index else group.packed_bytes

    @override
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        group: Any = self._group
        out: torch.Tensor = group.part(self._index, x)
        return out


class FusedGroup:
    """Linears that models call one after the other on one input (q, k, v; gate, up), as one product.

    Mutable: `_input` and `_outputs`, the product under way; dropped when each part was taken.
    """

    def __init__(self, linears: list[nn.Linear], precision: str) -> None:
        self._linear = PackedLinear(*joined(linears), precision)
        self.packed_bytes = self._linear.packed_bytes
        self._sizes = [linear.out_features for linear in linears]
        self._input: torch.Tensor | None = None
        self._outputs: dict[int, torch.Tensor] = {}

    def parts(self) -> list[FusedPart]:
        return [FusedPart(self, index) for index in range(len(self._sizes))]

    def part(self, index: int, x: torch.Tensor) -> torch.Tensor:
        if self._input is not x or index not in self._outputs:
            self._input = x
            self._outputs = dict(enumerate(self._linear(x).split(self._sizes, dim=-1)))
        out = self._outputs.pop(index)
        if not self._outputs:
            self._input = None
        return out


# Linears that share their input, by the names Transformers gives them.
FUSED_NAMES: Final = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def pack(model: nn.Module, precision: str, *, frugal: bool = False) -> int:
    """Pack every linear of `model`, those that share an input as one; the old weights are let go.

    An output layer may share its weight with the embedding, which keeps the plain one: it is then there twice, unless
    `frugal`. Gives the bytes of all weights afterwards.
    """
    kept = {id(module.weight) for module in model.modules() if frugal and isinstance(module, nn.Embedding)}
    for module in list(model.modules()):
        children = {name: child for name, child in module.named_children() if is_packable(child, kept)}
        for names in FUSED_NAMES:
            linears = [children[name] for name in names if name in children]
            if len(linears) == len(names) and len({linear.bias is None for linear in linears}) == 1:
                for name, part in zip(names, FusedGroup(linears, precision).parts(), strict=True):
                    setattr(module, name, part)
        if isinstance(module, Packable):
            module.repack(precision)
        for name, child in children.items():
            if getattr(module, name) is child:
                setattr(module, name, PackedLinear(child.weight, child.bias, precision))
    return size(model)


def size(model: nn.Module) -> int:
    """The bytes of all weights, packed or not, with the scales that bitsandbytes keeps beside its own."""
    states = (getattr(weight, "quant_state", None) for weight in model.parameters())
    scales: int = sum(state.absmax.nbytes for state in states if state is not None)
    packed = sum(int(getattr(module, "packed_bytes", 0)) for module in model.modules())
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())) + scales + packed


def packed_share(model: nn.Module, precision: str) -> float:
    """How much of a packed model's weights is in the precision, by their number."""
    packed = sum(int(getattr(module, "packed_bytes", 0)) for module in model.modules()) // BYTES[precision]
    return packed / max(1, packed + sum(parameter.numel() for parameter in model.parameters()))


def is_packable(child: nn.Module | None, kept: set[int]) -> TypeGuard[nn.Linear]:
    """`kept` are the ids of weights that stay as they are."""
    return is_plain(child) and child.weight.dtype == torch.float32 and id(child.weight) not in kept


def is_plain(child: nn.Module | None) -> TypeGuard[nn.Linear]:
    """A subclass of `nn.Linear` computes something else."""
    return type(child) is nn.Linear
