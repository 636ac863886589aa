"""The console's pages in a real browser, before a server that says what a test wants to see shown."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from proxy.console import files
from tests.e2e.browser import Page, browser
from tests.e2e.console import NEEDS_CHROMIUM

pytestmark = [NEEDS_CHROMIUM]
PAGES: Final = files.load()
STATE = {"version": "1", "policy_revision": "abc", "policy_problems": [], "ready": True, "upstreams": []}
NOON = 1_790_000_000
ERRORS = {"requests": 3, "insufficient_quota": 1}
ROWS = "document.querySelectorAll('tbody tr').length"
RUNNING = "document.querySelectorAll('tr.running').length"
# What is done each five seconds is done each tenth of one, and what is waited for is given up when the test says so.
QUICK = """
    const [every, limits] = [setInterval, []];
    window.setInterval = (run, ms) => every(run, ms / 50);
    AbortSignal.timeout = () => {
        limits.push(new AbortController());
        return limits.at(-1).signal;
    };
    window.expire = () => limits.splice(0).forEach((limit) => limit.abort(new DOMException("", "TimeoutError")));
    window.quick = true;
"""


def sample(number: int) -> dict[str, Any]:
    """So many requests a second as its number."""
    rates = {"requests_per_s": number, "tokens_in_per_s": 0, "tokens_out_per_s": 0, "latency": None}
    counts = {"in_progress": 0, "queued": 0, "open_streams": 0, "active": 0, "first_token": None}
    return {"at": NOON + 5 * number, "errors": ERRORS, "bands": {}, "engines": {}, **rates, **counts}


class Server:
    """Mutable: `status` and `state`, what it answers of itself; `may_answer`, whether it does; `asked`, once it was;
    `waiting`, how many it has not answered; `_news`, what Live is still to be told.
    """

    def __init__(self) -> None:
        self.status = 200
        self.state: dict[str, Any] = STATE
        self.may_answer = asyncio.Event()
        self.asked = asyncio.Event()
        self.waiting = 0
        self._news: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.may_answer.set()

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/console/data/access", self._access)
        app.router.add_get("/console/data/samples", self._samples)
        app.router.add_get("/console/data/live", self._live)
        app.router.add_route("*", "/admin/v1/state", self._state)
        app.router.add_get("/console/{file:.*}", self._file)
        return app

    def tell(self, *requests: dict[str, Any], whole: bool = False) -> None:
        """That it was taken is seen by the number of what was lost."""
        self._news.put_nowait({"requests": requests, "whole": whole, "lost": 1})

    async def _file(self, request: web.Request) -> web.Response:
        file = PAGES[request.path]
        return web.Response(body=file.body, headers={"content-type": file.content_type})

    async def _access(self, _: web.Request) -> web.Response:
        return web.json_response({"key_needed": True})

    async def _samples(self, request: web.Request) -> web.Response:
        after = float(request.query["after"])
        return web.json_response({"samples": [one for one in map(sample, range(60)) if one["at"] > after]})

    async def _state(self, _: web.Request) -> web.Response:
        self.asked.set()
        self.waiting += 1
        await self.may_answer.wait()
        self.waiting -= 1
        return web.json_response(self.state, status=self.status)

    async def _live(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        while True:
            await response.write(f"data: {json.dumps(await self._news.get())}\n\n".encode())


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
async def page(server: Server, tmp_path: Path) -> AsyncIterator[Page]:
    """A tab with the console open and signed in, in a zone that is not the server's."""
    async with TestServer(server.app()) as at, browser(tmp_path / "profile") as page:
        await page.size(1280, 900)
        await page.do("Emulation.setTimezoneOverride", timezoneId="Asia/Kolkata")
        await page.open(str(at.make_url("/console/")))
        await page.type("#admin-key", "sk-th_admin")
        await page.press("Sign in")
        await page.text("ready")
        yield page
        assert page.problems == []


async def test_a_chart_tells_the_value_under_the_mouse(page: Page) -> None:
    told = "document.querySelector('.chart .legend b')?.innerText"
    await page.until(f"{told} === '59'")
    for share, value in ((0.001, "0"), (0.999, "59"), (0.001, "0")):
        await page.point(".chart .u-over", share)
        await page.until(f"{told} === '{value}'")
    await page.point("h1", 0.5)
    await page.until(f"{told} === '59'")


