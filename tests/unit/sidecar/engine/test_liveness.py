"""An engine gives signs of life within a step, from whatever model."""

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel
from typing_extensions import override

from sidecar.engine.liveness import MOST_SIGNS, beat_in_layers


class Layer(nn.Module):
    """With a list of its own inside."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])

    @override
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for expert in self.experts:
            x = expert(x)
        return x


class Model(nn.Module):
    """Layers in a model in a model, beside other things."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.head = nn.Linear(2, 2)
        self.inner = nn.Module()
        self.inner.layers = nn.ModuleList(Layer() for _ in range(layers))


@pytest.mark.parametrize(
    ("layers", "signs"),
    [(3, [0, 1, 2]), (MOST_SIGNS, list(range(MOST_SIGNS))), (25, [0, 2, 5, 7, 10, 12, 15, 17, 20, 22])],
)
def test_the_signs_are_spread_over_the_layers(layers: int, signs: list[int]) -> None:
    model = Model(layers)
    running: list[int] = []
    found: list[int] = []
    assert beat_in_layers(model, lambda: found.append(running[-1])) == len(signs)
    for number, layer in enumerate(model.inner.layers):  # type: ignore[arg-type]  # it is a list
        running.append(number)
        layer(torch.zeros(1, 2))
    assert found == signs


def test_a_model_of_transformers_gives_one_in_each_layer(tiny_model: PreTrainedModel) -> None:
    signs: list[None] = []
    assert beat_in_layers(tiny_model, lambda: signs.append(None)) == 3
    tiny_model(torch.tensor([[1, 2, 3]]))
    assert len(signs) == 3


def test_a_network_without_layers_has_none() -> None:
    assert beat_in_layers(nn.Linear(2, 2), lambda: None) == 0
