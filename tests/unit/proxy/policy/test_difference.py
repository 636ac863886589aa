"""What differs between two policies, in the words of a file."""

from pathlib import Path

from proxy.policy.difference import Change, differences, shown
from proxy.policy.load import load_policy
from proxy.policy.schema import Policy, Tier, TierRules

SHIPPED = Path(__file__).parents[4] / "policies"
TIER = """\
    requests_per_minute: 10
    tokens_per_minute: unlimited
    concurrency: unlimited
    monthly_requests: unlimited
    monthly_tokens: unlimited
    max_output_tokens: unlimited
    default_output_tokens: unlimited
    models: ["m", "org/n"]
    priority: 7
"""


def policy(folder: Path, name: str, more: str = "", **replaced: str) -> Policy:
    made = folder / name
    made.mkdir()
    text = TIER + more
    for field, value in replaced.items():
        text = "".join(f"    {field}: {value}\n" if f" {field}:" in line else line for line in text.splitlines(True))
    (made / "a.yaml").write_text(f"version: 1\ntiers:\n  t:\n{text}")
    return load_policy(made)


def test_the_same_policy_does_not_differ(tmp_path: Path) -> None:
    shipped = load_policy(SHIPPED)
    assert list(differences(shipped, load_policy(SHIPPED))) == []
    # Nor does one that says the same in other words.
    assert list(differences(policy(tmp_path, "a"), policy(tmp_path, "b", "    weight: 1\n# so\n"))) == []


def test_each_rule_that_changed_is_named_with_both_values(tmp_path: Path) -> None:
    old = policy(tmp_path, "old", "    per_model: {m: {concurrency: 2}}\n")
    new = policy(
        tmp_path,
        "new",
        "    per_model: {m: {concurrency: 3}, org/n: {requests_per_minute: unlimited}}\n"
        "    shadow: [requests_per_minute]\n    response_headers: {X-A: b}\n    idempotency_bodies: true\n",
        requests_per_minute="20",
        tokens_per_minute="1000",
        models='["*"]',
    )
    assert list(differences(old, new)) == [
        Change("t", "requests_per_minute", 10, 20),
        Change("t", "tokens_per_minute", "unlimited", 1000),
        Change("t", "models", ["m", "org/n"], ["*"]),
        Change("t", "per_model.m.concurrency", 2, 3),
        Change("t", "shadow", [], ["requests_per_minute"]),
        Change("t", "idempotency_bodies", False, True),
        Change("t", "per_model.org/n.requests_per_minute", None, "unlimited"),
        Change("t", "response_headers.x-a", None, "b"),
    ]


def test_tiers_come_and_go(tmp_path: Path) -> None:
    one = policy(tmp_path, "one")
    none = Policy(tiers={}, revision="")
    assert list(differences(none, one)) == [Change("t", "", None, "tier")]
    assert list(differences(one, none)) == [Change("t", "", "tier", None)]


def test_every_rule_is_compared(tmp_path: Path) -> None:
    tier: Tier = policy(tmp_path, "a").tier("t")
    assert {*shown(tier), "per_model", "response_headers"} == set(TierRules.__struct_fields__)
