"""Packed linears compute what plain ones do, also those that were joined."""

import pytest
import torch
from torch import nn

from sidecar.engine.linears import FusedPart, PackedLinear, pack, packed_share


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(3)


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


def test_a_weight_that_the_embedding_shares_is_kept_once_where_memory_counts() -> None:
    for frugal, head in ((True, nn.Linear), (False, PackedLinear)):
        model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 4, bias=False), nn.Linear(4, 10, bias=False))
        model[2].weight = model[0].weight
        size = pack(model, "fp32", frugal=frugal)
        assert [type(model[1]), type(model[2])] == [PackedLinear, head]
        assert size == (10 * 4 * (1 if frugal else 2) + 4 * 4) * 4


def test_weights_of_another_dtype_stay_as_they_are() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False, dtype=torch.bfloat16))
    assert pack(model, "int8") == 4 * 4 * 2
    assert type(model[0]) is nn.Linear


def test_the_share_that_is_packed_counts_weights() -> None:
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 5, bias=False))
    pack(model, "bf16")
    assert packed_share(model, "bf16") == 20 / 60


def test_int8_packs_to_a_quarter() -> None:
    fp32, int8 = nn.Sequential(nn.Linear(32, 32, bias=False)), nn.Sequential(nn.Linear(32, 32, bias=False))
    assert pack(fp32, "fp32") == 4 * pack(int8, "int8")