async def test_errors_are_told_in_words(page: Page) -> None:
    await page.text("too many requests", "quota used up")
    assert await page.js("document.querySelector('.legend [title=requests]').innerText.split('\\n')[0]") == (
        "too many requests"
    )


async def test_times_are_told_with_their_zone(page: Page) -> None:
    seconds = "import('/console/html.js').then(({seconds}) => [0.25, 12.34, 59.9, 119.7, 3599.7].map(seconds))"
    assert await page.js(seconds) == ["250 ms", "12.3 s", "1 min 0 s", "2 min 0 s", "1 h"]
    date = "import('/console/html.js').then(({date}) => date('2026-01-31T20:00:00Z'))"
    assert await page.js(date) == "1 Feb 2026, 01:30 GMT+5:30"
    # An axis is a picture: what is written into it is seen as it is written.
    await page.js("""(() => {
        window.written = [];
        const real = CanvasRenderingContext2D.prototype.fillText;
        CanvasRenderingContext2D.prototype.fillText = function (text, ...rest) {
            window.written.push(text);
            return real.call(this, text, ...rest);
        };
    })()""")
    await page.press("5 min")
    await page.until("window.written.some((text) => /^\\d\\d:\\d\\d GMT\\+5:30$/.test(text))")


def request(name: str, *, ended: bool = True) -> dict[str, Any]:
    end = {"ended": NOON + 1, "status": 200, "ending": "complete", "duration_ms": 1000} if ended else {}
    return {"id": name, "began": NOON, "endpoint": "/v1/embeddings", **end}


def requests(name: str, count: int) -> list[dict[str, Any]]:
    return [request(f"{name}-{number}") for number in range(count)]


async def test_live_keeps_what_it_has_when_the_server_shows_less(page: Page, server: Server) -> None:
    await page.js("location.hash = '#/live'")
    server.tell(*requests("old", 150), request("runs", ended=False), whole=True)
    await page.text("1 event ", "Came, GMT+5:30", "1 request running")
    assert await page.js(ROWS) == 151
    # All that run are in a whole, but not all that ended.
    server.tell(*requests("old", 150)[50:], whole=True)
    await page.text("2 events ")
    assert (await page.js(ROWS), await page.js(RUNNING)) == (150, 0)
    await page.type("[type=search]", "old")
    server.tell(*requests("new", 250))
    await page.text("3 events ")
    assert await page.js(ROWS) == 150
    await page.js("document.querySelector('[type=search]').select()")
    await page.do("Input.insertText", text="")
    await page.until(f"{ROWS} === 200")
    # A number is not to be read aloud each time it changes.
    assert await page.js("document.querySelector('.page-head [role=status]').innerText.trim()") == "connected"


async def test_live_is_filtered_by_the_words_that_stand_on_it(page: Page, server: Server) -> None:
    await page.js("location.hash = '#/live'")
    gone = request("gone") | {"status": 499, "ending": "client_gone"}
    server.tell(request("runs", ended=False) | {"stream": True}, request("done"), gone, whole=True)
    await page.until(f"{ROWS} === 3")
    for words, name in (("running", "runs"), ("stream", "runs"), ("client left", "gone"), ("200 done", "done")):
        await page.type("[type=search]", words)
        await page.until(f"{ROWS} === 1 && document.querySelector('tbody code.dim').title === '{name}'")
        # What runs is counted, whether it is shown or not.
        await page.text("1 request running")


async def test_a_key_that_no_header_can_hold_is_told_of_as_wrong(page: Page) -> None:
    await page.press("Sign out")
    await page.type("#admin-key", "sk-th_…")
    await page.press("Sign in")
    await page.text("This is no API key", within=".sign-in .problem")
    assert await page.js("sessionStorage.getItem('tollhouse.key')") is None


async def test_live_holds_still_while_it_is_paused(page: Page, server: Server) -> None:
    await page.js("location.hash = '#/live'")
    server.tell(request("long-one", ended=False), whole=True)
    await page.text("1 request running")
    await page.press("Pause")
    await page.text("paused at")
    server.tell(request("long-one"), request("short", ended=False), request("short"))
    server.tell(request("next-one", ended=False))
    await page.text("3 events ")
    assert (await page.js(ROWS), await page.js(RUNNING)) == (1, 1)
    server.tell(request("next-one"), request("last-one", ended=False))
    await page.text("4 events ")
    assert (await page.js(ROWS), await page.js(RUNNING)) == (1, 1)
    await page.press("Go on")
    await page.text("1 request running")
    ids = await page.js("[...document.querySelectorAll('tbody code.dim')].map((one) => one.title)")
    assert ids == ["last-one", "next-one", "short", "long-one"]


