"""The console in a real browser, before a real house with the real model.

`TOLLHOUSE_SHOTS=FOLDER` keeps the pictures, to be looked at.
"""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.browser import Page, browser
from tests.e2e.console import MODEL, NEEDS_CHROMIUM, PAGES, ask, chat, shot, shown, url
from tests.fakes.tiers import UNLIMITED

pytestmark = [NEEDS_CHROMIUM]
# What the playground asks for has no end but its most tokens.
ENDLESS = """(() => {
    const real = fetch;
    window.fetch = (path, options) => {
        const asked = options.body === undefined ? {} : JSON.parse(options.body);
        return real(path, asked.messages ? {...options, body: JSON.stringify({...asked, ignore_eos: true})} : options);
    };
})()"""


@pytest.fixture(scope="module")
def house(console_house: Any) -> Any:
    return console_house


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


async def test_explain_says_who_does_not_get_in_and_what_a_prompt_costs(page: Page, house: Any) -> None:
    house.command("accounts", "create", "umbrella")
    barred = house.command("keys", "create", "--account", "umbrella", "--tier", "pro", "--name", "barred")["key_id"]
    house.command("accounts", "disable", "umbrella")
    await shown(page, "policies")
    await page.choose("#explain select", barred)
    await page.press("Explain", within="#explain")
    await page.text("refused: the key's account is disabled", within="#explain")
    await page.choose("#explain select", house.keys["free"].split("_")[1])
    await page.press("Explain", within="#explain")
    await page.text("allowed", within="#explain [role=status]")
    await page.type("#explain-prompt", "Why is the sky blue?")
    await page.type("#explain-most", "990")
    await page.press("Explain", within="#explain")
    await page.text("refused by monthly_tokens", within="#explain [role=status]")
    await page.text("would be set aside", "990 for the answer", within="#explain")


async def test_a_policy_that_is_read_again_is_shown_and_what_was_written_stays(page: Page, house: Any) -> None:
    await shown(page, "policies")
    area = "document.querySelector('#simulate textarea').value"
    await page.type("#simulate textarea", "mine")
    lab = {"version": 1, "tiers": {"lab": UNLIMITED | {"requests_per_minute": 4321}}}
    house.yaml("policies/lab.yaml", lab)
    await page.text("4,321", within="#tiers")
    assert await page.js(area) == "mine"
    await page.choose("#candidate-file", "lab.yaml")
    await page.until(f"{area}.includes('4321')")


async def test_a_candidate_policy_is_simulated_on_the_page(page: Page, house: Any) -> None:
    gone = house.command("keys", "create", "--account", "acme", "--tier", "free", "--name", "gone")
    for _ in range(2):
        assert ask(house, gone["secret"], chat("Hi", max_tokens=2)).status_code == 200
    house.command("keys", "revoke", gone["key_id"])
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
    await page.text("let in", "By rule", "requests_per_minute", "acme / web-pro", "acme / gone", within="#simulate")


async def test_the_playground_streams_from_the_model_through_the_gate(page: Page, house: Any, tmp_path: Path) -> None:
    await shown(page, "playground")
    await page.type("#api-key", house.keys["free"])
    await page.type("#most", "12")
    await page.js(ENDLESS)
    await page.type("#message", "Why is the sky blue? Answer in two sentences.")
    await page.key("Enter", 13)
    await page.text("Charged", "tokens", within="#figures")
    await page.until("!document.querySelector('#stop')")
    await page.text("First token after", "Left of the key's limits", "of 60", within="#figures")
    # Nothing is set aside for it any more, and the month is there, too.
    key_id = house.keys["free"].split("_")[1]
    rows = [row for row in house.ledger().values() if row["key_id"] == key_id]
    spent = sum(row["prompt_tokens"] + row["completion_tokens"] for row in rows)
    await page.text("monthly_tokens", f"{1000 - spent} of 1,000", within="#figures")
    assert await page.js("/Output tokens\\s+12\\b/.test(document.querySelector('#figures').innerText)")
    for scheme in ("light", "dark"):
        await page.scheme(scheme)
        await shot(page, tmp_path, "playground" if scheme == "light" else "playground-dark")
    row = list(house.ledger().values())[-1]
    assert (row["state"], row["completion_tokens"]) == ("settled", 12)


