"""A policy that changes under a running server: what it is told, what it answers, and what runs on."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tests.fakes.sidecar import DONE, FINISH, delta, usage_comment
from tests.wire.proxy.house import OPEN, TIERS, Answer, House, Wire, request


async def reread(house: House, tiers: dict[str, Any] | str, event: str = "policy_reloaded", count: int = 1) -> Any:
    content = tiers if isinstance(tiers, str) else json.dumps({"version": 1, "tiers": tiers})
    await asyncio.to_thread((Path(house.settings.policies) / "default.yaml").write_text, content)
    house.stop.reread.set()
    return await house.line(event, count)


async def got(house: House, path: str, key: str | None = None) -> Answer:
    wire = await house.connect(admin=True)
    await wire.send(request(key, method="GET", path=path))
    return await wire.answer()


async def _chunks(wire: Wire) -> AsyncIterator[bytes]:
    while chunk := await wire.chunk():
        yield chunk


async def test_every_answer_names_the_policy_and_the_next_one_after_a_change(house: House) -> None:
    key, revision = await house.key(), house.ready["revision"]
    for given in (key, "sk-none"):
        assert (await (await house.ask(given)).answer()).headers["x-tollhouse-policy"] == revision
    changed = (await reread(house, TIERS | {"open": OPEN | {"requests_per_minute": 1}}))["revision"]
    assert changed != revision
    statuses = [await (await house.ask(key)).answer() for _ in range(2)]
    assert [(answer.status, answer.headers["x-tollhouse-policy"]) for answer in statuses] == [
        (200, changed),
        (429, changed),
    ]
    health = json.loads((await got(house, "/healthz")).body)
    assert (health["policy_revision"], health["policy_problems"]) == (changed, [])
    metrics = (await got(house, "/metrics")).body.decode()
    assert f'tollhouse_proxy_policy_info{{revision="{changed}"}} 1.0' in metrics
    assert revision not in metrics
    assert 'tollhouse_proxy_config_reloads_total{result="ok"} 1.0' in metrics


async def test_f12_a_bad_policy_changes_nothing_and_is_told_everywhere(house: House) -> None:
    key, revision = await house.key(), house.ready["revision"]
    line = await reread(house, "version: 1\ntiers:\n  open: 3\nteirs: {}\n", "policy_refused")
    places = [problem.rpartition("default.yaml:")[2].partition(": ")[0] for problem in line["problems"]]
    assert (line["revision"], places) == (revision, ["3:9", "4:1"])
    answer = await (await house.ask(key)).answer()
    assert (answer.status, answer.headers["x-tollhouse-policy"]) == (200, revision)
    health = json.loads((await got(house, "/healthz")).body)
    assert (health["policy_revision"], health["policy_problems"]) == (revision, line["problems"])
    assert 'tollhouse_proxy_config_reloads_total{result="error"} 1.0' in (await got(house, "/metrics")).body.decode()
    await reread(house, TIERS)
    assert json.loads((await got(house, "/healthz")).body)["policy_problems"] == []


async def test_what_runs_keeps_the_rules_it_was_let_in_under_and_the_next_has_the_new_ones(house: House) -> None:
    more = asyncio.Event()
    house.sidecar.script = [delta("a"), more, usage_comment(1), FINISH, DONE]
    key, revision = await house.key(), house.ready["revision"]
    running = await house.ask(key)
    status, headers = await running.head()
    assert (status, headers["x-tollhouse-policy"]) == (200, revision)
    left = {name: rules for name, rules in TIERS.items() if name != "open"}
    changed = (await reread(house, left))["revision"]
    refused = await (await house.ask(key)).answer()
    assert (refused.status, refused.error["code"]) == (403, "permission_denied")
    assert refused.headers["x-tollhouse-policy"] == changed
    more.set()
    chunks = [chunk async for chunk in _chunks(running)]
    assert b"".join(chunks) == delta("a") + FINISH + DONE
    assert (await house.row("settled"))["tier"] == "open"


async def test_an_administrator_whose_tier_is_gone_can_put_it_right(house: House) -> None:
    key = await house.key(scopes=["admin", "chat"])
    await reread(house, {name: rules for name, rules in TIERS.items() if name != "open"})
    assert (await (await house.ask(key)).answer()).error["code"] == "permission_denied"
    assert (await got(house, "/admin/v1/keys", key)).status == 200


async def test_keys_are_made_for_the_tiers_of_now(house: House) -> None:
    await reread(house, TIERS | {"new": OPEN})
    assert (await (await house.ask(await house.key("new"))).answer()).status == 200
