"""The console in a real browser, before a real house with the real model.

`TOLLHOUSE_SHOTS=FOLDER` keeps the pictures, to be looked at.
"""

import os
import re
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.e2e.browser import CHROMIUM, Page, browser
from tests.e2e.conftest import UNLIMITED

pytestmark = [
    pytest.mark.skipif(
        CHROMIUM is None and os.environ.get("CI") != "true", reason="chromium (Debian's chromium) is not installed"
    )
]
MODEL = "smollm2-135m-instruct"
SCOPES = ["admin", "chat", "completions", "responses", "messages", "embeddings", "tokenize", "models"]
OUTPUT = {"max_output_tokens": 1000, "default_output_tokens": 100}
PAGES = {
    "overview": "Requests per second",
    "live": "What was asked and answered is not here",
    "keys": "New key",
    "policies": "Candidate policy",
    "playground": "Nothing asked yet",
}


@pytest.fixture(scope="module")
def house(build_house: Callable[..., Any], sidecars: Callable[[str], Any]) -> Any:
    """A house that was asked a few things, and two that it refused."""
    house = build_house(
        {
            "free": {"concurrency": 2, "monthly_tokens": 1000, "requests_per_minute": 60, **OUTPUT},
            "pro": {},
        },
        sidecars("int8"),
    )
    house.yaml("policies/lab.yaml", {"version": 1, "tiers": {"lab": UNLIMITED | {"requests_per_minute": 120}}})
    house.start_proxy()
    options = [part for scope in SCOPES for part in ("--scope", scope)]
    house.command("accounts", "create", "ops")
    made = house.command("keys", "create", "--account", "ops", "--tier", "pro", "--name", "console", *options)
    house.admin_key = made["secret"]
    house.command("accounts", "create", "acme")
    for tier in ("free", "pro"):
        key = house.command("keys", "create", "--account", "acme", "--tier", tier, "--name", f"web-{tier}")["secret"]
        house.keys[tier] = key
        for text in ("Hi", "Name a colour"):
            assert ask(house, key, chat(text, max_tokens=3)).status_code == 200
    assert ask(house, house.keys["free"], chat("Hi", max_tokens=5000)).status_code == 400
    assert ask(house, "sk-th_AAAAAAAAAA_x", chat("Hi")).status_code == 401
    return house


def chat(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], "stream": True, **fields}


def ask(house: Any, key: str, body: dict[str, Any]) -> httpx2.Response:
    headers = {"authorization": f"Bearer {key}"}
    return httpx2.post(f"{house.base_url}/chat/completions", json=body, headers=headers, timeout=60)


def url(house: Any, page: str = "") -> str:
    return f"http://127.0.0.1:{house.admin_port}/console/{page}"


@pytest.fixture
async def page(house: Any, tmp_path: Path) -> AsyncIterator[Page]:
    """A tab with the console open and signed in. What it complains of fails the test, but for `expected`."""
    async with browser(tmp_path / "profile") as page:
        await page.size(1280, 900)
        await page.open(url(house))
        await page.type("#admin-key", house.admin_key)
        await page.press("Sign in")
        await page.text("Overview", "ready")
        yield page
        assert await page.violations() == []
        assert page.problems == []


async def shown(page: Page, name: str) -> None:
    await page.js(f"location.hash = '#/{name}'")
    await page.text(PAGES[name])


async def shot(page: Page, folder: Path, name: str) -> None:
    """A picture; that there is something on it is seen by its size."""
    wanted = os.environ.get("TOLLHOUSE_SHOTS")
    data = await page.shot((Path(wanted) if wanted else folder) / f"console-{name}.png")
    assert data.startswith(b"\x89PNG")
    assert struct.unpack(">II", data[16:24])[0] == (await page.js("innerWidth"))
    assert len(data) > 15_000


