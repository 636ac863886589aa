"""How a linear layer's weight is kept and multiplied on a CPU: fp32 packed for oneDNN, 16 bits, or int8.

16 bits, for CPUs with instructions for them: the product is of rounded inputs, all around it is fp32.

int8 is W8A8: a weight scale per output channel, an activation scale per token, integer sums. One token's scale does
not depend on its neighbours', so an answer does not depend on the batch. FBGEMM multiplies, in the CPU's best way:
- with AVX512-VNNI, four products at once into 32 bits: weights use all 8 bits;
- without, `vpmaddubsw` adds two products in 16 bits, which must not overflow: weights use 7 (255 × 64 × 2 = 32,640).

`torch._int_mm` (oneDNN) lays the weight out anew for each product: with VNNI it is up to three times slower for less
than 64 rows, and without it a plain loop, 20 times slower than fp32.

Kernels are modules that TorchScript can compile, all with the same three methods: `forward` gives `W x`, `normed` gives
`W (x / rms(x))`, `added` gives `residual + W x`. `x` is fp32 `[tokens, in]`.
"""

import warnings
from typing import Final, Protocol

import torch
from torch import nn
from torch.nn.functional import linear
from typing_extensions import override

# A precision that is none yet: the weight as it came.
PLAIN: Final = "plain"
# What a weight takes.
BYTES: Final = {PLAIN: 4, "fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}
_HALVES: Final = {"bf16": torch.bfloat16, "fp16": torch.float16}
_EIGHT_BITS: Final = 127
_SEVEN_BITS: Final = 64
_TINY: Final = 1e-30


class Kernel(Protocol):
    """See the module's docstring."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor: ...
    def normed(self, x: torch.Tensor, eps: float) -> torch.Tensor: ...
    def added(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor: ...


def inverse_rms(x: torch.Tensor, eps: float) -> torch.Tensor:
    """`1 / sqrt(mean(x²) + eps)`, by row: `[tokens, 1]`."""
    squares: torch.Tensor = torch.linalg.vecdot(x, x)
    return squares.mul_(1 / x.shape[-1]).add_(eps).rsqrt_()[:, None]


class PlainKernel(nn.Module):
    """PyTorch's own product, on a weight that is still to be packed, or that nothing packs."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias

    @override
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight, self.bias)

    def normed(self, x: torch.Tensor, eps: float) -> torch.Tensor:
        return linear(x * inverse_rms(x, eps), self.weight, self.bias)

    def added(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return residual + linear(x, self.weight, self.bias)


class Fp32Kernel(nn.Module):
    """oneDNN's fp32 product on a weight in its own layout; for some rows several times faster than on a plain one."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())  # noqa: SLF001  # no public name
        self.bias = bias

    @override
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")  # noqa: SLF001  # as above
        return out

    def normed(self, x: torch.Tensor, eps: float) -> torch.Tensor:
        return self.forward(x * inverse_rms(x, eps))

    def added(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, residual, self.packed, self.bias, "add")  # noqa: SLF001  # as above
        return out


class HalfKernel(nn.Module):
    """A product in the weight's 16 bits, with sums in fp32; by oneDNN where the CPU has instructions for it."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        """`weight` is bf16 or fp16."""
        super().__init__()
        self.packs = _packs(weight.dtype)
        self.dtype = weight.dtype
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous()) if self.packs else weight  # noqa: SLF001  # no public name
        self.bias = bias

    @override
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self._product(x.to(self.dtype)).float()
        return out if self.bias is None else out.add_(self.bias)

    def _product(self, x: torch.Tensor) -> torch.Tensor:
        if self.packs:
            out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, None, "none", [], "")  # noqa: SLF001  # as above
            return out
        return linear(x, self.weight)

    def normed(self, x: torch.Tensor, eps: float) -> torch.Tensor:
        return self.forward(x * inverse_rms(x, eps))

    def added(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return self.forward(x).add_(residual)


def _packs(dtype: torch.dtype) -> bool:
    ops = torch.ops.mkldnn
    supported = ops._is_mkldnn_bf16_supported if dtype == torch.bfloat16 else ops._is_mkldnn_fp16_supported  # noqa: SLF001  # as above
    return bool(supported())


class Int8Kernel(nn.Module):
    """int8 on FBGEMM: a row's scale is taken off before the product, and put back behind it.

    The operator takes one scale for its whole input, so each row is brought to [-1, 1] first. A row of zeros is divided
    by zero; whatever that is quantised to, it is multiplied by zero in the end.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self.bias = bias
        scale = weight.abs().amax(dim=-1).clamp_min_(_TINY).div_(largest_weight())
        zeros = torch.zeros(weight.shape[0], dtype=torch.long)
        before = torch.backends.quantized.engine
        with warnings.catch_warnings():
            # PyTorch announces the end of its quantised dtypes; the range of torch in pyproject knows it.
            warnings.simplefilter("ignore")
            quantised = torch.quantize_per_channel(weight, scale.double(), zeros, 0, torch.qint8)
            try:
                torch.backends.quantized.engine = "fbgemm"
                self.packed = torch.ops.quantized.linear_prepack(quantised, None)
            finally:
                torch.backends.quantized.engine = before

    @override
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self._scale(x)
        return self._biased(self._product(x, scale).mul_(scale))

    def normed(self, x: torch.Tensor, eps: float) -> torch.Tensor:
        # A row's scale, and with it the norm, cancels before the product.
        scale = self._scale(x)
        return self._biased(self._product(x, scale).mul_(scale * inverse_rms(x, eps)))

    def added(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        scale = self._scale(x)
        return self._biased(torch.addcmul(residual, self._product(x, scale), scale))

    def _scale(self, x: torch.Tensor) -> torch.Tensor:
        """`[tokens, 1]`."""
        return x.abs().amax(dim=-1, keepdim=True)

    def _product(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """`W (x / scale)`, of integers."""
        # One step of the integer grid is 1/127 of the row's largest; 128 is zero.
        out: torch.Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            x / scale, 1 / 127, 128, self.packed
        )
        return out

    def _biased(self, out: torch.Tensor) -> torch.Tensor:
        return out if self.bias is None else out.add_(self.bias)


def largest_weight() -> int:
    """The largest integer that a weight may be on this CPU; the module's docstring says why."""
    return _EIGHT_BITS if torch.cpu.get_capabilities().get("avx512_vnni") else _SEVEN_BITS


def make_kernel(weight: torch.Tensor, bias: torch.Tensor | None, precision: str) -> Kernel:
    """The `Kernel` of a precision on this machine. `weight` fp32 `[out, in]`, `bias` `[out]`."""
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    if precision == PLAIN:
        return PlainKernel(weight, bias)
    if precision == "int8":
        return Int8Kernel(weight, bias)
    if precision in _HALVES:
        return HalfKernel(weight.to(_HALVES[precision]), bias)
    return Fp32Kernel(weight, bias)


def packed_bytes(weight: torch.Tensor, precision: str) -> int:
    """What a weight takes in a precision."""
    return weight.numel() * BYTES[precision]
