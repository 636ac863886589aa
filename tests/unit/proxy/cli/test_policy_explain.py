"""`tollhouse policy explain`: what it asks for, and how the answer is shown."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from proxy.admin.explaining import Explanation, WantedExplanation
from proxy.admission.explain import Cost, EffectiveRule, Explained, Said
from proxy.cli import policy_explain, root

ANSWER = Explanation(
    "0123456789",
    "web",
    "acct_1",
    "active",
    Explained(
        revision="abc",
        tier="free",
        model="m",
        rules=[
            EffectiveRule("requests_per_minute", 10, "tier", "policies/default.yaml:47:5"),
            EffectiveRule("tokens_per_minute", 5, "key", ""),
            EffectiveRule("models", ["*"], "tier", "policies/default.yaml:54:5"),
            EffectiveRule("idempotency_bodies", False, "default", ""),
        ],
        cost=Cost(7, 8, 2, 23, exact=True),
        says=[
            Said(rule="requests_per_minute", verdict="allowed", whose="", limit=10, used=3, requested=1),
            Said(rule="tokens_per_minute", verdict="refused", whose="", limit=5, used=0, requested=23),
        ],
        verdict="refused",
        refused_by="tokens_per_minute",
        remarks=["A remark."],
    ),
)


class FakeDesk:
    """Mutable: `asked`."""

    def __init__(self) -> None:
        self.asked: list[WantedExplanation] = []

    async def explain(self, wanted: WantedExplanation) -> Explanation:
        self.asked.append(wanted)
        return ANSWER


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeDesk:
    made = FakeDesk()

    def at_the_desk(_settings: object, errand: Callable[[FakeDesk], Awaitable[Any]]) -> Any:
        async def done() -> Any:
            return await errand(made)

        return asyncio.run(done())

    monkeypatch.setattr(policy_explain, "at_the_desk", at_the_desk)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/proxy.yaml").write_text("upstreams: [{name: local, socket: run/s.sock}]\n")
    (tmp_path / "request.json").write_text('{"model": "m", "messages": []}')
    (tmp_path / "wrong.json").write_text("{model: m}")
    monkeypatch.chdir(tmp_path)
    return made


def test_each_rule_is_a_line_with_what_it_says(desk: FakeDesk, capsys: pytest.CaptureFixture[str]) -> None:
    assert root.run(["policy", "explain", "--key", "0123456789", "--request", "request.json"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "requests_per_minute\t10\ttier\tpolicies/default.yaml:47:5\t3\t1\tallowed\t",
        "tokens_per_minute\t5\tkey\t\t0\t23\trefused\tnever",
        "models\t*\ttier\tpolicies/default.yaml:54:5\t\t\t\t",
        "idempotency_bodies\tfalse\tdefault\t\t\t\t\t",
    ]
    for words in (
        "No server runs",
        "Key 0123456789 (web, active), tier free on m, revision abc.",
        "reserve 23 tokens: 7 of prompt (counted) and 2 × 8 of output",
        "A remark.",
        "Now: refused by tokens_per_minute.",
    ):
        assert words in err
    (wanted,) = desk.asked
    assert (wanted.key, wanted.model, wanted.endpoint) == ("0123456789", None, "/v1/chat/completions")
    assert wanted.request == {"model": "m", "messages": []}


def test_of_a_secret_only_the_id_leaves(desk: FakeDesk, capsys: pytest.CaptureFixture[str]) -> None:
    assert root.run(["policy", "explain", "--key", "sk-th_0123456789_" + "s" * 38, "--model", "m", "--json"]) == 0
    assert (desk.asked[0].key, desk.asked[0].model) == ("0123456789", "m")
    assert json.loads(capsys.readouterr().out)["explained"]["refused_by"] == "tokens_per_minute"


def test_a_request_that_is_no_json_is_not_asked_about(desk: FakeDesk) -> None:
    assert root.run(["policy", "explain", "--key", "k", "--request", "wrong.json"]) == 2
    assert desk.asked == []