async def test_each_page_shows_what_the_house_has_in_light_and_dark(page: Page, house: Any, tmp_path: Path) -> None:
    await page.text("Latency, p95", "Sidecars", MODEL, "KV cache")
    await page.until("document.querySelectorAll('.chart canvas').length === 7")
    await shown(page, "live")
    await page.text("200 done", "400 refused", "max_output_tokens", "401 refused")
    await shown(page, "keys")
    await page.text("web-free", "web-pro", "acme", "ops", "of 1,000", within="#keys")
    await shown(page, "policies")
    await page.text("requests_per_minute", "free", "pro", within="#tiers")
    await page.press("Explain", within="#explain")
    await page.text("is active", "default.yaml:1:", within="#explain")
    for scheme in ("light", "dark"):
        await page.scheme(scheme)
        for name in PAGES:
            await shown(page, name)
            await shot(page, tmp_path, name if scheme == "light" else f"{name}-dark")
    backs = set()
    for scheme in ("light", "dark"):
        await page.scheme(scheme)
        backs.add(await page.js("getComputedStyle(document.body).backgroundColor"))
    assert len(backs) == 2


async def test_no_page_is_wider_than_a_telephone(page: Page) -> None:
    await page.size(360, 740)
    for name in PAGES:
        await shown(page, name)
        assert await page.js("document.documentElement.scrollWidth") == 360, name


async def test_a_key_is_made_and_used_and_revoked_on_the_page(page: Page, house: Any) -> None:
    await shown(page, "keys")
    await page.click("#create-key")
    await page.type("#key-name", "made-here")
    await page.choose("#key-account", "acme")
    await page.choose("#key-tier", "free")
    await page.press("Make the key", within="dialog")
    await page.text("the only time it is shown", within="dialog")
    secret = await page.js("document.querySelector('dialog .secret input').value")
    await page.press("I have copied it", within="dialog")
    await page.text("made-here", within="#keys")
    assert secret not in await page.js("document.documentElement.outerHTML")
    body = chat("Hi", max_tokens=2)
    assert ask(house, secret, body).status_code == 200
    await page.press("Rotate made-here")
    await page.choose("dialog select", "0")
    await page.press("Rotate", within="dialog")
    await page.text("the only time it is shown", within="dialog")
    rotated = await page.js("document.querySelector('dialog .secret input').value")
    await page.press("I have copied it", within="dialog")
    assert ask(house, secret, body).status_code == 401
    assert ask(house, rotated, body).status_code == 200
    await page.press("Revoke made-here")
    await page.text("This cannot be undone", within="dialog")
    # Escape is a way out: nothing was done.
    await page.key("Escape", 27)
    await page.until("!document.querySelector('dialog')")
    assert ask(house, rotated, body).status_code == 200
    await page.press("Revoke made-here")
    await page.press("Revoke", within="dialog")
    await page.until("!document.querySelector('#keys').innerText.includes('made-here')")
    assert ask(house, rotated, body).status_code == 401
    events = house.command("audit", "list", "--limit", "3")["rows"]
    assert [event["action"] for event in events] == ["key.revoke", "key.rotate", "key.create"]
    assert {event["address"] for event in events} == {"127.0.0.1"}


async def test_an_account_is_made_disabled_and_enabled_on_the_page(page: Page, house: Any) -> None:
    await shown(page, "keys")
    await page.click("#create-account")
    await page.type("#account-name", "initech")
    await page.press("Make the account", within="dialog")
    await page.press("Disable initech")
    await page.press("Disable", within="dialog")
    await page.press("Enable initech")
    await page.until(
        "[...document.querySelectorAll('#accounts button')].some((one) => one.ariaLabel === 'Disable initech')"
    )
    assert not house.command("accounts", "show", "initech")["disabled"]


