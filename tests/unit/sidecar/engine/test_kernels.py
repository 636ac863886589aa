"""Every kernel computes the product, after a norm and onto a residual too; int8 rows do not know of each other."""

import pytest
import torch
from torch.nn.functional import rms_norm

from sidecar.engine.kernels import Fp32Kernel, Int8Kernel, PlainKernel, largest_weight, make_kernel


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(3)


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_fp32_is_the_plain_product(rows: int) -> None:
    weight, x = torch.randn(24, 16), torch.randn(rows, 16)
    assert torch.allclose(Fp32Kernel(weight)(x), x @ weight.t(), atol=1e-5)


@pytest.mark.parametrize(("precision", "error"), [("bf16", 1e-2), ("fp16", 1e-3)])
def test_16_bits_round_what_is_multiplied_and_nothing_else(precision: str, error: float) -> None:
    weight, x, residual = torch.randn(24, 16), torch.randn(3, 16), torch.randn(3, 24)
    made = make_kernel(weight, None, precision)
    assert made.weight.element_size() == 2
    wanted = x @ weight.t()
    assert 0 < (made(x) - wanted).norm() / wanted.norm() < error
    # The residual keeps what 16 bits would not.
    tiny = residual * 1e-6
    assert torch.equal(made.added(torch.zeros(3, 16), tiny), tiny)
    assert made(x).dtype == made.normed(x, 1e-5).dtype == torch.float32


def test_int8_is_close_to_the_product() -> None:
    weight, x = torch.randn(64, 256), torch.randn(20, 256)
    wanted = x @ weight.t()
    error = (Int8Kernel(weight)(x) - wanted).norm() / wanted.norm()
    assert error < 0.02


def test_int8_is_exactly_the_sum_of_its_integers() -> None:
    # Small integers with the largest one in each row at the end of the grid: no rounding is left.
    top = largest_weight()
    weight = torch.randint(-top, top + 1, (32, 128)).float()
    weight[:, 0] = top
    x = torch.randint(-127, 128, (9, 128)).float()
    x[:, 0] = 127
    assert torch.allclose(Int8Kernel(weight)(x), x @ weight.t(), rtol=1e-6)


def test_int8_does_not_overflow_where_every_product_is_largest() -> None:
    weight, x = torch.ones(16, 512), torch.ones(2, 512)
    for sign in (1, -1):
        assert torch.allclose(Int8Kernel(weight * sign)(x), x @ weight.t() * sign, rtol=0.02)


def test_a_row_is_the_same_beside_any_neighbour() -> None:
    multiply = Int8Kernel(torch.randn(48, 64))
    x = torch.randn(17, 64)
    x[5] *= 1000
    together = multiply(x)
    for row in range(17):
        assert torch.equal(multiply(x[row : row + 1])[0], together[row])


def test_a_row_of_zeros_is_zero() -> None:
    assert torch.equal(Int8Kernel(torch.randn(8, 16))(torch.zeros(2, 16)), torch.zeros(2, 8))


@pytest.mark.parametrize("kernel", [PlainKernel, Fp32Kernel, Int8Kernel])
@pytest.mark.parametrize("bias", [None, torch.linspace(-1, 1, 24)])
def test_norm_bias_and_residual_are_part_of_the_product(kernel: type, bias: torch.Tensor | None) -> None:
    weight, x, residual = torch.randn(24, 64), torch.randn(5, 64), torch.randn(5, 24)
    made = kernel(weight, bias)
    close = {"rtol": 0.05, "atol": 0.4} if kernel is Int8Kernel else {"rtol": 1e-4, "atol": 1e-4}
    wanted = x @ weight.t() + (0 if bias is None else bias)
    assert torch.allclose(made(x), wanted, **close)
    assert torch.allclose(made.added(x, residual), wanted + residual, **close)
    normed = rms_norm(x, (64,), eps=1e-5) @ weight.t() + (0 if bias is None else bias)
    assert torch.allclose(made.normed(x, 1e-5), normed, **close)
    # Each method is exact about the others: what the norm scales is what the plain product gives.
    assert torch.allclose(made.added(x, residual) - residual, made(x), atol=1e-4)


def test_weights_use_the_bits_that_the_cpu_multiplies_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    for capabilities, top in (({"avx2": True}, 64), ({"avx512_vnni": True}, 127), ({"avx_vnni": True}, 64)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        assert largest_weight() == top
