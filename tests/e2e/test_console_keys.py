"""Keys and accounts on the console's page."""

from typing import Any

import pytest

from tests.e2e.browser import Page
from tests.e2e.console import NEEDS_CHROMIUM, ask, chat, shown, stays
from tests.fakes.tiers import UNLIMITED

pytestmark = [NEEDS_CHROMIUM]
# The next change that the page asks for waits for `go()`.
HELD_UP = """(() => {
    const real = fetch;
    window.fetch = (path, options) => {
        if (options.method !== "POST") return real(path, options);
        window.fetch = real;
        return new Promise((done) => { window.go = () => done(real(path, options)); });
    };
})()"""
# The keys' list has 6,000.
MANY_KEYS = """(() => {
    const real = fetch;
    window.fetch = async (path, options) => {
        const url = new URL(path, location);
        if (url.pathname !== "/admin/v1/keys") return real(path, options);
        const from = Number(url.searchParams.get("after"));
        const data = Array.from({length: 1000}, (_, i) => {
            const name = `key-${String((from + i) * 7 % 6000).padStart(4, "0")}`;
            const state = i % 2 ? "active" : "expired";
            const usual = {account: "acme", tier: "pro", limits: {}, allow_from: [], deny_from: []};
            return {key_id: `id${from + i}`, name, state, ...usual};
        });
        return Response.json({data, next: from < 5000 ? String(from + 1000) : null});
    };
})()"""
BAD_REQUEST = "Failed to load resource: the server responded with a status of 400 (Bad Request)"


@pytest.fixture(scope="module")
def house(console_house: Any) -> Any:
    return console_house


async def test_a_key_is_made_and_used_and_revoked_on_the_page(page: Page, house: Any) -> None:
    await shown(page, "keys")
    await page.click("#create-key")
    await page.type("#key-name", "made-here")
    await page.choose("#key-account", "acme")
    await page.choose("#key-tier", "free")
    await page.js(HELD_UP)
    await page.press("Make the key", within="dialog")
    await page.text("Working…", within="dialog")
    # Its secret is shown once: until it is here, and while it is, there is no way out by mistake.
    await stays(page)
    assert await page.js("document.querySelector('dialog .buttons .quiet').disabled")
    await page.js("go()")
    await page.text("the only time it is shown", within="dialog")
    await stays(page)
    secret = await page.js("document.querySelector('dialog .secret input').value")
    await page.press("I have copied it", within="dialog")
    await page.until("!document.querySelector('dialog') && document.activeElement.id === 'create-key'")
    await page.text("made-here", within="#keys")
    assert secret not in await page.js("document.documentElement.outerHTML")
    body = chat("Hi", max_tokens=2)
    assert ask(house, secret, body).status_code == 200
    rotated = await rotated_at_once(page, "made-here")
    assert ask(house, secret, body).status_code == 401
    assert ask(house, rotated, body).status_code == 200
    await page.press("Revoke made-here")
    await page.text("This cannot be undone", within="dialog")
    # Escape is a way out: nothing was done.
    await page.key("Escape", 27)
    await page.until("!document.querySelector('dialog')")
    assert ask(house, rotated, body).status_code == 200
    await page.click("[aria-label='Revoke made-here']")
    await page.press("Revoke", within="dialog")
    # What had the focus is gone with its row.
    gone = "!document.querySelector('#keys').innerText.includes('made-here')"
    await page.until(f"{gone} && document.activeElement.type === 'search'")
    assert ask(house, rotated, body).status_code == 401
    events = house.command("audit", "list", "--limit", "3")["rows"]
    assert [event["action"] for event in events] == ["key.revoke", "key.rotate", "key.create"]
    assert {event["address"] for event in events} == {"127.0.0.1"}


