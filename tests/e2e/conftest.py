"""A whole Tollhouse for a test: real processes, the real model, its own folder, and a way to look inside."""

import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import httpx2
import openai
import pytest

from proxy.scopes import Scope
from tests.e2e.browser import Page, browser
from tests.e2e.console import ask, chat, url

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
MODEL = "smollm2-135m-instruct"
SOCKET = "run/sidecar.sock"
START_TIMEOUT_S = 120.0

UNLIMITED = {
    "requests_per_minute": "unlimited",
    "tokens_per_minute": "unlimited",
    "concurrency": "unlimited",
    "monthly_requests": "unlimited",
    "monthly_tokens": "unlimited",
    "max_output_tokens": "unlimited",
    "default_output_tokens": "unlimited",
    "models": ["*"],
    "priority": 0,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder starts processes, and one of them at a time is heavy enough."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker("e2e")
            item.add_marker(pytest.mark.timeout(300))


@dataclass
class Process:
    """A started command whose JSON log lines are kept in a file."""

    popen: subprocess.Popen[bytes]
    log: Path

    def events(self) -> list[dict[str, Any]]:
        lines = self.log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def wait_for(self, event: str, timeout_s: float = START_TIMEOUT_S, **told: str) -> dict[str, Any]:
        """Its first line of this event that says what is told, too."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for line in self.events():
                if line["event"] == event and told.items() <= line.items():
                    return line
            if self.popen.poll() is not None:
                break
            time.sleep(0.05)
        raise AssertionError(f"no {event!r} from {self.popen.args!r}:\n{self.log.read_text()[-4000:]}")

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 40.0) -> int:
        if self.popen.poll() is None:
            self.popen.send_signal(number)
        return self.popen.wait(timeout_s)


@dataclass
class House:
    """A folder with a configuration, and the processes started in it; `programs` is where those lie.

    `beside`: the house whose sidecar it uses, if it has none of its own.
    """

    folder: Path
    tiers: dict[str, dict[str, Any]]
    programs: Path = BIN
    beside: "House | None" = None
    sidecar: Process | None = None
    proxy: Process | None = None
    port: int = 0
    admin_port: int = 0
    starts: int = 0
    keys: dict[str, str] = field(default_factory=dict)
    clients: list[openai.OpenAI] = field(default_factory=list)

    def write(
        self, engine: dict[str, Any] | None = None, embedding: dict[str, Any] | None = None, **proxy: Any
    ) -> None:
        (self.folder / "policies").mkdir(parents=True, exist_ok=True)
        (self.folder / "data").mkdir(mode=0o700, exist_ok=True)
        tiers = {name: UNLIMITED | rules for name, rules in self.tiers.items()}
        self.yaml("policies/default.yaml", {"version": 1, "tiers": tiers})
        self.yaml(
            "conf/sidecar.yaml",
            {"model": {"id": MODEL, "source": MODEL}, "embedding": embedding, "engine": engine or {}},
        )
        self.yaml(
            "conf/proxy.yaml",
            {
                "upstreams": [{"name": "local", "socket": str(self.socket)}],
                "listen": {"port": 0},
                "admin": {"port": 0},
                **proxy,
            },
        )

    def yaml(self, name: str, data: object) -> None:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        # JSON is YAML, and has no anchors.
        path.write_text(json.dumps(data))

    def start(self, *command: str) -> Process:
        self.starts += 1
        log = self.folder / f"{self.starts}-{command[0]}.log"
        with log.open("wb") as out:
            popen = subprocess.Popen(
                [self.programs / command[0], *command[1:]],
                cwd=self.folder,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        return Process(popen, log)

    def start_sidecar(self) -> Process:
        self.sidecar = self.start("tollhouse-sidecar", "serve", "--config", "conf/sidecar.yaml")
        self.sidecar.wait_for("ready")
        return self.sidecar

    def start_proxy(self) -> Process:
        self.proxy = self.start("tollhouse", "serve")
        ready = self.proxy.wait_for("ready")
        self.port, self.admin_port = ready["port"], ready["admin_port"]
        return self.proxy

    def stop(self) -> None:
        for client in self.clients:
            client.close()
        for process in (self.proxy, self.sidecar):
            if process is not None:
                process.stop()

    def command(self, *arguments: str, code: int = 0) -> Any:
        """Run `tollhouse --json …` and give its document."""
        done = subprocess.run(
            [self.programs / "tollhouse", "--json", *arguments],
            cwd=self.folder,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        return json.loads(done.stdout) if done.stdout.strip() else None

    def key(self, tier: str) -> str:
        """A new key of a tier, in an account of its own."""
        name = f"{tier}-{len(self.keys)}"
        self.command("accounts", "create", name)
        made = self.command("keys", "create", "--account", name, "--tier", tier, "--name", name)
        self.keys[made["secret"]] = made["key_id"]
        return str(made["secret"])

    @property
    def socket(self) -> Path:
        """The sidecar's."""
        return (self.beside or self).folder / SOCKET

    def state(self) -> dict[str, Any]:
        """What the sidecar says of itself."""
        with httpx2.Client(transport=httpx2.HTTPTransport(uds=str(self.socket))) as client:
            return dict(client.get("http://sidecar/internal/state").json())

    def ledger(self) -> dict[str, dict[str, Any]]:
        """Its rows by request id, read beside the running server."""
        with sqlite3.connect(f"file:{self.folder}/data/tollhouse.db?mode=ro", uri=True) as database:
            database.row_factory = sqlite3.Row
            return {row["request_id"]: dict(row) for row in database.execute("SELECT * FROM ledger")}

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def client(self, key: str, **options: Any) -> openai.OpenAI:
        client = openai.OpenAI(base_url=self.base_url, api_key=key, max_retries=0, timeout=120, **options)
        self.clients.append(client)
        return client


@pytest.fixture(scope="session")
def model_folder() -> Path:
    """The default model, fetched and converted once into the user's cache."""
    done = subprocess.run(
        [BIN / "tollhouse-sidecar", "fetch", "--config", ROOT / "conf/sidecar.yaml", "--json"],
        cwd=ROOT,
        capture_output=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return Path(json.loads(done.stdout)["path"])


@pytest.fixture(scope="session")
def sidecars(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], House]]:
    """By its precision a house with nothing but a sidecar, for others to be built beside. They leave it as it is."""
    houses: dict[str, House] = {}

    def running(precision: str) -> House:
        if precision not in houses:
            house = houses[precision] = House(tmp_path_factory.mktemp("s"), {"open": {}})
            house.write(engine={"precision": precision})
            house.start_sidecar()
        return houses[precision]

    yield running
    for house in houses.values():
        house.stop()


