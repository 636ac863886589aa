"""Our own counters and histograms make the samples that prometheus_client's make."""

import re

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.openmetrics import exposition

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


def test_the_last_trace_of_a_bucket_is_named_where_openmetrics_is_asked_for() -> None:
    theirs, ours = CollectorRegistry(), CollectorRegistry()
    histogram = Histogram("times_seconds", "Times.", ["kind"], buckets=BOUNDS, registry=theirs)
    spread = Spread("times_seconds", "Times.", ["kind"], bounds=BOUNDS, registry=ours)
    for seconds, trace_id in ((0.1, "a" * 32), (0.3, "b" * 32), (0.2, "c" * 32), (9.0, "d" * 32)):
        histogram.labels("x").observe(seconds, {"trace_id": trace_id})
        spread.observe(seconds, "x")
        spread.exemplify(seconds, trace_id, 1000.5, "x")
    assert page(ours) == page(theirs)
    assert not [line for line in page(ours) if "trace_id" in line]
    shown = exposition.generate_latest(ours).decode().splitlines()
    wanted = [line for line in exposition.generate_latest(theirs).decode().splitlines() if "_created" not in line]
    # The library's are of the moment in which they were seen.
    assert shown == [re.sub(r" [0-9.]+$", " 1000.5", line) if " # {" in line else line for line in wanted]
    assert sum("trace_id" in line for line in shown) == 3


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
