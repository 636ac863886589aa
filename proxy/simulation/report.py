"""What a simulation found: who would have been refused, when and by which rule, and the sums of it. Pure."""

import datetime as dt
from collections import defaultdict
from collections.abc import Callable, Iterable

import msgspec


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What the policy says of one request. `rule` of None: it is let in.

    `shadow`: rules that are only tried, and would have refused it. `waited_s`: for its turn, if it was let in.
    """

    request_id: str
    at: dt.datetime
    key_id: str
    account_id: str
    tier: str
    model: str
    rule: str | None
    shadow: list[str] = []
    waited_s: float = 0.0


class Total(msgspec.Struct, frozen=True):
    """Of all requests of a key, a tier or a rule. Of a rule, `requests` are those that it refused or would have."""

    name: str
    requests: int
    refused: int
    shadow: int


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """`refusals` are all that would have been refused, and those that a rule in shadow would have refused.

    `remarks`: what could not be told, and what was assumed instead.
    """

    since: dt.datetime
    until: dt.datetime
    revision: str
    requests: int
    let_in: int
    refused: int
    by_key: list[Total]
    by_tier: list[Total]
    by_rule: list[Total]
    refusals: list[Verdict]
    remarks: list[str]


def report(
    verdicts: list[Verdict], *, since: dt.datetime, until: dt.datetime, revision: str, remarks: list[str]
) -> Report:
    refused = sum(verdict.rule is not None for verdict in verdicts)
    return Report(
        since=since,
        until=until,
        revision=revision,
        requests=len(verdicts),
        let_in=len(verdicts) - refused,
        refused=refused,
        by_key=_totals(verdicts, lambda verdict: verdict.key_id),
        by_tier=_totals(verdicts, lambda verdict: verdict.tier),
        by_rule=_by_rule(verdicts),
        refusals=[verdict for verdict in verdicts if verdict.rule is not None or verdict.shadow],
        remarks=remarks,
    )


def _totals(verdicts: Iterable[Verdict], name: Callable[[Verdict], str]) -> list[Total]:
    grouped: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        grouped[name(verdict)].append(verdict)
    return [
        Total(group, len(of), sum(one.rule is not None for one in of), sum(bool(one.shadow) for one in of))
        for group, of in sorted(grouped.items())
    ]


def _by_rule(verdicts: list[Verdict]) -> list[Total]:
    rules = sorted({verdict.rule for verdict in verdicts if verdict.rule} | {r for v in verdicts for r in v.shadow})
    totals = []
    for rule in rules:
        refused = sum(verdict.rule == rule for verdict in verdicts)
        shadow = sum(rule in verdict.shadow for verdict in verdicts)
        totals.append(Total(rule, refused + shadow, refused, shadow))
    return totals