async def test_a_key_is_changed_on_the_page_and_its_history_says_so(page: Page, house: Any) -> None:
    made = house.command("keys", "create", "--account", "acme", "--tier", "free", "--name", "to-change")["key_id"]
    await shown(page, "keys")
    await page.press("Change to-change")
    await page.text(made, "acme", within="dialog")
    await page.click("dialog summary")
    # What it has not of its own is that of its tier.
    limit = "dialog [data-limit={}]".format
    assert await page.js(f"document.querySelector('{limit('monthly_tokens')}').placeholder") == "1,000"
    await page.type("#key-name", "changed")
    await page.choose("#key-tier", "pro")
    assert await page.js(f"document.querySelector('{limit('monthly_tokens')}').placeholder") == "unlimited"
    await page.choose("#key-ends", "30")
    await page.type("#key-models", "one, two")
    await page.type("#key-allow", "192.0.2.0/24,127.0.0.1")
    await page.type(limit("monthly_tokens"), "unlimited")
    await page.type(limit("concurrency"), "many")
    await page.press("Save", within="dialog")
    await page.text('"Requests at once" is a whole number', within="dialog .problem")
    await page.type(limit("concurrency"), "3")
    await page.click("dialog fieldset:last-of-type input")
    await page.press("Save", within="dialog")
    await page.until("!document.querySelector('dialog')")
    await page.text("requests at once: 3", "tokens a month: unlimited", "allowed from: 192.0.2.0/24", within="#keys")
    key = house.command("keys", "show", made)
    assert (key["name"], key["tier"], key["models"]) == ("changed", "pro", ["one", "two"])
    assert key["limits"] == {"concurrency": 3, "monthly_tokens": "unlimited"}
    assert key["allow_from"] == ["192.0.2.0/24", "127.0.0.1/32"]
    assert "chat" not in key["scopes"]
    assert key["expires"] is not None
    # What is not changed stays, and no change is none.
    await page.press("Change changed")
    await page.press("Save", within="dialog")
    await page.until("!document.querySelector('dialog')")
    assert house.command("keys", "show", made) == key
    await page.press("Change changed")
    await page.click("dialog summary")
    await page.type(limit("concurrency"), " ")
    await page.choose("#key-ends", "")
    await page.click("dialog fieldset:last-of-type input")
    await page.press("Save", within="dialog")
    await page.until("!document.querySelector('dialog')")
    changed = house.command("keys", "show", made)
    assert changed == key | {"limits": {"monthly_tokens": "unlimited"}, "expires": None, "scopes": None}
    await page.js(f"document.querySelector('[href=\"#/history/{made}\"]').click()")
    await page.text("History of changed", made)
    assert await page.js("document.querySelectorAll('#history tbody tr').length") == 3
    await page.text("key made", "key changed", "tier: free → pro", "console", "from 127.0.0.1", within="#history")
    await page.js(
        "[...document.querySelectorAll('.page-head a')].find((one) => one.innerText.includes('every')).click()"
    )
    await page.text("account made", within="#history")
    house.command("keys", "revoke", made)


async def test_an_account_is_changed_on_the_page(page: Page, house: Any) -> None:
    house.command("accounts", "create", "to-change", "--monthly-requests", "7")
    await shown(page, "keys")
    await page.press("Change to-change")
    await page.type("#account-name", "changed-account")
    await page.type("dialog [data-limit=monthly_tokens]", "5000")
    await page.type("dialog [data-limit=monthly_requests]", " ")
    await page.press("Save", within="dialog")
    await page.text("changed-account", "0 of 5,000", within="#accounts")
    assert house.command("accounts", "show", "changed-account")["limits"] == {"monthly_tokens": 5000}


async def test_a_new_account_is_kept_when_its_key_is_refused_at_first(page: Page, house: Any) -> None:
    weak = house.command(
        "keys", "create", "--account", "ops", "--tier", "pro", "--name", "weak", "--scope", "admin", "--scope", "chat"
    )
    await page.js(f"sessionStorage.setItem('tollhouse.key', '{weak['secret']}')")
    await shown(page, "keys")
    await page.click("#create-key")
    await page.type("#key-name", "second-try")
    await page.choose("#key-account", "")
    await page.type("#key-account-name", "hooli")
    await page.click("dialog summary")
    await page.type("dialog details input", "m" * 101)
    await page.press("Make the key", within="dialog")
    await page.text("length", within="dialog .problem")
    await page.text("hooli", within="#accounts")
    assert await page.js("document.querySelector('#key-account').value") == "hooli"
    await page.type("dialog details input", " ")
    await page.press("Make the key", within="dialog")
    await page.text("the only time it is shown", within="dialog")
    await page.press("I have copied it", within="dialog")
    await page.text("second-try", within="#keys")
    # What the admin key may not do itself was not chosen.
    (made,) = house.command("keys", "list", "--account", "hooli")["rows"]
    assert made["scopes"] == ["chat"]
    assert [problem.split(" http")[0] for problem in page.problems] == [BAD_REQUEST]
    page.problems.clear()


async def test_more_keys_than_a_page_takes_are_told_of(page: Page) -> None:
    await page.js(MANY_KEYS)
    await shown(page, "keys")
    await page.text("more keys or accounts than the 5,000", "tollhouse keys list")
    rows = "document.querySelectorAll('#keys tbody tr').length"
    # Every other one has expired.
    assert await page.js(rows) == 200
    await page.press("Show 200 more of 2,300")
    await page.until(f"{rows} === 400")
    await page.text("2,500", within="#accounts")
    await page.type("[type=search]", "key-0042 expired")
    await page.text("1 key that ended")
    await page.click(".page-head [type=checkbox]")
    await page.until(f"{rows} === 1")
    await shown(page, "policies")
    await page.text("more keys or accounts than the 5,000", "tollhouse policy explain")
    for form in ("explain", "simulate"):
        options = f"[...[...document.querySelectorAll('#{form} select')].find((one) => one.length >= 5000).options]"
        names = await page.js(f"{options}.slice(-5000).map((one) => one.text)")
        assert names == sorted(names)


