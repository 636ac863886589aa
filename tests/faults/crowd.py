"""Many clients at once, of every kind: those that read to the end and those that leave. Each notes what it was told."""

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Self

import aiohttp

# A client that was refused or cut off comes again after a while.
AGAIN_S: Final = 0.2
DONE: Final = "data: [DONE]"
KINDS = STREAM, WHOLE, EMBEDDING = "stream", "whole", "embedding"


@dataclass
class Seen:
    """What a client was told of one request; `name` is its own for it, which the proxy's log has, too.

    `complete`: a whole answer, with the tokens it says it used. `left`: it did not want the whole of it.
    """

    tier: str
    name: str
    request_id: str = ""
    status: int = 0
    events: int = 0
    complete: bool = False
    left: bool = False
    tokens: tuple[int, int] = (0, 0)
    code: str = ""


class Crowd:
    """Clients that ask again and again. Use it as `async with`.

    Mutable: `seen` (every request so far), `_asking` (set while they may ask), `_busy` (how many are), `_rest` (set
    while none is), `_tasks`, `_session`.
    """

    def __init__(
        self, model: str, port: Callable[[], int], keys: dict[str, str], clients: int, seed: int, *, embedder: str = ""
    ) -> None:
        self.seen: list[Seen] = []
        self._model = model
        self._embedder = embedder
        self._port = port
        self._keys = list(keys.items())
        self._clients = clients
        self._seed = seed
        self._asking = asyncio.Event()
        self._rest = asyncio.Event()
        self._rest.set()
        self._busy = 0

    async def __aenter__(self) -> Self:
        self._asking.set()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=60)
        )
        self._tasks = [asyncio.create_task(self._client(number)) for number in range(self._clients)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._session.close()

    @contextlib.asynccontextmanager
    async def at_rest(self) -> AsyncIterator[None]:
        """While this lasts nobody asks anything."""
        self._asking.clear()
        await self._rest.wait()
        for task in self._tasks:
            if task.done():
                task.result()
        yield
        self._asking.set()

    async def _client(self, number: int) -> None:
        whims = random.Random(self._seed * 1000 + number)
        tier, key = self._keys[number % len(self._keys)]
        while True:
            await self._asking.wait()
            if not self._port():
                await asyncio.sleep(AGAIN_S)
                continue
            seen = Seen(tier, f"asked-{len(self.seen)}")
            self.seen.append(seen)
            with self._at_work(), contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
                await self._ask(seen, key, whims)
            if not seen.complete:
                await asyncio.sleep(AGAIN_S * (1 + whims.random()))

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[None]:
        self._busy += 1
        self._rest.clear()
        try:
            yield
        finally:
            self._busy -= 1
            if not self._busy:
                self._rest.set()

    async def _ask(self, seen: Seen, key: str, whims: random.Random) -> None:
        kind = whims.choices(KINDS, (5, 3, 2 if self._embedder else 0))[0]
        stream, leaves = kind == STREAM, whims.random() < 0.25
        seen.left = leaves
        path, body = self._asked(kind, whims)
        # One that is to leave a whole answer does so at any time.
        async with (
            asyncio.timeout(whims.uniform(0, 0.3) if leaves and not stream else None),
            self._session.post(
                f"http://127.0.0.1:{self._port()}/v1/{path}",
                json=body,
                headers={"authorization": f"Bearer {key}", "x-client-request-id": seen.name},
            ) as response,
        ):
            seen.request_id = response.headers["x-request-id"]
            seen.status = response.status
            if response.status == 200 and stream:
                await self._read(seen, response, whims.randint(0, 20) if leaves else None)
                return
            document = json.loads(await response.read())
            if response.status == 200:
                _complete(seen, document["usage"])
            else:
                seen.code = str(document["error"]["code"])

    def _asked(self, kind: str, whims: random.Random) -> tuple[str, dict[str, Any]]:
        """A path below /v1, and a body."""
        words = "Tell me more. " * whims.randint(1, 20)
        if kind == EMBEDDING:
            return "embeddings", {"model": self._embedder, "input": words}
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": words}],
            "max_tokens": whims.randint(1, 40),
        }
        if kind == STREAM:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return "chat/completions", body

    async def _read(self, seen: Seen, response: aiohttp.ClientResponse, most: int | None) -> None:
        usage: dict[str, Any] | None = None
        async for raw in response.content:
            line = raw.decode().rstrip()
            if line == DONE:
                assert usage is not None
                _complete(seen, usage)
            elif line.startswith("data: "):
                event = json.loads(line.removeprefix("data: "))
                seen.events += 1
                usage = event.get("usage") or usage
                seen.code = str(event["error"]["code"]) if "error" in event else ""
            if most is not None and seen.events >= most:
                response.close()
                return


def _complete(seen: Seen, usage: dict[str, Any]) -> None:
    seen.complete = True
    seen.tokens = usage["prompt_tokens"], usage.get("completion_tokens", 0)
