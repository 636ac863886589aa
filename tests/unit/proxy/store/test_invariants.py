"""How operations fall into batches makes no difference: the books are a plain replay of what was submitted.

What processes that die do to them is `test_state_machine`'s.
"""

import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from proxy.store.ledger import Standing
from proxy.store.posting import Booked, Posting, Reserved, Settled, Shrunk, Voided

KEYS = ("key_a", "key_b")
PERIODS = ("2026-10", "2026-11")
REQUESTS = st.integers(0, 5).map(lambda number: f"req_{number}")


@dataclass
class Line:
    """A ledger row, as the reference keeps it."""

    at: tuple[str, str]
    est_tokens: int
    state: str = "reserved"
    charged: int = 0


def replay(operations: list[Any]) -> dict[str, Line]:
    """The reference: one operation after the other on a dict."""
    lines: dict[str, Line] = {}
    for operation in operations:
        line = lines.get(operation.request_id)
        match operation:
            case Reserved(entry=entry):
                lines.setdefault(entry.request_id, Line((entry.key_id, entry.period), entry.est_tokens))
            case Shrunk() if line and line.state == "reserved":
                line.est_tokens = min(line.est_tokens, operation.est_tokens)
            case Settled() if line and line.state == "reserved":
                line.state = "forced" if operation.forced else "settled"
                line.charged = operation.prompt_tokens + operation.completion_tokens
            case Voided() if line and line.state == "reserved":
                line.state = "void"
    return lines


def standings(lines: dict[str, Line]) -> dict[tuple[str, str], Standing]:
    found = {}
    for at in itertools.product(KEYS, PERIODS):
        mine = [line for line in lines.values() if line.at == at]
        count = Counter(line.state for line in mine)
        found[at] = Standing(
            settled_tokens=sum(line.charged for line in mine),
            reserved_tokens=sum(line.est_tokens for line in mine if line.state == "reserved"),
            settled_requests=count["settled"] + count["forced"],
            reserved_requests=count["reserved"],
        )
    return found


@given(data=st.data())
def test_how_operations_fall_into_batches_makes_no_difference(make: Any, data: st.DataObject) -> None:
    operations = data.draw(st.lists(operations_on(make), max_size=40))
    size = data.draw(st.integers(1, 40))
    lines: dict[str, Line] = {}
    totals: dict[tuple[str, str], Counter[str]] = {at: Counter() for at in itertools.product(KEYS, PERIODS)}
    for batch in (operations[start : start + size] for start in range(0, len(operations), size)):
        write(batch, lines, totals)
    assert lines == replay(operations)
    counted = {at: Standing(**{field.name: totals[at][field.name] for field in fields(Standing)}) for at in totals}
    assert counted == standings(lines)


def operations_on(make: Any) -> st.SearchStrategy[Any]:
    entries = st.builds(
        lambda request, tokens, key_id, period: Reserved(make.entry(request, tokens, key_id, period=period), "boot"),
        REQUESTS,
        st.integers(60, 99),
        st.sampled_from(KEYS),
        st.sampled_from(PERIODS),
    )
    ends = st.builds(
        lambda request, prompt, completion, forced: make.settled(request, prompt, completion, forced=forced),
        REQUESTS,
        st.integers(0, 20),
        st.integers(0, 30),
        st.booleans(),
    )
    return entries | ends | st.builds(Shrunk, REQUESTS, st.integers(50, 110)) | REQUESTS.map(make.voided)


def write(batch: Iterable[Any], lines: dict[str, Line], totals: dict[tuple[str, str], Counter[str]]) -> None:
    """What the ledger's SQL does with a posting, in its order, on dicts."""
    posting = Posting({name: Booked(line.state, line.est_tokens, *line.at, "acc") for name, line in lines.items()})
    for operation in batch:
        posting.post(operation)
    for reserved in posting.reserved:
        entry = reserved.entry
        assert entry.request_id not in lines
        lines[entry.request_id] = Line((entry.key_id, entry.period), entry.est_tokens)
    for request_id, est_tokens in posting.shrunk.items():
        lines[request_id].est_tokens = est_tokens
    for end in posting.ended:
        line = lines[end.request_id]
        assert line.state == "reserved"
        line.state = end.state
        line.charged = end.prompt_tokens + end.completion_tokens if isinstance(end, Settled) else 0
    for at, moved in posting.moves.items():
        totals[at].update(moved)
