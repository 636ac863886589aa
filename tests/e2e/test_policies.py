"""Policies of a running house: changed, spoilt, explained and tried, by the commands and signals of an operator."""

import json
import signal
from collections.abc import Callable
from typing import Any

import openai
import pytest

from tests.e2e.house import MODEL
from tests.fakes.tiers import UNLIMITED


def policy(**changes: Any) -> dict[str, Any]:
    return {"version": 1, "tiers": {"open": UNLIMITED | changes}}


@pytest.fixture(scope="module")
def running(build_house: Callable[..., Any], sidecars: Callable[[str], Any]) -> Any:
    house = build_house({"open": {}}, sidecars("int8"))
    house.start_proxy()
    return house


def ask(client: openai.OpenAI) -> str:
    """The revision that an answer was given under."""
    raw = client.completions.with_raw_response.create(model=MODEL, prompt="One, two,", max_tokens=2)
    assert raw.status_code == 200
    return str(raw.headers["x-tollhouse-policy"])


def test_f12_a_running_server_takes_a_changed_policy_and_no_bad_one(running: Any) -> None:
    client = running.client(running.key("open"))
    first = ask(client)
    # By itself.
    running.yaml("policies/default.yaml", policy(requests_per_minute=1))
    second = running.proxy.wait_for("policy_reloaded", 20)["revision"]
    assert ask(client) == second != first
    with pytest.raises(openai.RateLimitError):
        ask(client)
    # On a signal, and without ending.
    (running.folder / "policies/default.yaml").write_text("version: 1\ntiers: {open: 3}\n")
    running.proxy.popen.send_signal(signal.SIGHUP)
    refused = running.proxy.wait_for("policy_refused", 20)
    assert (refused["revision"], refused["problems"]) == (
        second,
        ["policies/default.yaml:2:15: expected a mapping, got 3"],
    )
    assert running.command("policy", "check", code=3)["problems"][0]["line"] == 2
    with pytest.raises(openai.RateLimitError) as limited:
        ask(client)
    assert limited.value.response.headers["x-tollhouse-policy"] == second
    running.yaml("policies/default.yaml", policy(priority=1))
    running.proxy.popen.send_signal(signal.SIGHUP)
    running.proxy.wait_for("policy_reloaded", 20, revision=running.command("policy", "check")["revision"])
    assert ask(client) not in {first, second}
    assert running.proxy.popen.poll() is None


def test_what_is_explained_and_tried_is_what_a_policy_then_does(running: Any) -> None:
    secret = running.key("open")
    client = running.client(secret)
    for _ in range(3):
        ask(client)
    for name, limit in (("now", 2), ("next", 1)):
        running.yaml(f"{name}/default.yaml", policy(requests_per_minute=limit))
    assert running.command("policy", "diff", "now", "next", code=1)["changes"] == [
        {"tier": "open", "rule": "requests_per_minute", "old": 2, "new": 1}
    ]
    key = running.keys[secret]
    tried = running.command("policy", "simulate", "--from", "1h", "--policy", "now", "--key", key)
    assert (tried["requests"], tried["refused"]) == (3, 1)
    assert tried["refusals"][0]["rule"] == "requests_per_minute"
    (running.folder / "request.json").write_text(json.dumps({"model": MODEL, "prompt": "One, two,", "max_tokens": 2}))
    asked = ("--request", "request.json", "--endpoint", "/v1/completions")
    said = running.command("policy", "explain", "--key", secret, *asked)["explained"]
    assert (said["verdict"], said["model"], said["cost"]["output_tokens"]) == ("allowed", MODEL, 2)
