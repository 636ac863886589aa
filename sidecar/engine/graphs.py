"""Decode steps recorded as CUDA graphs, so that a step is one launch instead of a thousand.

A graph repeats what was launched once, on the same memory: so it is recorded for a bucket of sequences and of blocks,
on inputs of its own, and a step's inputs are copied there, filled up with rows that are none. Buckets are recorded
when they first come. The step itself has run without a graph by then, and the graph must give what it gave; else, or
if the model does something that cannot be recorded, all steps are run without graphs from there on.
"""

import logging
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn
from typing_extensions import override

from sidecar.engine.packed import Network
from sidecar.engine.paged_attention import PagedContext, PagedRun, PagedStep
from sidecar.engine.paged_cache import NOBODYS, TRASH

_log = logging.getLogger(__name__)


class Recorder(Protocol):
    """Records what a function launches: gives its result, and a call that computes that anew in the same memory."""

    def __call__(self, function: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Callable[[], None]]: ...


class CudaRecorder:
    """`torch.cuda.CUDAGraph`. Mutable: `_first`, of whose memory all graphs take, since one runs at a time.

    Memory of graphs is gone with the last of them, so the first one is of nothing, and stays.
    """

    def __init__(self) -> None:
        self._first: Any = None

    def __call__(self, function: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Callable[[], None]]:
        # Libraries set themselves up at their first call, which cannot be recorded.
        side: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # PyTorch has not typed it
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            function()
        torch.cuda.current_stream().wait_stream(side)
        if self._first is None:
            self._first = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._first):
                torch.zeros(1, device="cuda")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._first.pool()):
            out = function()
        return out, graph.replay


class _Graph:
    """One bucket: the inputs, filled up where a step has fewer rows or blocks, and what they give."""

    def __init__(self, rows: int, blocks: int, device: torch.device) -> None:
        self.tokens = torch.zeros(rows, dtype=torch.long, device=device)
        self.positions = torch.zeros_like(self.tokens)
        self.keep = torch.arange(rows, device=device)
        self.out = torch.empty(0)
        self.replay: Callable[[], None] = lambda: None
        self._places = torch.zeros_like(self.tokens)
        self._lengths = torch.ones(rows, dtype=torch.int32, device=device)
        self._tables = torch.zeros(rows, blocks, dtype=torch.int32, device=device)

    def step(self) -> PagedStep:
        """What attention is told. A new one each time: a mask that was made before would not be recorded."""
        run = PagedRun(0, self.positions[:, None], self._lengths, self._tables)
        return PagedStep(self.positions, self._places, (run,))

    def fill(self, tokens: torch.Tensor, step: PagedStep, run: PagedRun, trash: int) -> None:
        """Copy a step's inputs. `trash`: where rows that are none write."""
        rows, blocks = run.tables.shape
        self._tables.fill_(NOBODYS)
        self._tables[:rows, :blocks] = run.tables
        for own, given, none in (
            (self.tokens, tokens, 0),
            (self.positions, step.positions, 0),
            (self._places, step.places, trash),
            (self._lengths, run.lengths, 1),
        ):
            own[:rows] = given
            own[rows:] = none


class GraphedNetwork(nn.Module):
    """See `packed.Network`. Mutable: `_graphs` by bucket, `_generation` (of the cache they read), `off` (why there are
    none any more, empty while there are).
    """

    def __init__(self, network: nn.Module, context: PagedContext, recorder: Recorder, tolerance: float) -> None:
        """`tolerance`: how much a log-probability may differ from that without a graph."""
        super().__init__()
        self.network = network
        self.off = ""
        self._context = context
        self._recorder = recorder
        self._tolerance = tolerance
        self._graphs: dict[tuple[int, int], _Graph] = {}
        self._generation = context.cache.generation

    @override
    def forward(self, tokens: torch.Tensor, positions: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        network: Network = self.network
        step = self._context.step
        run = step.decodes
        if self.off or run is None or len(keep) != len(tokens):
            return network(tokens, positions, keep)
        if self._generation != self._context.cache.generation:
            # They read memory that is no cache any more.
            self._graphs.clear()
            self._generation = self._context.cache.generation
        bucket = _bucket(run.tables.shape[0]), _bucket(run.tables.shape[1])
        graph = self._graphs.get(bucket)
        if graph is not None:
            graph.fill(tokens, step, run, self._trash)
            graph.replay()
            return graph.out[: len(tokens)]
        wanted = network(tokens, positions, keep)
        self._prove(bucket, tokens, step, run, wanted)
        return wanted

    @property
    def _trash(self) -> int:
        return TRASH * self._context.cache.block_tokens

    def _prove(
        self, bucket: tuple[int, int], tokens: torch.Tensor, step: PagedStep, run: PagedRun, wanted: torch.Tensor
    ) -> None:
        """Record a bucket's graph, and keep it if it gives what is wanted."""
        graph = _Graph(*bucket, tokens.device)
        graph.fill(tokens, step, run, self._trash)
        network: Network = self.network

        def launch() -> torch.Tensor:
            self._context.step = graph.step()
            return network(graph.tokens, graph.positions, graph.keep)

        try:
            graph.out, graph.replay = self._recorder(launch)
            graph.replay()
            given = graph.out[: len(tokens)].float().log_softmax(-1)
        except Exception as exc:  # noqa: BLE001  # whatever cannot be recorded runs as it did
            self._give_up(f"{type(exc).__name__}: {exc}")
            return
        finally:
            self._context.step = step
        close = torch.isclose(given, wanted.float().log_softmax(-1), rtol=0, atol=self._tolerance, equal_nan=True)
        if bool(close.all()):
            self._graphs[bucket] = graph
        else:
            self._give_up(f"a graph of {bucket[0]} sequences does not give what the model gives")

    def _give_up(self, reason: str) -> None:
        self.off = reason
        self._graphs.clear()
        _log.warning("Decode steps run without CUDA graphs: %s", reason)


def _bucket(number: int) -> int:
    """The next power of two."""
    return 1 << (number - 1).bit_length()
