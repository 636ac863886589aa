"""Signs of life from within a step: a step of a large model on a slow machine may take longer than a front's patience.

The front takes an engine for stuck that has work and gives no sign of life (`supervisor.pulse`). A sign once a step
would have it end an engine that computes a long prompt as fast as it can, again and again.
"""

from collections.abc import Callable, Iterator
from typing import Final

from torch import nn

# A call costs microseconds, so not every layer of many makes one: a step has so many signs at most.
MOST_SIGNS: Final = 10


def beat_in_layers(network: nn.Module, beat: Callable[[], None]) -> int:
    """Have `beat` called before some of the network's layers, evenly spread; gives how many those are."""
    layers = list(_layers(network))
    wanted = min(MOST_SIGNS, len(layers))
    chosen = [layers[number * len(layers) // wanted] for number in range(wanted)]
    for layer in chosen:
        layer.register_forward_pre_hook(lambda _module, _arguments: beat())
    return len(chosen)


def _layers(network: nn.Module) -> Iterator[nn.Module]:
    """What stands in lists, as layers do in every model of Transformers, in order; not what is in a layer itself."""
    for child in network.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _layers(child)
