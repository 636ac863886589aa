"""The gauges of the database's disk: told when the page is made, and left out where there is nothing to tell."""

import shutil
from pathlib import Path

from prometheus_client import CollectorRegistry

from proxy.disk import Disk


def values(folder: Path) -> tuple[float | None, float | None]:
    registry = CollectorRegistry()
    registry.register(Disk(folder))
    free = registry.get_sample_value("tollhouse_proxy_disk_free_bytes")
    return free, registry.get_sample_value("tollhouse_proxy_disk_size_bytes")


def test_the_disk_of_the_folder_is_told(tmp_path: Path) -> None:
    free, size = values(tmp_path)
    assert size == shutil.disk_usage(tmp_path).total
    assert free is not None
    assert 0 < free < size


def test_a_folder_that_is_gone_has_no_figures_and_breaks_no_page(tmp_path: Path) -> None:
    assert values(tmp_path / "gone") == (None, None)
