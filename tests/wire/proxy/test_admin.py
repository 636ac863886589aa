"""The admin listeners: what TCP shows, what only the Unix socket does."""

import asyncio
import json
import stat
from pathlib import Path

import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from proxy.admin.client import AdminClient, NotReachableError
from proxy.admin.records import NewAccount, NewKey
from proxy.responses import INPUT_ITEMS, RESPONSE
from proxy.settings import Metrics
from sidecar.wire.errors import ApiError
from tests.fakes.sidecar import OPENAPI
from tests.wire.proxy.conftest import Build
from tests.wire.proxy.house import TIERS, Answer, House, chat, request


async def got(house: House, path: str, *, unix: bool = False, method: str = "GET", body: bytes = b"") -> Answer:
    wire = await (house.connect_unix() if unix else house.connect(admin=True))
    await wire.send(request(None, body, method=method, path=path))
    return await wire.answer()


@pytest.mark.parametrize("unix", [False, True])
async def test_health_tells_what_is(house: House, unix: bool) -> None:
    assert (await got(house, "/livez", unix=unix)).status == 200
    ready = await got(house, "/readyz", unix=unix)
    assert (ready.status, json.loads(ready.body)) == (200, {"ready": True, "reason": ""})
    health = json.loads((await got(house, "/healthz", unix=unix)).body)
    assert health["upstreams"] == [{"name": "local", "ready": True, "reason": "", "models": ["org/tiny"]}]
    assert (health["port"], health["admin_port"]) == (house.ready["port"], house.ready["admin_port"])
    assert health["policy_revision"] == house.ready["revision"]
    assert health["tiers"] == sorted(TIERS)


async def test_it_lives_and_is_not_ready_without_a_sidecar(house: House) -> None:
    await house.sidecar.stop()
    # Whoever meets the absence first has the state asked for anew.
    await (await house.ask(await house.key())).answer()
    await house.until(lambda: house.lines("upstream_lost"))
    ready = await got(house, "/readyz")
    assert (ready.status, json.loads(ready.body)["reason"]) == (503, "unreachable")
    assert (await got(house, "/livez")).status == 200


async def test_a7_the_admin_port_has_no_other_urls(house: House) -> None:
    for path in ("/v1/models", "/admin", "/admin/v1", "/admin/v1/keys/", "/debug", "/admin/v1/keys/x/y"):
        answer = await got(house, path)
        assert (answer.status, answer.error["code"]) == (404, "unknown_url")


async def test_a7_the_socket_is_for_this_user_alone(house: House) -> None:
    found = await asyncio.to_thread(Path(house.settings.admin.socket).stat)
    assert stat.S_IMODE(found.st_mode) == 0o600


