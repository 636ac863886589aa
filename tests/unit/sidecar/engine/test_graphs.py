"""Decode steps as graphs: recorded once a bucket, proven when they are, and given up for good when they are wrong."""

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from sidecar.engine.attention import install
from sidecar.engine.batch import Batch, Chunk
from sidecar.engine.graphs import GraphedNetwork
from sidecar.engine.packed import PackedForward, StockNetwork
from sidecar.engine.paged_attention import PagedContext
from sidecar.engine.paged_cache import NOBODYS, PagedCache
from sidecar.engine.sequence import Sequence
from sidecar.wire.frames import Sampling, Submit


class Recorder:
    """In the place of a GPU: the function itself is called again. Mutable: `recorded`, `replays`."""

    def __init__(self, wrong: float = 0.0, error: Exception | None = None) -> None:
        self.recorded = self.replays = 0
        self._wrong = wrong
        self._error = error

    def __call__(self, function: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Callable[[], None]]:
        if self._error is not None:
            raise self._error
        self.recorded += 1
        out = function().clone()

        def replay() -> None:
            self.replays += 1
            out.copy_(function())
            out[0, 3] += self._wrong

        return out, replay


class House:
    """A tiny model over paged blocks, with graphs or without."""

    def __init__(self, model: PreTrainedModel, recorder: Recorder | None) -> None:
        self.cache = PagedCache(8, 128, "cpu", 16)
        context = PagedContext(self.cache)
        if not hasattr(model, "installed"):
            install(model, context, 128)
            model.installed = True
        for module in model.modules():
            if hasattr(module, "step_context"):
                module.step_context = context
        network: torch.nn.Module = StockNetwork(model)
        if recorder is not None:
            network = GraphedNetwork(network, context, recorder, 1e-4)
        self.network = network
        self.forward = PackedForward(network, context, self.cache, self.cache.device)

    @property
    def graphed(self) -> GraphedNetwork:
        assert isinstance(self.network, GraphedNetwork)
        return self.network

    def decode(self, sequences: list[Sequence]) -> torch.Tensor:
        chunks = tuple(Chunk(one, len(one.tokens) - 1, 1) for one in sequences)
        logits = self.forward.logits(Batch(chunks, ())).clone()
        for one in sequences:
            one.tokens.append(5 + len(one.tokens))
        return logits

    def begin(self, lengths: list[int]) -> list[Sequence]:
        made: list[Sequence] = []
        for slot, length in enumerate(lengths):
            prompt = [(7 * n + slot) % 100 + 3 for n in range(length)]
            made.append(Sequence(Submit(str(slot), 0, prompt, 50, Sampling(), []), slot, record=slot, slot=slot))
        self.forward.logits(Batch((), tuple(Chunk(one, 0, len(one.tokens) - 1) for one in made)))
        return made


def test_steps_of_any_size_are_those_without_graphs(tiny_model: PreTrainedModel) -> None:
    recorder = Recorder()
    lengths = [20, 3, 15, 40, 9]
    wanted: list[torch.Tensor] = []
    for made in (None, recorder):
        house = House(tiny_model, made)
        sequences = house.begin(lengths)
        # They grow over the ends of blocks, leave, and one comes late.
        given = [house.decode(sequences) for _ in range(12)]
        given += [house.decode(sequences[1:4]) for _ in range(3)]
        given += [house.decode(sequences) for _ in range(2)]
        if made is None:
            wanted = given
    assert all(torch.allclose(one, other, atol=1e-4) for one, other in zip(given, wanted, strict=True))
    assert house.graphed.off == ""
    # Sequences in powers of two, blocks too: 8 × 4 at first, then 4 × 4.
    assert recorder.recorded == 2
    assert recorder.replays >= 14
    assert not house.cache.layers[0].keys[NOBODYS].any()


def test_new_memory_is_recorded_anew(tiny_model: PreTrainedModel) -> None:
    recorder = Recorder()
    house = House(tiny_model, recorder)
    sequences = house.begin([5, 6])
    house.decode(sequences)
    # The same size is not the same memory.
    for tokens in (500, 500):
        house.cache.keep(tokens)
        sequences = house.begin([5, 6])
        house.decode(sequences)
    assert recorder.recorded == 3


def test_guesses_are_part_of_the_graph(tiny_model: PreTrainedModel) -> None:
    recorder = Recorder()
    found: list[torch.Tensor] = []
    for made in (None, recorder):
        house = House(tiny_model, made)
        first, second = house.begin([20, 3])
        for _ in range(2):
            decode, guessed = Chunk(first, 19, 1), Chunk(second, 2, 4, (9, 8, 7))
            found.append(house.forward.logits(Batch((decode,), (guessed,))).clone())
    assert (recorder.recorded, recorder.replays) == (1, 2)
    assert all(torch.allclose(one, found[0], atol=1e-4) for one in found)
    # What is guessed right is what would have been computed without.
    plain = House(tiny_model, None)
    _, second = plain.begin([20, 3])
    second.tokens += [9, 8, 7]
    whole = plain.forward.logits(Batch((), (Chunk(second, 2, 4),)))
    assert torch.allclose(found[0][-1], whole[-1], atol=1e-4)


@pytest.mark.parametrize(
    ("recorder", "reason"),
    [
        (Recorder(wrong=1.0), "a graph of 2 sequences does not give what the model gives"),
        (Recorder(error=RuntimeError("operation not permitted when stream is capturing")), "stream is capturing"),
    ],
    ids=["wrong", "cannot be recorded"],
)
def test_a_graph_that_is_wrong_is_never_used(
    tiny_model: PreTrainedModel, recorder: Recorder, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    plain = House(tiny_model, None)
    sequences = plain.begin([5, 6])
    wanted = [plain.decode(sequences) for _ in range(3)]
    house = House(tiny_model, recorder)
    sequences = house.begin([5, 6])
    given = [house.decode(sequences) for _ in range(3)]
    assert all(torch.equal(one, other) for one, other in zip(given, wanted, strict=True))
    assert reason in house.graphed.off
    assert "run without CUDA graphs" in caplog.text
    assert recorder.replays <= 1
