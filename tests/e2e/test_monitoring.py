"""A real Prometheus with the shipped files beside a real house: every panel shows something, and an alert fires."""

import contextlib
import json
import math
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import yaml

from tests.fakes.waiting import until

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "conf/prometheus"
BOARDS = ROOT / "conf/grafana/dashboards"
PROMETHEUS, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")
# In its log, once it has a port.
LISTENING = re.compile(r'msg="Listening on" address=([0-9.:]+)')
MODEL = "smollm2-135m-instruct"
# Where CI is true it is to fail instead: a test that is always skipped proves nothing.
CI = os.environ.get("CI") == "true"
pytestmark = pytest.mark.skipif(
    PROMETHEUS is None and not CI, reason="prometheus (Debian's package of that name) is not installed"
)

TIERS: dict[str, dict[str, Any]] = {
    "open": {},
    "free": {"requests_per_minute": 1, "monthly_tokens": 1000},
    "trial": {"requests_per_minute": 1, "shadow": ["requests_per_minute"], "soft_monthly_requests": 1},
    "one": {"concurrency": 1, "max_wait_s": 30, "max_waiting": 4},
}
MACHINES = "TollhouseDiskFilling|TollhouseFirstTokenSlow|TollhouseQueueGrowing|TollhouseLedgerLag"
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


@dataclass
class Watcher:
    """A Prometheus that was started with a copy of the shipped files, and a client of its own page."""

    client: httpx2.Client

    def ask(self, expression: str) -> list[dict[str, Any]]:
        answer = self.client.get("/api/v1/query", params={"query": expression}).json()
        assert answer["status"] == "success", (expression, answer)
        return list(answer["data"]["result"])

    def wait_for(self, what: Callable[[], bool], timeout_s: float = 60.0) -> bool:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx2.HTTPError):
                if what():
                    return True
            time.sleep(0.25)
        return False


def write_config(house: Any, folder: Path) -> Path:
    """The shipped files, at the house's ports and with a shorter breath."""
    config = (SHIPPED / "prometheus.yml").read_text().replace("127.0.0.1:8001", f"127.0.0.1:{house.admin_port}")
    config = config.replace("interval: 15s", "interval: 1s").replace("scrape_timeout: 10s", "scrape_timeout: 1s")
    (folder / "prometheus.yml").write_text(config)
    (folder / "rules.yml").write_text((SHIPPED / "rules.yml").read_text())
    alerts = yaml.safe_load((SHIPPED / "alerts.yml").read_text())
    for rule in (rule for group in alerts["groups"] for rule in group["rules"] if "for" in rule):
        rule["for"] = "2s"
    (folder / "alerts.yml").write_text(json.dumps(alerts))
    return folder / "prometheus.yml"


@pytest.fixture(scope="module")
def house(build_house: Callable[..., Any]) -> Any:
    house = build_house(TIERS, metrics={"quota_top": 10})
    house.start_sidecar()
    house.start_proxy()
    return house


@pytest.fixture(scope="module")
def watcher(house: Any) -> Iterator[Watcher]:
    folder = house.folder / "prometheus"
    folder.mkdir()
    command = [
        str(PROMETHEUS),
        f"--config.file={write_config(house, folder)}",
        f"--storage.tsdb.path={folder / 'data'}",
        "--web.listen-address=127.0.0.1:0",
        "--enable-feature=exemplar-storage",
    ]
    with (folder / "log").open("wb") as log:
        popen = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        address = until(lambda: LISTENING.search((folder / "log").read_text()))[1]
        with httpx2.Client(base_url=f"http://{address}") as client:
            watcher = Watcher(client)
            up = "count(up == 1) == 2"
            assert watcher.wait_for(lambda: bool(watcher.ask(up))), (folder / "log").read_text()[-2000:]
            yield watcher
    finally:
        popen.terminate()
        popen.wait(20)


def ask(client: openai.OpenAI, **told: Any) -> None:
    client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Count to ten."}], max_tokens=8, **told
    )


def use(house: Any) -> None:
    """A little of everything that a panel shows: answers, streams, schemas, refusals, mistakes."""
    clients = {tier: house.client(house.key(tier)) for tier in TIERS}
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
    for _ in range(2):
        ask(clients["open"])
        ask(clients["trial"])
        for _event in clients["one"].chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Say hello."}], max_tokens=8, stream=True
        ):
            pass
        # One at a time: of these two one waits for its turn.
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(ask, [clients["one"]] * 2))
        with contextlib.suppress(openai.RateLimitError):
            ask(clients["free"])
    ask(clients["open"], response_format=schema)
    for told in ({"model": "nobody-has-this"}, {"model": MODEL, "temperature": 99}):
        with contextlib.suppress(openai.APIStatusError):
            clients["open"].completions.create(prompt="x", **told)  # type: ignore[call-overload]  # a test's mistakes
    with contextlib.suppress(openai.AuthenticationError):
        house.client("th_wrong").models.list()
    httpx2.get(f"http://127.0.0.1:{house.port}/nowhere")