async def test_an_account_is_made_disabled_and_enabled_on_the_page(page: Page, house: Any) -> None:
    await shown(page, "keys")
    await page.click("#create-account")
    await page.type("#account-name", "initech")
    await page.press("Make the account", within="dialog")
    await page.press("Disable initech")
    await page.press("Disable", within="dialog")
    await page.press("Enable initech")
    await page.press("Enable", within="dialog")
    await page.until(
        "[...document.querySelectorAll('#accounts button')].some((one) => one.ariaLabel === 'Disable initech')"
    )
    assert not house.command("accounts", "show", "initech")["disabled"]


async def test_a_long_name_leaves_the_columns_beside_it_in_sight(page: Page, house: Any) -> None:
    account, key = "a" * 100, " ".join(["key"] * 25)
    house.command("accounts", "create", account)
    made = house.command("keys", "create", "--account", account, "--tier", "pro", "--name", key)
    whole = (
        "(({{clientWidth, scrollWidth}}) => clientWidth === scrollWidth)(document.querySelector('.scroll:has({0})'))"
    )
    await shown(page, "keys")
    await page.type("input[type=search]", made["key_id"])
    await page.text(key, within="#keys")
    # Whose key fits is found with it, and nobody else.
    await page.until("document.querySelectorAll('#accounts tbody tr').length === 1")
    assert await page.js(whole.format("#keys"))
    assert await page.js(whole.format("#accounts"))
    await page.press(f"Change {key}")
    await page.until("!!document.querySelector('dialog')")
    assert await page.js(
        "(({clientWidth, scrollWidth}) => clientWidth === scrollWidth)(document.querySelector('dialog'))"
    )
    await page.key("Escape", 27)
    await page.js(f"location.hash = '#/history/{made['key_id']}'")
    await page.text(key, within="#history")
    assert await page.js(whole.format("#history"))
    house.command("keys", "revoke", made["key_id"])


async def test_what_is_left_of_a_month_is_told_in_requests_and_in_tokens(page: Page, house: Any) -> None:
    limits = ("--monthly-requests", "5", "--monthly-tokens", "5000")
    made = house.command("keys", "create", "--account", "acme", "--tier", "pro", "--name", "limited", *limits)
    assert ask(house, made["secret"], chat("Hi", max_tokens=2)).status_code == 200
    await shown(page, "keys")
    await page.type("input[type=search]", "limited")
    await page.text("1 of 5", "of 5,000", within="#keys")
    house.command("keys", "revoke", made["key_id"])


async def test_an_account_has_the_quota_that_its_tier_gives_or_its_own(page: Page, house: Any) -> None:
    lab = {"version": 1, "tiers": {"lab": UNLIMITED | {"account_monthly_tokens": 7000}}}
    house.yaml("policies/lab.yaml", lab)
    await shown(page, "policies")
    await page.text("7,000", within="#tiers")
    for name, *limits in (("its-tier",), ("its-own", "--monthly-tokens", "9000")):
        house.command("accounts", "create", name, *limits)
        house.command("keys", "create", "--account", name, "--tier", "lab", "--name", "member")
    await shown(page, "keys")
    await page.text("0 of 7,000", "0 of 9,000", within="#accounts")


async def test_who_rotates_the_key_in_use_goes_on_with_its_new_secret(page: Page, house: Any) -> None:
    made = house.command("keys", "create", "--account", "ops", "--tier", "pro", "--name", "own", "--scope", "admin")
    await page.js(f"sessionStorage.setItem('tollhouse.key', '{made['secret']}')")
    await shown(page, "keys")
    secret = await rotated_at_once(page, "own")
    assert await page.js("import('/console/api.js').then(({get}) => get('/admin/v1/state')).then((told) => told.ready)")
    assert await page.js("sessionStorage.getItem('tollhouse.key')") == secret != made["secret"]
    house.command("keys", "revoke", made["key_id"])


async def test_a_secret_is_shown_until_it_is_copied_though_the_key_in_use_ends(page: Page, house: Any) -> None:
    made = house.command("keys", "create", "--account", "ops", "--tier", "pro", "--name", "ends", "--scope", "admin")
    await page.js(f"sessionStorage.setItem('tollhouse.key', '{made['secret']}')")
    await shown(page, "keys")
    await page.press("Rotate ends")
    await page.press("Rotate", within="dialog")
    await page.text("the only time it is shown", within="dialog")
    house.command("keys", "revoke", made["key_id"])
    asked = "import('/console/api.js').then(({get}) => get('/admin/v1/state')).catch((error) => error.status)"
    assert await page.js(asked) == 401
    await stays(page)
    assert await page.js("document.querySelector('dialog').offsetHeight") > 0
    await page.press("I have copied it", within="dialog")
    await page.until("document.querySelector('#admin-key') && !document.querySelector('dialog')")
    assert all("401 (Unauthorized)" in problem for problem in page.problems)
    page.problems.clear()


async def rotated_at_once(page: Page, name: str) -> str:
    """The new secret of a key; the one before it ends."""
    await page.press(f"Rotate {name}")
    await page.choose("dialog select", "0")
    await page.press("Rotate", within="dialog")
    await page.text("the only time it is shown", within="dialog")
    secret: str = await page.js("document.querySelector('dialog .secret input').value")
    await page.press("I have copied it", within="dialog")
    return secret
