"""Our own counters and histograms make the samples that prometheus_client's make."""

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from proxy.tallies import Spread, Tally

BOUNDS = (0.1, 0.5, 1, 2.5)


def page(registry: CollectorRegistry) -> list[str]:
    """The page's lines, without the times at which the library's series were begun."""
    return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]


def test_a_tally_is_shown_as_a_counter_is() -> None:
    theirs, ours = CollectorRegistry(), CollectorRegistry()
    counter = Counter("things_total", "Things.", ["kind", "size"], registry=theirs)
    tally = Tally("things_total", "Things.", ["kind", "size"], registry=ours)
    for by, kind, size in ((1, "a", "s"), (2.5, "b", 'l"\n'), (1, "a", "s"), (0, "c", "m")):
        counter.labels(kind, size).inc(by)
        tally.add(by, kind, size)
    assert page(ours) == page(theirs)
    assert ours.get_sample_value("things_total", {"kind": "a", "size": "s"}) == 2


@pytest.mark.parametrize("value", [0, 0.1, 0.1000001, 1, 2.5, 3, 1e9])
def test_a_spread_is_shown_as_a_histogram_is(value: float) -> None:
    theirs, ours = CollectorRegistry(), CollectorRegistry()
    histogram = Histogram("times_seconds", "Times.", ["kind"], buckets=BOUNDS, registry=theirs)
    spread = Spread("times_seconds", "Times.", ["kind"], bounds=BOUNDS, registry=ours)
    for seconds, kind in ((value, "a"), (0.2, "a"), (value, "b")):
        histogram.labels(kind).observe(seconds)
        spread.observe(seconds, kind)
    assert page(ours) == page(theirs)


def test_no_series_says_when_it_was_begun() -> None:
    registry = CollectorRegistry()
    Tally("things_total", "Things.", ["kind"], registry=registry).add(1, "a")
    Spread("times_seconds", "Times.", ["kind"], bounds=BOUNDS, registry=registry).observe(1, "a")
    assert "_created" not in generate_latest(registry).decode()


def test_what_was_never_counted_is_shown_by_its_name() -> None:
    theirs, ours = CollectorRegistry(), CollectorRegistry()
    Counter("things_total", "Things.", ["kind"], registry=theirs)
    Tally("things_total", "Things.", ["kind"], registry=ours)
    Histogram("times_seconds", "Times.", ["kind"], registry=theirs)
    Spread("times_seconds", "Times.", ["kind"], bounds=BOUNDS, registry=ours)
    assert page(ours) == page(theirs)
