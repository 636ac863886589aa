"""Packed linears compute what plain ones do; int8 rows do not know of each other."""

import pytest
import torch
from torch import nn

from sidecar.engine import linears
from sidecar.engine.linears import FbgemmKernel, Fp32Kernel, FusedPart, PackedLinear, VnniKernel, pack

INT8 = [FbgemmKernel, VnniKernel]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(3)


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_fp32_is_the_plain_product(rows: int) -> None:
    weight, x = torch.randn(24, 16), torch.randn(rows, 16)
    assert torch.allclose(Fp32Kernel(weight)(x), x @ weight.t(), atol=1e-5)


@pytest.mark.parametrize("kernel", INT8)
def test_int8_is_close_to_the_product(kernel: type) -> None:
    weight, x = torch.randn(64, 256), torch.randn(20, 256)
    wanted = x @ weight.t()
    error = (kernel(weight)(x) - wanted).norm() / wanted.norm()
    assert error < 0.02


@pytest.mark.parametrize("kernel", INT8)
def test_int8_is_exactly_the_sum_of_its_integers(kernel: type) -> None:
    # Small integers with the largest one in each row at the end of the grid: no rounding is left.
    top = 64 if kernel is FbgemmKernel else 127
    weight = torch.randint(-top, top + 1, (32, 128)).float()
    weight[:, 0] = top
    x = torch.randint(-127, 128, (9, 128)).float()
    x[:, 0] = 127
    assert torch.allclose(kernel(weight)(x), x @ weight.t(), rtol=1e-6)


@pytest.mark.parametrize("kernel", INT8)
def test_int8_does_not_overflow_where_every_product_is_largest(kernel: type) -> None:
    weight, x = torch.ones(16, 512), torch.ones(2, 512)
    for sign in (1, -1):
        assert torch.allclose(kernel(weight * sign)(x), x @ weight.t() * sign, rtol=0.02)


@pytest.mark.parametrize("kernel", INT8)
def test_a_row_is_the_same_beside_any_neighbour(kernel: type) -> None:
    multiply = kernel(torch.randn(48, 64))
    x = torch.randn(17, 64)
    x[5] *= 1000
    together = multiply(x)
    for row in range(17):
        assert torch.equal(multiply(x[row : row + 1])[0], together[row])


@pytest.mark.parametrize("kernel", INT8)
def test_a_row_of_zeros_is_zero(kernel: type) -> None:
    assert torch.equal(kernel(torch.randn(8, 16))(torch.zeros(2, 16)), torch.zeros(2, 8))


class Block(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(16, size, bias=bias) for size in (16, 8, 8))
        self.o_proj = nn.Linear(16, 16, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.o_proj(self.q_proj(x) + torch.cat([self.k_proj(x), self.v_proj(x)], -1))


@pytest.mark.parametrize("bias", [False, True])
def test_a_packed_model_computes_the_same(bias: bool) -> None:
    block, x = Block(bias), torch.randn(1, 5, 16)
    wanted = block(x)
    with torch.inference_mode():
        size = pack(block, "fp32")
        assert torch.allclose(block(x), wanted, atol=1e-5)
        assert torch.allclose(block(x), wanted, atol=1e-5)
    assert isinstance(block.q_proj, FusedPart)
    assert isinstance(block.o_proj, PackedLinear)
    assert size == (16 + 8 + 8 + 16) * 16 * 4


def test_parts_called_with_different_inputs_are_not_mixed_up() -> None:
    block = Block(bias=False)
    plain = [block.q_proj, block.k_proj]
    one, other = torch.randn(2, 16), torch.randn(2, 16)
    wanted = [plain[0](one), plain[1](other), plain[0](other)]
    with torch.inference_mode():
        pack(block, "fp32")
        found = [block.q_proj(one), block.k_proj(other), block.q_proj(other)]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, wanted, strict=True))


def test_a_subclass_of_linear_stays_as_it_is() -> None:
    class Odd(nn.Linear):
        pass

    model = nn.Sequential(Odd(4, 4), nn.Linear(4, 4))
    pack(model, "fp32")
    assert [type(module) for module in model] == [Odd, PackedLinear]


def test_int8_packs_to_a_quarter() -> None:
    fp32, int8 = nn.Sequential(nn.Linear(32, 32, bias=False)), nn.Sequential(nn.Linear(32, 32, bias=False))
    assert pack(fp32, "fp32") == 4 * pack(int8, "int8")


def test_the_kernel_goes_by_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(8, 8)
    for capabilities, kernel in (
        ({"avx2": True}, FbgemmKernel),
        ({"avx512_vnni": True}, VnniKernel),
        ({"avx_vnni": True}, VnniKernel),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        assert type(linears.make_kernel(weight, "int8")) is kernel
    assert type(linears.make_kernel(weight, "fp32")) is Fp32Kernel