async def test_f14_another_user_is_not_served_on_the_socket(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.edge.peer_uid", lambda _: 12345)
    wire = await house.connect_unix()
    assert await wire.closed()
    monkeypatch.undo()


async def test_the_metrics_page_tells_what_happened(house: House) -> None:
    await (await house.ask(await house.key())).answer()
    await (await house.ask(None, chat())).answer()
    await house.line(count=2)
    page = await got(house, "/metrics")
    assert page.headers["content-type"].startswith("text/plain")
    found = {
        (sample.name.removeprefix("tollhouse_proxy_"), *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(page.body.decode())
        for sample in family.samples
    }
    assert found["requests_total", *sorted(("/v1/chat/completions", "200", "open", "org/tiny"))] == 1
    assert found["requests_total", *sorted(("/v1/chat/completions", "401", "_other", "none"))] == 1
    assert found["tokens_total", "open", "org/tiny", "output"] == 3
    assert found["errors_total", "client", "invalid_request_error"] == 1
    assert found["policy_decisions_total", "admission", "allow"] == 1
    assert found["upstream_up", "local"] == 1
    assert found["active_clients", "5m"] == 1
    assert found["keys", "0_50"] == 0  # a key without a quota is in no band
    assert found["requests_in_progress",] == 0
    assert found["open_streams",] == 0
    assert found["ledger_commit_seconds_count",] >= 1
    for phase in ("identify", "admit", "forward", "settle", "record"):
        assert found["overhead_seconds_count", phase] >= 1
    assert len(page.body.splitlines()) < 2000


async def test_prometheus_gets_the_page_as_openmetrics_with_the_traces_that_were_sampled(house: House) -> None:
    traceparent = f"00-{'c' * 32}-{'d' * 16}-01"
    await (await house.ask(await house.key(), headers={"traceparent": traceparent})).answer()
    await house.line()
    wire = await house.connect(admin=True)
    # Prometheus 2.42's own words.
    accept = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,*/*;q=0.1"
    await wire.send(request(None, method="GET", path="/metrics", headers={"accept": accept}))
    page = await wire.answer()
    assert page.headers["content-type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    text = page.body.decode()
    assert text.endswith("# EOF\n")
    families = {family.name: family for family in openmetrics.text_string_to_metric_families(text)}
    samples = families["tollhouse_proxy_request_duration_seconds"].samples
    traces = [sample.exemplar.labels["trace_id"] for sample in samples if sample.exemplar]
    assert traces == ["c" * 32]
    plain = await got(house, "/metrics")
    assert (plain.headers["content-type"].partition(";")[0], b"trace_id" in plain.body) == ("text/plain", False)


async def test_a_sidecar_s_metrics_are_passed_on(house: House) -> None:
    assert b"tollhouse_sidecar_up" in (await got(house, "/metrics/sidecar/local")).body
    assert (await got(house, "/metrics/sidecar/other")).status == 404
    await house.sidecar.stop()
    assert (await got(house, "/metrics/sidecar/local")).status == 503


async def test_the_openapi_document_is_a_sidecar_s_with_the_public_address(house: House) -> None:
    page = await got(house, "/openapi.json")
    servers = [{"url": f"http://127.0.0.1:{house.ready['port']}"}]
    document = json.loads(page.body)
    assert (page.status, document["servers"]) == (200, servers)
    assert document["paths"].keys() == {*OPENAPI["paths"], RESPONSE, INPUT_ITEMS}
    assert page.headers["content-type"] == "application/json"
    await house.sidecar.stop()
    page = await got(house, "/openapi.json")
    assert (page.status, page.error["code"]) == (503, "upstream_unavailable")


async def test_accounts_keys_and_usage_over_the_socket(house: House) -> None:
    async with AdminClient(house.settings.admin.socket) as client:
        made = await client.create_account(NewAccount("acme"))
        assert [account.name for account in await client.list_accounts()] == ["acme"]
        key = await client.create_key(NewKey(account="acme", tier="few", name="ci", models=["org/tiny"]))
        assert key.secret.startswith(f"sk-th_{key.key_id}_")
        by_id = await client.create_key(NewKey(account=made.id, tier="open", name="second"))
        assert by_id.account == "acme"
        answer = await (await house.ask(key.secret)).answer()
        assert answer.status == 200
        rows = {row.key_id: row for row in (await client.usage()).rows}
        assert (rows[key.key_id].requests, rows[key.key_id].total_tokens, rows[key.key_id].monthly_tokens) == (
            1,
            10,
            100,
        )
        assert rows[by_id.key_id].requests == 0
        listed = {found.key_id: found for found in await client.list_keys()}
        assert (listed[key.key_id].tier, listed[key.key_id].models) == ("few", ["org/tiny"])
        assert listed[key.key_id].last_used is not None
        revoked = await client.revoke_key(key.key_id)
        assert revoked.revoked
        assert (await client.revoke_key(key.key_id)).revoked


async def test_what_an_operator_gets_wrong_is_said(house: House) -> None:
    async with AdminClient(house.settings.admin.socket) as client:
        await client.create_account(NewAccount("acme"))
        with pytest.raises(ApiError) as twice:
            await client.create_account(NewAccount("acme"))
        assert (twice.value.status, twice.value.code) == (409, "account_exists")
        with pytest.raises(ApiError) as tier:
            await client.create_key(NewKey(account="acme", tier="gold", name="k"))
        assert (tier.value.status, tier.value.param) == (400, "tier")
        assert all(known in tier.value.message for known in TIERS)
        with pytest.raises(ApiError) as account:
            await client.create_key(NewKey(account="nobody", tier="open", name="k"))
        assert (account.value.status, account.value.code) == (404, "account_not_found")
        with pytest.raises(ApiError) as key:
            await client.revoke_key("nobody")
        assert (key.value.status, key.value.code) == (404, "key_not_found")
        with pytest.raises(ApiError) as period:
            await client.usage("2026-13")
        assert (period.value.status, period.value.param) == (400, "period")


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/admin/v1/accounts", b'{"name": ""}', 400),
        ("POST", "/admin/v1/accounts", b'{"nme": "a"}', 400),
        ("POST", "/admin/v1/accounts", b"no json", 400),
        ("POST", "/admin/v1/keys", b'{"account": "a", "tier": "open", "name": "k", "expires": 5}', 400),
        ("DELETE", "/admin/v1/keys", b"", 405),
        ("GET", "/admin/v1/other", b"", 404),
    ],
)
async def test_a_malformed_order_is_refused(house: House, method: str, path: str, body: bytes, status: int) -> None:
    answer = await got(house, path, unix=True, method=method, body=body)
    assert answer.status == status
    assert answer.error["message"]


async def test_no_server_on_the_socket_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotReachableError):
        async with AdminClient(str(tmp_path / "a.sock")):
            pass


async def test_bytes_that_are_no_request_get_a_400_here_too(house: House) -> None:
    wire = await house.connect(admin=True)
    await wire.send(b"NONSENSE\r\n\r\n")
    assert (await wire.answer()).status == 400
    assert await wire.closed()


async def test_a_spent_quota_shows_in_its_band(build: Build) -> None:
    async with build() as house:
        key = await house.key("few")
        for _ in range(8):
            assert (await (await house.ask(key)).answer()).status == 200
        page = await got(house, "/metrics")
        assert b'tollhouse_proxy_keys{quota_band="50_80"} 1.0' in page.body


async def test_the_key_that_is_nearest_to_its_quota_is_named_if_one_is_to_be(build: Build) -> None:
    async with build(metrics=Metrics(quota_top=1)) as house:
        await house.key("few")
        nearest = await house.key("few")
        assert (await (await house.ask(nearest)).answer()).status == 200
        named = [line for line in (await got(house, "/metrics")).body.splitlines() if b"quota_used_ratio{" in line]
        assert len(named) == 1
        assert f'key="{nearest.split("_")[1]}"'.encode() in named[0]
