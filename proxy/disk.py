"""How full the disk is that holds the database's file, as two gauges. Looked at when the page is made, in a thread."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from typing_extensions import override


class Disk(Collector):
    """The disk of a folder. Stateless."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @override
    def collect(self) -> Iterator[Metric]:
        try:
            usage = shutil.disk_usage(self._folder)
        except OSError:
            # A disk that cannot be asked has no figures, and the rest of the page stands.
            return
        yield GaugeMetricFamily(
            "tollhouse_proxy_disk_free_bytes", "Free space on the disk of the database's file.", usage.free
        )
        yield GaugeMetricFamily(
            "tollhouse_proxy_disk_size_bytes", "Size of the disk of the database's file.", usage.total
        )
