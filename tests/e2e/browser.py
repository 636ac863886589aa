"""A headless Chromium, driven over the DevTools protocol, and everything that goes wrong in its page."""

import asyncio
import base64
import contextlib
import json
import os
import shutil
import signal
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import aiohttp

CHROMIUM: Final = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WAIT_S: Final = 60.0
# A container has no namespaces to put its processes in, and a small /dev/shm; nothing here is a stranger's page.
OPTIONS: Final = (
    "--headless=new",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--hide-scrollbars",
    "--no-first-run",
    "--no-default-browser-check",
    "--remote-debugging-port=0",
)
# What is said of something that was asked of a page that has just gone.
LEAVING: Final = ("Inspected target navigated", "Cannot find context", "Execution context was destroyed")
# A violation is also told to the page: this keeps what it was.
WATCH: Final = """
    window.violations = [];
    addEventListener("securitypolicyviolation", (told) => {
        window.violations.push(`${told.violatedDirective} ${told.blockedURI}`);
    });
"""


class LeavingError(Exception):
    """What was asked was asked of a page that another one takes the place of."""


class Page:
    """One tab. Mutable: `problems`, what the console said; `_answers`, what is waited for, by its number."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, url: str) -> None:
        self.problems: list[str] = []
        self.url = url
        self._socket = socket
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._last = 0

    async def listen(self) -> None:
        async for message in self._socket:
            told = json.loads(message.data)
            if "id" in told:
                answer = self._answers.pop(told["id"])
                # Nobody waits any more for what came too late.
                if not answer.done():
                    answer.set_result(told)
            else:
                self._note(told["method"], told["params"])

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Log.entryAdded" and params["entry"]["level"] in {"error", "warning"}:
            self.problems.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.problems.append(str(details.get("exception", {}).get("description", details["text"])))
        elif method == "Runtime.consoleAPICalled" and params["type"] in {"error", "warning", "assert"}:
            self.problems.append(str([part.get("value") for part in params["args"]]))

    async def do(self, method: str, **params: Any) -> dict[str, Any]:
        self._last += 1
        answer = self._answers[self._last] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": self._last, "method": method, "params": params})
        async with asyncio.timeout(WAIT_S):
            told = await answer
        if told.get("error", {}).get("message", "").startswith(LEAVING):
            raise LeavingError(told["error"]["message"])
        assert "error" not in told, (method, told)
        return dict(told["result"])

    async def js(self, expression: str) -> Any:
        """The value of an expression, which may be a promise."""
        told = await self.do("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in told, (expression, told["exceptionDetails"])
        return told["result"].get("value")

    async def until(self, expression: str) -> Any:
        """Wait until it is true of the page."""
        try:
            async with asyncio.timeout(WAIT_S):
                # The page is another process: there is nothing here that could tell.
                while not (found := await self._now(expression)):  # noqa: ASYNC110 - as said
                    await asyncio.sleep(0.05)
        except TimeoutError:
            text = await self.js("document.body.innerText")
            raise AssertionError(f"never: {expression}\nthe page: {text[:3000]}\nproblems: {self.problems}") from None
        return found

    async def _now(self, expression: str) -> Any:
        """Its value; none between two pages."""
        try:
            return await self.js(expression)
        except LeavingError:
            return None

    async def open(self, url: str) -> None:
        await self.do("Page.navigate", url=url)
        await self.until(f"document.readyState === 'complete' && location.href.startsWith({json.dumps(url)})")

    async def text(self, *words: str, within: str = "body") -> None:
        """Wait until all of these can be read."""
        for word in words:
            await self.until(f"document.querySelector({json.dumps(within)})?.innerText.includes({json.dumps(word)})")

    async def click(self, selector: str) -> None:
        """As a mouse does, once it can be."""
        element = f"document.querySelector({json.dumps(selector)})"
        await self.until(f"{element} && !{element}.disabled")
        await self.js(f"{element}.scrollIntoView({{block: 'center'}})")
        await self.js(f"{element}.focus()")
        await self.js(f"{element}.click()")

    async def point(self, selector: str, share: float) -> None:
        """Move the mouse over an element, to this share of its width."""
        element = f"document.querySelector({json.dumps(selector)})"
        await self.until(f"!!{element}")
        await self.js(f"{element}.scrollIntoView({{block: 'center'}})")
        x, y = await self.js(
            f"(({{x, y, width, height}}) => [x + width * {share}, y + height / 2])({element}.getBoundingClientRect())"
        )
        await self.do("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    async def press(self, label: str, within: str = "body") -> None:
        """A button, by what it says or by its label."""
        found = (
            f"[...document.querySelectorAll({json.dumps(within)} + ' button')].find((one) => !one.disabled"
            f" && [one.innerText.trim(), one.ariaLabel].includes({json.dumps(label)}))"
        )
        await self.until(f"!!{found}")
        await self.js(f"{found}.click()")

    async def type(self, selector: str, text: str) -> None:
        """As from a keyboard, in the place of what is there."""
        await self.until(f"!!document.querySelector({json.dumps(selector)})")
        await self.js(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.focus(); e.select(); }})()"
        )
        await self.do("Input.insertText", text=text)

    async def key(self, name: str, code: int) -> None:
        """Press a key that writes nothing; `code` is the number that Windows has for it."""
        await self.do("Input.dispatchKeyEvent", type="rawKeyDown", key=name, code=name, windowsVirtualKeyCode=code)
        await self.do("Input.dispatchKeyEvent", type="keyUp", key=name, code=name, windowsVirtualKeyCode=code)

    async def choose(self, selector: str, value: str) -> None:
        await self.until(f"!!document.querySelector({json.dumps(selector)})")
        await self.js(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.value = {json.dumps(value)};"
            " e.dispatchEvent(new Event('change', {bubbles: true})); })()"
        )

    async def scheme(self, name: str) -> None:
        """`light` or `dark`."""
        await self.do("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    async def size(self, width: int, height: int) -> None:
        await self.do(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    async def shot(self, path: Path) -> bytes:
        """A picture of what can be seen, as PNG."""
        told = await self.do("Page.captureScreenshot", format="png")
        data = base64.b64decode(told["data"])
        await asyncio.to_thread(path.write_bytes, data)
        return data

    async def violations(self) -> list[str]:
        found: list[str] = await self.js("window.violations")
        return found


@contextlib.asynccontextmanager
async def browser(folder: Path) -> AsyncIterator[Page]:
    """A browser of its own with one tab; its profile is in the folder."""
    assert CHROMIUM is not None
    process = await asyncio.create_subprocess_exec(
        CHROMIUM,
        *OPTIONS,
        f"--user-data-dir={folder}",
        "about:blank",
        stdout=DEVNULL,
        stderr=DEVNULL,
        start_new_session=True,
    )
    try:
        async with aiohttp.ClientSession() as session:
            port = await _port(folder / "DevToolsActivePort")
            async with session.get(f"http://127.0.0.1:{port}/json/list") as response:
                (tab, *_) = [one for one in await response.json() if one["type"] == "page"]
            async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                page = Page(socket, tab["url"])
                listening = asyncio.create_task(page.listen())
                try:
                    for domain in ("Page", "Runtime", "Log", "Network"):
                        await page.do(f"{domain}.enable")
                    await page.do("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
                    yield page
                finally:
                    listening.cancel()
                    await asyncio.gather(listening, return_exceptions=True)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def _port(file: Path) -> int:
    """Where the browser listens, once it says so."""
    async with asyncio.timeout(WAIT_S):
        while True:
            text = file.read_text() if file.exists() else ""  # noqa: ASYNC240 - a line in a local file
            if "\n" in text:
                return int(text.split("\n")[0])
            await asyncio.sleep(0.05)