async def test_a_candidate_policy_is_simulated_on_the_page(page: Page) -> None:
    await shown(page, "policies")
    area = "#simulate textarea"
    await page.choose("#candidate-file", "lab.yaml")
    lab = await page.js(f"document.querySelector('{area}').value")
    await page.type(area, "version: 1\ntiers: 3\n")
    await page.press("Simulate", within="#simulate")
    await page.text("This policy is wrong", "lab.yaml:2:8", within="#simulate")
    await page.type(area, lab)
    await page.choose("#candidate-file", "default.yaml")
    text = await page.js(f"document.querySelector('{area}').value")
    await page.type(area, re.sub(r'"requests_per_minute": [^,]+', '"requests_per_minute": 1', text))
    await page.press("Simulate", within="#simulate")
    await page.text("let in", "By rule", "requests_per_minute", "acme / web-pro", within="#simulate")


async def test_the_playground_streams_from_the_model_through_the_gate(page: Page, house: Any, tmp_path: Path) -> None:
    await shown(page, "playground")
    await page.type("#api-key", house.keys["free"])
    await page.type("#most", "12")
    await page.type("#message", "Why is the sky blue? Answer in two sentences.")
    await page.js("""
        window.grew = new Set();
        new MutationObserver(() => window.grew.add(document.querySelector('.turn.assistant .said')?.innerText.length))
            .observe(document.querySelector('#turns'), {childList: true, subtree: true, characterData: true});
    """)
    await page.key("Enter", 13)
    await page.text("Charged", "tokens", within="#figures")
    await page.until("!document.querySelector('#stop')")
    await page.text("First token after", "Left of the key's limits", "of 60", within="#figures")
    # It came in pieces.
    assert await page.js("window.grew.size") > 5
    assert "12" in await page.js("document.querySelector('#figures').innerText")
    for scheme in ("light", "dark"):
        await page.scheme(scheme)
        await shot(page, tmp_path, "playground" if scheme == "light" else "playground-dark")
    row = list(house.ledger().values())[-1]
    assert (row["state"], row["completion_tokens"]) == ("settled", 12)


async def test_what_the_gate_refuses_is_said_in_its_words(page: Page, house: Any) -> None:
    await shown(page, "playground")
    await page.type("#api-key", house.keys["free"])
    await page.type("#most", "900")
    await page.type("#message", "Hello")
    await page.click("#send")
    await page.text("insufficient_quota", within=".chat")
    assert await page.js("document.querySelector('#message').value") == "Hello"
    # The browser itself reports an answer that is an error.
    assert [problem.split(" http")[0] for problem in page.problems] == [
        "Failed to load resource: the server responded with a status of 429 (Too Many Requests)"
    ]
    page.problems.clear()


async def test_live_shows_a_request_while_it_runs(page: Page, house: Any) -> None:
    await shown(page, "live")
    await page.text("requests running")
    client = house.client(house.keys["pro"])
    stream = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Tell me a long story"}], max_tokens=200, stream=True
    )
    next(iter(stream))
    await page.until("document.querySelectorAll('tr.running').length === 1")
    stream.close()
    await page.text("client left")
    await page.until("document.querySelectorAll('tr.running').length === 0")


async def test_the_command_s_address_is_all_that_is_needed(house: Any, tmp_path: Path) -> None:
    address = house.command("console", "--read-only")["url"]
    async with browser(tmp_path / "profile") as page:
        await page.do("Page.navigate", url=address)
        await page.text("Overview", "ready")
        assert await page.js("location.href") == url(house)
        await shown(page, "keys")
        await page.click("#create-account")
        await page.type("#account-name", "no")
        await page.press("Make the account", within="dialog")
        await page.text("insufficient_scope", within="dialog")
        assert await page.violations() == []


async def test_a7_a_wrong_key_gets_no_further(house: Any, tmp_path: Path) -> None:
    async with browser(tmp_path / "profile") as page:
        await page.open(url(house))
        await page.type("#admin-key", house.keys["free"])
        await page.press("Sign in")
        await page.text("insufficient_scope")
        assert await page.js("sessionStorage.length") == 0
        assert await page.violations() == []
        assert [problem.split(" http")[0] for problem in page.problems] == [
            "Failed to load resource: the server responded with a status of 403 (Forbidden)"
        ]
