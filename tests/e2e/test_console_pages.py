"""The console's pages in a real browser, before a server that says what a test wants to see shown."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.e2e.browser import CHROMIUM, Page, browser

pytestmark = [
    pytest.mark.skipif(
        CHROMIUM is None and os.environ.get("CI") != "true", reason="chromium (Debian's chromium) is not installed"
    )
]
STATIC = Path(__file__).parents[2] / "proxy/console/static"
STATE = {"version": "1", "policy_revision": "abc", "policy_problems": [], "ready": True, "upstreams": []}
NOON = 1_790_000_000
ERRORS = {"requests": 3, "insufficient_quota": 1}
ROWS = "document.querySelectorAll('tbody tr').length"
RUNNING = "document.querySelectorAll('tr.running').length"


def sample(number: int) -> dict[str, Any]:
    """So many requests a second as its number."""
    rates = {"requests_per_s": number, "tokens_in_per_s": 0, "tokens_out_per_s": 0, "latency": None}
    counts = {"in_progress": 0, "queued": 0, "open_streams": 0, "active": 0, "first_token": None}
    return {"at": NOON + 5 * number, "errors": ERRORS, "bands": {}, "engines": {}, **rates, **counts}


class Server:
    """Mutable: `status` and `state`, what it answers of itself; `may_answer`, whether it does; `asked`, once it was;
    `_news`, what Live is still to be told.
    """

    def __init__(self) -> None:
        self.status = 200
        self.state: dict[str, Any] = STATE
        self.may_answer = asyncio.Event()
        self.asked = asyncio.Event()
        self._news: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.may_answer.set()

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/console/", self._index)
        app.router.add_get("/console/data/access", self._access)
        app.router.add_get("/console/data/samples", self._samples)
        app.router.add_get("/console/data/live", self._live)
        app.router.add_get("/admin/v1/state", self._state)
        app.router.add_static("/console/", STATIC)
        return app

    def tell(self, *requests: dict[str, Any], whole: bool = False) -> None:
        """That it was taken is seen by the number of what was lost."""
        self._news.put_nowait({"requests": requests, "whole": whole, "lost": 1})

    async def _index(self, _: web.Request) -> web.FileResponse:
        return web.FileResponse(STATIC / "index.html")

    async def _access(self, _: web.Request) -> web.Response:
        return web.json_response({"key_needed": True})

    async def _samples(self, request: web.Request) -> web.Response:
        after = float(request.query["after"])
        return web.json_response({"samples": [one for one in map(sample, range(60)) if one["at"] > after]})

    async def _state(self, _: web.Request) -> web.Response:
        self.asked.set()
        await self.may_answer.wait()
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