async def test_a_state_that_is_not_told_is_not_shown_as_good(page: Page, server: Server) -> None:
    server.status, server.state = 503, {"error": {"message": "No.", "code": "storage_unavailable"}}
    await page.text("no answer: storage_unavailable", within="header")
    page.problems.clear()


async def test_a_new_key_in_the_address_lets_go_on_and_what_was_written_can_be_forgotten(
    page: Page, server: Server
) -> None:
    ended = "import('/console/api.js').then(({get}) => get('/admin/v1/state')).catch((error) => error.status)"
    refused = {"error": {"message": "No such key.", "code": "invalid_api_key"}}
    written = "document.querySelector('#message')?.value"
    await page.js("location.hash = '#/playground'")
    await page.type("#message", "A thought")
    server.status, server.state = 401, refused
    assert await page.js(ended) == 401
    await page.text("Your key has ended")
    await page.js("location.hash = '#key=sk-th_wrong'")
    await page.text("No such key", within=".sign-in .problem")
    server.status, server.state = 200, STATE
    await page.js("location.hash = '#key=sk-th_new'")
    await page.text("ready")
    assert await page.js("[location.hash, sessionStorage.getItem('tollhouse.key')]") == ["#/playground", "sk-th_new"]
    assert await page.js(written) == "A thought"
    server.status, server.state = 401, refused
    assert await page.js(ended) == 401
    await page.press("Forget what was written")
    await page.until(f"{written} === undefined")
    assert await page.js("document.querySelector('.sign-in').innerText.includes('Forget')") is False
    page.problems.clear()


async def test_a_server_that_hangs_is_waited_for_so_long_and_told_of(page: Page, server: Server) -> None:
    await page.do("Page.addScriptToEvaluateOnNewDocument", source=QUICK)
    await page.do("Page.reload")
    await page.until("window.quick && document.querySelector('header')?.innerText.includes('ready')")
    server.may_answer.clear()
    server.asked.clear()
    await server.asked.wait()
    await page.js("new Promise((done) => setTimeout(done, 500))")
    assert server.waiting == 1
    await page.js("expire()")
    await page.text("server away", within="header")
    assert await page.js("document.querySelector('header .state').title") == "There was no answer within 30 s."
    asked = """import('/console/api.js').then(({post}) => {
        const answer = post('/admin/v1/state');
        expire();
        return answer;
    })"""
    assert await page.js(f"{asked}.catch((error) => [error.status, error.message])") == [
        0,
        "There was no answer within 30 s. What was asked may have been done all the same.",
    ]
    server.may_answer.set()
    await page.text("ready", within="header")


async def test_a_key_is_kept_while_the_server_cannot_say_whether_it_is_good(page: Page, server: Server) -> None:
    await page.do("Page.addScriptToEvaluateOnNewDocument", source=QUICK)
    server.status, server.state = 503, {"error": {"message": "The database is away.", "code": "storage_unavailable"}}
    await page.do("Page.reload")
    await page.text("The database is away", within=".sign-in .problem")
    server.asked.clear()
    await server.asked.wait()
    assert await page.js("!!document.querySelector('#admin-key') && !document.querySelector('header')")
    server.status, server.state = 200, STATE
    await page.text("ready", within="header")
    assert await page.js("sessionStorage.getItem('tollhouse.key')") == "sk-th_admin"
    address = await page.js("location.href")
    # The page that is open may not learn it first: what comes after it would have no key to show.
    await page.open("about:blank")
    server.status, server.state = 401, {"error": {"message": "No such key.", "code": "invalid_api_key"}}
    await page.open(address)
    await page.text("No such key", within=".sign-in .problem")
    assert await page.js("sessionStorage.getItem('tollhouse.key')") is None
    page.problems.clear()


async def test_an_answer_that_comes_after_signing_out_is_not_shown(page: Page, server: Server) -> None:
    server.may_answer.clear()
    server.asked.clear()
    await server.asked.wait()
    await page.press("Sign out")
    server.may_answer.set()
    # There is nothing to wait for: it may not be seen.
    await page.js("new Promise((done) => setTimeout(done, 300))")
    assert await page.js("!!document.querySelector('#admin-key') && !document.querySelector('header')")
