"""Linear layers as the engine runs them on a CPU: weights packed once, fp32 or int8 with one scale a row.

int8 is W8A8: a weight scale per output channel, an activation scale per token, integer sums. One token's scale does
not depend on its neighbours', so an answer does not depend on the batch. Which kernel multiplies depends on the CPU:
- with VNNI instructions, `torch._int_mm` (oneDNN): both sides use all 8 bits;
- with AVX2 alone, FBGEMM: its `vpmaddubsw` adds two products in 16 bits, which must not overflow, so the weights use
  7 bits (255 × 64 × 2 = 32,640). `_int_mm` is a plain loop there, 20 times slower than fp32.
"""

import warnings
from typing import Any, Final, Protocol, TypeGuard

import torch
from torch import nn
from torch.nn.functional import linear
from typing_extensions import override

# A precision that is none yet: the weight as it came.
PLAIN: Final = "plain"
_UINT8_ZERO: Final = 128
_EIGHT_BITS: Final = 127
_SEVEN_BITS: Final = 64
_TINY: Final = 1e-30


class Kernel(Protocol):
    """Multiplies `x` `[tokens, in]` by a packed weight: `[tokens, out]`, fp32."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor: ...


class Fp32Kernel:
    """oneDNN's fp32 product on a weight in its own layout; for some rows several times faster than on a plain one."""

    def __init__(self, weight: torch.Tensor) -> None:
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())  # noqa: SLF001  # no public name

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, None, "none", [], "")  # noqa: SLF001  # as above
        return out


class PlainKernel:
    """PyTorch's own product, on a weight that is still to be packed."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight)


class VnniKernel:
    """int8 on `torch._int_mm`."""

    def __init__(self, weight: torch.Tensor) -> None:
        scale = _row_scale(weight, _EIGHT_BITS)
        self._weight = torch.round(weight / scale).to(torch.int8).t()
        self._scale = scale.t().contiguous()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        scale = _row_scale(x, _EIGHT_BITS)
        quantised = torch.round(x / scale).to(torch.int8)
        return torch._int_mm(quantised, self._weight).float().mul_(scale).mul_(self._scale)  # noqa: SLF001  # no public name


class FbgemmKernel:
    """int8 on FBGEMM. The operator takes one scale for its whole input, so each row is brought to [-1, 1] first."""

    def __init__(self, weight: torch.Tensor) -> None:
        scale = _row_scale(weight, _SEVEN_BITS)
        zeros = torch.zeros(weight.shape[0], dtype=torch.long)
        before = torch.backends.quantized.engine
        with warnings.catch_warnings():
            # PyTorch announces the end of its quantised dtypes; the range of torch in pyproject knows it.
            warnings.simplefilter("ignore")
            quantised = torch.quantize_per_channel(weight.detach(), scale[:, 0].double(), zeros, 0, torch.qint8)
            try:
                torch.backends.quantized.engine = "fbgemm"
                self._packed = torch.ops.quantized.linear_prepack(quantised, None)
            finally:
                torch.backends.quantized.engine = before

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        largest = x.abs().amax(dim=-1, keepdim=True)
        # A row of zeros is divided by zero here; whatever that is quantised to, it is multiplied by zero in the end.
        out: torch.Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            x / largest, 1 / _EIGHT_BITS, _UINT8_ZERO, self._packed
        )
        return out.mul_(largest)


def has_vnni() -> bool:
    """Whether this CPU multiplies 8-bit integers without a 16-bit sum in between."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_vnni") or capabilities.get("avx_vnni"))


def make_kernel(weight: torch.Tensor, precision: str) -> Kernel:
    """The kernel of a precision on this machine. `weight` fp32 `[out, in]`."""
    if precision == PLAIN:
        return PlainKernel(weight)
    if precision == "int8":
        return VnniKernel(weight) if has_vnni() else FbgemmKernel(weight)
    return Fp32Kernel(weight)


class PackedLinear(nn.Module):
    """In the place of an `nn.Linear`: `[..., in]` → `[..., out]`."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, precision: str) -> None:
        super().__init__()
        self.in_features = weight.shape[1]
        self.out_features = weight.shape[0]
        self._bias = None if bias is None else bias.detach()
        self._pack(weight.detach(), precision)

    def repack(self, precision: str) -> None:
        """Pack a plain weight; a packed one stays as it is."""
        if isinstance(self._kernel, PlainKernel):
            self._pack(self._kernel.weight, precision)

    def _pack(self, weight: torch.Tensor, precision: str) -> None:
        self.packed_bytes = weight.numel() * (1 if precision == "int8" else weight.element_size())
        self._kernel = make_kernel(weight, precision)

    @override
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rows(x.reshape(-1, self.in_features)).view(*x.shape[:-1], self.out_features)

    def rows(self, x: torch.Tensor) -> torch.Tensor:
        """`[tokens, in]` → `[tokens, out]`."""
        out = self._kernel(x)
        return out if self._bias is None else out.add_(self._bias)


def join(linears: list[nn.Linear], precision: str, columns: torch.Tensor | None = None) -> PackedLinear:
    """Linears with one input as one. `columns` `[in]`, if given, are multiplied into the weights' columns."""
    weight = torch.cat([linear.weight.detach() for linear in linears])
    if columns is not None:
        weight = weight * columns
    biases: list[torch.Tensor | None] = [linear.bias for linear in linears]
    if all(bias is None for bias in biases):
        return PackedLinear(weight, None, precision)
    rows = [
        torch.zeros(linear.out_features) if bias is None else bias for linear, bias in zip(linears, biases, strict=True)
    ]
    return PackedLinear(weight, torch.cat(rows), precision)


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
        self._linear = join(linears, precision)
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


def pack(model: nn.Module, precision: str) -> int:
    """Replace every linear of `model`, those that share an input by fused ones; the old weights are let go.

    Gives the bytes of all weights afterwards.
    """
    for module in list(model.modules()):
        children = dict(module.named_children())
        for names in FUSED_NAMES:
            linears = [child for name in names if is_plain(child := children.get(name))]
            if len(linears) == len(names) and len({linear.bias is None for linear in linears}) == 1:
                for name, part in zip(names, FusedGroup(linears, precision).parts(), strict=True):
                    setattr(module, name, part)
        if isinstance(module, PackedLinear):
            module.repack(precision)
        for name, child in children.items():
            if is_plain(child) and getattr(module, name) is child:
                setattr(module, name, PackedLinear(child.weight, child.bias, precision))
    kept = sum(parameter.nbytes for parameter in model.parameters())
    packed = sum(module.packed_bytes for module in model.modules() if isinstance(module, PackedLinear | FusedPart))
    # An output layer may share its weight with the embedding, which keeps the plain one.
    return kept + packed


def is_plain(child: nn.Module | None) -> TypeGuard[nn.Linear]:
    """A subclass of `nn.Linear` computes something else."""
    return type(child) is nn.Linear


def _row_scale(x: torch.Tensor, bits: int) -> torch.Tensor:
    """`[rows, 1]`: what one step of the integer grid is worth in each row."""
    return x.abs().amax(dim=-1, keepdim=True).clamp_min_(_TINY).div_(bits)
