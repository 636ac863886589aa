"""The houses of the tests in this folder, which share sidecars and, for the console, a browser's tab."""

import json
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import openai
import pytest

from proxy.scopes import Scope
from tests.e2e.browser import Page, browser
from tests.e2e.console import ask, chat, url
from tests.e2e.house import BIN, ROOT, House
from tests.fakes.tiers import UNLIMITED


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder starts processes, and one of them at a time is heavy enough."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker("e2e")
            item.add_marker(pytest.mark.timeout(300))


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