async def test_an_answer_is_followed_and_what_was_stopped_is_charged(page: Page, house: Any) -> None:
    await page.size(1280, 500)
    await shown(page, "playground")
    await page.type("#api-key", house.keys["pro"])
    # So that it is as long each time.
    await page.type(".settings [max='2']", "0")
    await page.type("#most", "1500")
    await page.js(ENDLESS)
    await page.js("""
        window.grew = new Set();
        new MutationObserver(() => window.grew.add(Math.floor(performance.now() / 5)))
            .observe(document.querySelector('#turns'), {childList: true, subtree: true, characterData: true});
    """)
    await page.type("#message", "Tell me a long story of all of these:" + "\n" * 20 + "a fox")
    await page.click("#send")
    turns = "document.querySelector('#turns')"
    said = f"{turns}.querySelector('.assistant .said').innerText.length"
    left = f"({turns}.scrollHeight - {turns}.clientHeight - {turns}.scrollTop)"
    # It comes in pieces, at so many times: a model takes more than 5 ms for a token.
    await page.until("window.grew.size > 5")
    await page.until(f"{said} > 10 && {turns}.scrollHeight > {turns}.clientHeight + 100 && {left} < 2")
    # Who reads what stands above is left there.
    await page.js(f"{turns}.scrollTop = 0")
    before = await page.js(said)
    await page.until(f"{said} > {before} + 10")
    assert await page.js(f"{turns}.scrollTop") == 0
    await page.click("#stop")
    await page.text("client gone", within="#figures")
    row = house.ledger()[await page.js("document.querySelector('#figures code').innerText")]
    assert row["completion_tokens"] > 0
    await page.text(f"{row['prompt_tokens'] + row['completion_tokens']} tokens", within="#figures")


async def test_what_the_gate_refuses_is_said_in_its_words(page: Page, house: Any) -> None:
    await shown(page, "playground")
    await page.type("#api-key", house.keys["free"])
    await page.type("#most", "990")
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
    story = chat("Tell me a very long story about a lighthouse.", max_tokens=1500, temperature=0)
    stream = client.chat.completions.create(**story, extra_body={"ignore_eos": True})
    next(iter(stream))
    await page.until("document.querySelectorAll('tr.running').length === 1")
    stream.close()
    short = stream.response.headers["x-request-id"][-8:]
    row = f"[...document.querySelectorAll('tr')].find((row) => row.innerText.includes('{short}'))"
    await page.until(f"{row}.innerText.includes('client left')")
    await page.until("document.querySelectorAll('tr.running').length === 0")


async def test_what_is_written_outlasts_a_page_and_a_session_but_not_signing_out(page: Page, house: Any) -> None:
    made = house.command("keys", "create", "--account", "ops", "--tier", "pro", "--name", "brief", "--scope", "admin")
    await page.press("Sign out")
    await signed_in(page, made["secret"])
    await shown(page, "policies")
    await page.type("#simulate textarea", "version: 1\ntiers: 3\n")
    await page.press("Simulate", within="#simulate")
    await page.text("This policy is wrong", within="#simulate")
    await shown(page, "playground")
    await page.type("#api-key", "sk-mine")
    await page.type("#message", "A thought")
    await shown(page, "overview")
    assert await page.js("document.querySelector('#main').innerText.includes('Candidate policy')") is False
    house.command("keys", "create", "--account", "ops", "--tier", "pro", "--name", "come-since")
    await kept(page)
    await page.text("come-since", within="#explain select")
    house.command("keys", "revoke", made["key_id"])
    await page.text("Your key has ended")
    assert await page.js("document.querySelector('#main').offsetHeight") == 0
    await signed_in(page, house.keys["admin"])
    await kept(page)
    await page.press("Back to the files")
    await page.until("!document.querySelector('#simulate textarea').value.includes('tiers: 3')")
    await page.type("#simulate textarea", "version: 1\ntiers: 3\n")
    await page.press("Sign out")
    assert await page.js("document.querySelector('#message')") is None
    await signed_in(page, house.keys["admin"])
    await shown(page, "playground")
    assert await page.js("document.querySelector('#message').value") == ""
    await shown(page, "policies")
    assert "tiers: 3" not in await page.js("document.querySelector('#simulate textarea').value")
    assert all("401 (Unauthorized)" in problem for problem in page.problems)
    page.problems.clear()


async def signed_in(page: Page, key: str) -> None:
    await page.type("#admin-key", key)
    await page.press("Sign in")
    await page.until("!document.querySelector('#admin-key')")


async def kept(page: Page) -> None:
    await shown(page, "playground")
    assert await page.js("document.querySelector('#message').value") == "A thought"
    assert await page.js("document.querySelector('#api-key').value") == "sk-mine"
    await shown(page, "policies")
    assert "tiers: 3" in await page.js("document.querySelector('#simulate textarea').value")
    await page.text("This policy is wrong", within="#simulate")


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