@pytest.fixture(scope="module")
def build_house(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., House]]:
    """Make a house with the given tiers; it is taken down after the module."""
    houses: list[House] = []

    def build(tiers: dict[str, dict[str, Any]] | None = None, beside: House | None = None, **options: Any) -> House:
        # A Unix socket's path holds 107 bytes, so the folder is short.
        house = House(tmp_path_factory.mktemp("h"), tiers or {"open": {}}, beside=beside)
        house.write(**options)
        houses.append(house)
        house.command("db", "upgrade")
        return house

    yield build
    for house in houses:
        house.stop()


@pytest.fixture(scope="module")
def house(build_house: Callable[..., House], sidecars: Callable[[str], House]) -> House:
    """A house that a module shares, ready to answer; one with other tiers has a fixture of its own."""
    house = build_house(beside=sidecars("fp32"))
    house.start_proxy()
    return house


@pytest.fixture(scope="session")
def console_house(sidecars: Callable[[str], House], tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A house that was asked a few things and refused two, for the tests of the console in all their files."""
    output = {"max_output_tokens": 1000, "default_output_tokens": 100}
    free = {"concurrency": 2, "monthly_tokens": 1000, "requests_per_minute": 60, **output}
    house = House(tmp_path_factory.mktemp("h"), {"free": free, "pro": {}}, beside=sidecars("int8"))
    try:
        _furnish(house)
        yield house
    finally:
        house.stop()


def _furnish(house: House) -> None:
    house.write()
    house.command("db", "upgrade")
    house.yaml("policies/lab.yaml", {"version": 1, "tiers": {"lab": UNLIMITED | {"requests_per_minute": 120}}})
    house.start_proxy()
    options = [part for scope in get_args(Scope) for part in ("--scope", scope)]
    house.command("accounts", "create", "ops")
    made = house.command("keys", "create", "--account", "ops", "--tier", "pro", "--name", "console", *options)
    house.keys["admin"] = made["secret"]
    house.command("accounts", "create", "acme")
    for tier in ("free", "pro"):
        key = house.command("keys", "create", "--account", "acme", "--tier", tier, "--name", f"web-{tier}")["secret"]
        house.keys[tier] = key
        for text in ("Hi", "Name a colour"):
            assert ask(house, key, chat(text, max_tokens=3)).status_code == 200
    assert ask(house, house.keys["free"], chat("Hi", max_tokens=5000)).status_code == 400
    assert ask(house, "sk-th_AAAAAAAAAA_x", chat("Hi")).status_code == 401


@pytest.fixture
async def page(console_house: House, tmp_path: Path) -> AsyncIterator[Page]:
    """A tab with the console open and signed in. What it complains of, and no test took out, fails the test."""
    async with browser(tmp_path / "profile") as page:
        await page.size(1280, 900)
        await page.open(url(console_house))
        await page.type("#admin-key", console_house.keys["admin"])
        await page.press("Sign in")
        await page.text("Overview", "ready")
        yield page
        assert await page.violations() == []
        assert page.problems == []


@pytest.fixture(scope="module")
def client(house: House) -> openai.OpenAI:
    return house.client(house.key("open"))


@pytest.fixture
def own_house(build_house: Callable[..., House]) -> Iterator[House]:
    """A house for one test, whose processes may be killed."""
    house = build_house()
    house.start_sidecar()
    house.start_proxy()
    yield house
    house.stop()
