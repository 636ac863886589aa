"""What the tests of the console do on its pages, and to the house behind them."""

import os
import struct
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.e2e.browser import CHROMIUM, Page

NEEDS_CHROMIUM = pytest.mark.skipif(
    CHROMIUM is None and os.environ.get("CI") != "true", reason="chromium (Debian's chromium) is not installed"
)
MODEL = "smollm2-135m-instruct"
PAGES = {
    "overview": "Requests per second",
    "live": "What was asked and answered is not here",
    "keys": "New key",
    "history": "No secret is ever here",
    "policies": "Candidate policy",
    "playground": "Nothing asked yet",
}


def chat(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], "stream": True, **fields}


def ask(house: Any, key: str, body: dict[str, Any]) -> httpx2.Response:
    headers = {"authorization": f"Bearer {key}"}
    return httpx2.post(f"{house.base_url}/chat/completions", json=body, headers=headers, timeout=60)


def url(house: Any, page: str = "") -> str:
    return f"http://127.0.0.1:{house.admin_port}/console/{page}"


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


async def stays(page: Page) -> None:
    """Escape, twice, leaves the window where it is, and so does going back."""
    for _ in range(2):
        await page.key("Escape", 27)
        await page.until("document.querySelector('dialog').open")
    here = await page.js("location.href")
    await page.js("""new Promise((done) => {
        addEventListener("hashchange", () => setTimeout(done), {once: true});
        history.back();
    })""")
    assert await page.js("location.href") == here
    assert await page.js("document.querySelector('dialog').open")
    assert not await page.js("dispatchEvent(new Event('beforeunload', {cancelable: true}))")
