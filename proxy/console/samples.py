"""The last hour of the metrics, a sample each five seconds, in memory, for the overview. Nothing is written down."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, Protocol

import msgspec
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from proxy.asked import UpstreamLostError
from proxy.clock import Clock
from proxy.console.readings import PROXY, SIDECAR, Page, Reading, Sample, sample
from sidecar.wire.errors import ApiError

EVERY_S: Final = 5.0
# An hour.
MOST: Final = 720
# Quantiles are of so many samples together.
MINUTE: Final = 12
OF_PROXY: Final = frozenset(
    {
        "active_clients",
        "errors",
        "keys",
        "open_streams",
        "queue_depth",
        "request_duration_seconds",
        "requests",
        "requests_in_progress",
        "time_to_first_token_seconds",
        "tokens",
    }
)
OF_SIDECAR: Final = frozenset({"kv_cache_used_ratio", "requests_running", "requests_waiting"})


class Sidecar(Protocol):
    """See `proxy.upstream.Sidecar`."""

    name: str

    @property
    def ready(self) -> bool: ...
    async def metrics(self) -> bytes:
        """Raises ApiError or UpstreamLostError."""


class Sources(Protocol):
    """See `proxy.admin.pages.Pages`."""

    async def families(self) -> list[Metric]: ...


class Drawn(msgspec.Struct, frozen=True):
    """What a page asks for: the samples, and how far they are apart."""

    every_s: float
    samples: list[Sample]


class Samples:
    """The ring. Mutable: `_kept`, the samples; `_readings`, those of the last minute."""

    def __init__(self, sources: Sources, sidecars: Callable[[], Iterable[Sidecar]], clock: Clock) -> None:
        self._sources = sources
        self._sidecars = sidecars
        self._clock = clock
        self._kept: deque[Sample] = deque(maxlen=MOST)
        self._readings: deque[Reading] = deque(maxlen=MINUTE)

    def since(self, at: float) -> Drawn:
        """Those taken later than `at`, the oldest first."""
        return Drawn(EVERY_S, [one for one in self._kept if one.at > at])

    async def run(self) -> None:
        """Take them, for ever."""
        while True:
            await self.take()
            await asyncio.sleep(EVERY_S)

    async def take(self) -> None:
        """Take one now. The first reading is only what the next is compared with."""
        sidecars = list(self._sidecars())
        pages = await asyncio.gather(*(_page(sidecar) for sidecar in sidecars if sidecar.ready))
        families = await self._sources.families()
        proxy = Page.of(families, PROXY, OF_PROXY)
        reading = Reading(self._clock.monotonic(), proxy, {name: page for name, page in pages if page is not None})
        if self._readings:
            at, names = self._clock.now().timestamp(), [sidecar.name for sidecar in sidecars]
            self._kept.append(sample(self._readings[0], self._readings[-1], reading, at, names))
        self._readings.append(reading)


async def _page(sidecar: Sidecar) -> tuple[str, Page | None]:
    try:
        text = await sidecar.metrics()
    except (ApiError, UpstreamLostError):
        return sidecar.name, None
    return sidecar.name, await asyncio.to_thread(_parsed, text)


def _parsed(text: bytes) -> Page | None:
    try:
        return Page.of(text_string_to_metric_families(text.decode()), SIDECAR, OF_SIDECAR)
    except ValueError:
        # It is no page of metrics. What else a sidecar says is checked where it is used.
        return None