def panels() -> list[tuple[str, str, str]]:
    """Each query: the dashboard's and the panel's title, and the expression with its variables filled in."""
    found = []
    for path in sorted(BOARDS.glob("*.json")):
        board = json.loads(path.read_text())
        for panel in board["panels"]:
            for target in panel.get("targets", []):
                expression = target["expr"].replace("$__rate_interval", "5m")
                expression = re.sub(r"\$(job|instance)", ".+", expression)
                found.append((board["title"], panel["title"], expression))
    return found


def is_shown(result: list[dict[str, Any]]) -> bool:
    return any(not math.isnan(float(sample["value"][1])) for sample in result)


def test_every_panel_of_every_dashboard_shows_something(house: Any, watcher: Watcher) -> None:
    use(house)
    # A rate needs a figure from before and one from after: used again, and seen in between.
    watcher.wait_for(lambda: bool(watcher.ask("tollhouse_proxy_policy_decisions_total{decision='shadow'}")))
    use(house)
    asked = panels()
    assert len(asked) > 80
    empty = list(asked)

    def all_shown() -> bool:
        empty[:] = [panel for panel in empty if not is_shown(watcher.ask(panel[2]))]
        return not empty

    assert watcher.wait_for(all_shown, 40), empty


def test_from_a_slow_bucket_prometheus_leads_to_a_trace(house: Any, watcher: Watcher) -> None:
    client = house.client(house.key("open"))
    ask(client, extra_headers={"traceparent": f"00-{'c' * 32}-{'d' * 16}-01"})
    told = {"query": "tollhouse_proxy_request_duration_seconds_bucket", "start": time.time() - 60}

    def traces() -> set[str]:
        found = watcher.client.get("/api/v1/query_exemplars", params=told | {"end": time.time() + 60}).json()["data"]
        return {exemplar["labels"]["trace_id"] for series in found for exemplar in series["exemplars"]}

    assert watcher.wait_for(lambda: traces() == {"c" * 32}), traces()


@pytest.mark.parametrize("path", ["/metrics", "/metrics/sidecar/local"])
@pytest.mark.skipif(PROMTOOL is None and not CI, reason="promtool (of Debian's prometheus) is not installed")
def test_the_pages_of_a_house_in_use_pass_promtool(house: Any, path: str) -> None:
    page = house_page(house, path)
    assert len(page.splitlines()) < 2000
    checked = subprocess.run([str(PROMTOOL), "check", "metrics"], input=page, capture_output=True, check=False)
    assert (checked.returncode, checked.stderr, checked.stdout) == (0, b"", b"")


def house_page(house: Any, path: str) -> bytes:
    with httpx2.Client(base_url=f"http://127.0.0.1:{house.admin_port}") as client:
        return bytes(client.get(path).raise_for_status().content)


def test_the_recorded_figures_are_there_and_nothing_fires_in_a_house_that_is_well(watcher: Watcher) -> None:
    names = [
        rule["record"]
        for group in yaml.safe_load((SHIPPED / "rules.yml").read_text())["groups"]
        for rule in group["rules"]
    ]
    missing = list(names)

    def all_there() -> bool:
        missing[:] = [name for name in missing if not watcher.ask(name)]
        return not missing

    assert watcher.wait_for(all_there, 30), missing
    # Its disk may be full, and it may be slow: that is the machine's, not the house's.
    urgent = f'ALERTS{{alertstate="firing", severity=~"page|ticket", alertname!~"{MACHINES}"}}'
    # What stalls for some seconds may be told of, and is over.
    assert watcher.wait_for(lambda: not watcher.ask(urgent), 30), watcher.ask(urgent)


def test_an_alert_fires_when_the_sidecar_is_stopped_and_ends_when_it_is_back(house: Any, watcher: Watcher) -> None:
    fires = 'ALERTS{alertname="TollhouseSidecarDown", alertstate="firing", upstream="local"}'
    assert not watcher.ask(fires)
    house.sidecar.stop()
    assert watcher.wait_for(lambda: bool(watcher.ask(fires))), watcher.ask("ALERTS")
    house.start_sidecar()
    assert watcher.wait_for(lambda: not watcher.ask(fires))


def test_an_alert_fires_when_a_policy_file_has_a_mistake(house: Any, watcher: Watcher) -> None:
    fires = 'ALERTS{alertname="TollhousePolicyRefused", alertstate="firing"}'
    path = house.folder / "policies/default.yaml"
    good = path.read_text()
    path.write_text("version: 1\ntiers: {open: 3}\n")
    assert watcher.wait_for(lambda: bool(watcher.ask(fires))), watcher.ask("ALERTS")
    path.write_text(good)
    assert watcher.wait_for(lambda: not watcher.ask(fires))
