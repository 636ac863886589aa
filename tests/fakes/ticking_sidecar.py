"""A sidecar as a process that can be killed: no model, a token each tick, and true usage slots.

`python -m tests.fakes.ticking_sidecar SOCKET [TICK_S]`. It speaks the internal protocol and keeps the slots as the
real one does: a token is counted before it is sent, and a request that is cancelled produces nothing more.
"""

import asyncio
import contextlib
import json
import os
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec
from aiohttp import web

from sidecar.wire import internal
from sidecar.wire.internal import Count, RequestState, State, Usage
from sidecar.wire.slots import SlotReader, SlotWriter, embedding_slots
from tests.fakes.sidecar import DONE, FINISH, delta, model_state

TICK_S: Final = 0.01
EMBEDDING_TICKS: Final = 10
# None of the records of a test is ever written over.
CAPACITY: Final = 1 << 16
BYTES_PER_TOKEN: Final = 4


@dataclass(eq=False)
class Running:
    """A request at work. Mutable: what it has produced, and whether it is told to stop."""

    place: int
    prompt_tokens: int
    produced: int = 0
    cancelled: bool = False
    over: asyncio.Event = field(default_factory=asyncio.Event)


class TickingSidecar:
    """The handlers. Mutable: `_running`, by request id."""

    def __init__(self, slots: Path, tick_s: float) -> None:
        self._slots_path = slots
        self._tick_s = tick_s
        encoder = embedding_slots(slots)
        self._slots, self._encoder_slots = SlotWriter(slots, CAPACITY), SlotWriter(encoder, CAPACITY)
        self._readers = SlotReader(slots), SlotReader(encoder)
        self._running: dict[str, Running] = {}

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._run)
        app.router.add_post("/v1/embeddings", self._embed)
        app.router.add_post("/internal/count", self._count)
        app.router.add_get("/internal/state", self._state)
        app.router.add_delete("/internal/requests/{id}", self._cancel)
        return app

    async def _run(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        asked = json.loads(body)
        request_id = request.headers[internal.REQUEST_ID]
        prompt = _prompt_tokens(body)
        most = min(
            int(request.headers[internal.MAX_TOTAL_TOKENS]) - prompt,
            int(request.headers.get(internal.MAX_OUTPUT_TOKENS, "16")),
        )
        wanted = random.Random(request_id).randint(1, max(1, most))
        with self._at_work(request_id, prompt, self._slots) as running:
            if asked.get("stream"):
                return await self._streamed(request, running, wanted, request_id)
            return await self._whole(running, wanted)

    async def _embed(self, request: web.Request) -> web.Response:
        request_id, prompt = request.headers[internal.REQUEST_ID], _prompt_tokens(await request.read())
        with self._at_work(request_id, prompt, self._encoder_slots) as running:
            for _ in range(EMBEDDING_TICKS):
                await asyncio.sleep(self._tick_s)
            if running.cancelled:
                raise ConnectionResetError
        usage = {"prompt_tokens": prompt, "total_tokens": prompt}
        data = [{"object": "embedding", "index": 0, "embedding": [1.0]}]
        return web.json_response({"data": data, "usage": usage}, headers={internal.PROMPT_TOKENS: str(prompt)})

    @contextlib.contextmanager
    def _at_work(self, request_id: str, prompt: int, slots: SlotWriter) -> Iterator[Running]:
        running = self._running[request_id] = Running(slots.claim(request_id, 0, prompt), prompt)
        try:
            yield running
        finally:
            slots.end(running.place, running.produced)
            del self._running[request_id]
            running.over.set()

    async def _streamed(
        self, request: web.Request, running: Running, wanted: int, request_id: str
    ) -> web.StreamResponse:
        head = {internal.PROMPT_TOKENS: str(running.prompt_tokens), "content-type": "text/event-stream"}
        response = web.StreamResponse(headers=head)
        await response.prepare(request)
        while await self._tick(running, wanted):
            await response.write(delta(f" {running.produced}"))
        if running.cancelled:
            raise ConnectionResetError
        usage = Usage(running.prompt_tokens, running.produced, finish_reason="stop")
        told = {"id": request_id, "choices": [], "usage": _told(usage)}
        tail = FINISH + b"data: " + json.dumps(told).encode() + b"\n\n" + DONE
        await response.write(internal.USAGE_COMMENT + msgspec.json.encode(usage) + b"\n\n" + tail)
        return response

    async def _whole(self, running: Running, wanted: int) -> web.Response:
        while await self._tick(running, wanted):
            pass
        if running.cancelled:
            raise ConnectionResetError
        choice = {"index": 0, "message": {"role": "assistant", "content": "…"}, "finish_reason": "stop"}
        usage = Usage(running.prompt_tokens, running.produced)
        return web.json_response(
            {"choices": [choice], "usage": _told(usage)}, headers={internal.PROMPT_TOKENS: str(running.prompt_tokens)}
        )

    async def _tick(self, running: Running, wanted: int) -> bool:
        """Produce one token, if there is one to produce."""
        await asyncio.sleep(self._tick_s)
        if running.cancelled or running.produced >= wanted:
            return False
        running.produced += 1
        self._slots.count(running.place, running.produced)
        return True

    async def _cancel(self, request: web.Request) -> web.Response:
        request_id = request.match_info["id"]
        if (running := self._running.get(request_id)) is not None:
            running.cancelled = True
            await running.over.wait()
        usage = next((found for reader in self._readers if (found := reader.usage(request_id))), None)
        state = RequestState(False, False, 0, 0)
        if usage is not None:
            state = RequestState(True, False, usage.prompt_tokens, usage.completion_tokens)
        return _json(state)

    async def _count(self, request: web.Request) -> web.Response:
        return _json(Count(_prompt_tokens(await request.read()), 2048))

    async def _state(self, _: web.Request) -> web.Response:
        return _json(
            State(
                ready=True,
                reason="",
                models=[model_state()],
                running=len(self._running),
                waiting=0,
                max_sequences=1024,
                max_queue=1024,
                kv_used_tokens=0,
                kv_capacity_tokens=1 << 20,
                steps=1,
                engine_pid=os.getpid(),
                restarts=0,
                heartbeat_age_s=0.0,
                slots_path=str(self._slots_path),
            )
        )


def _prompt_tokens(body: bytes) -> int:
    return len(body) // BYTES_PER_TOKEN


def _told(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _json(answer: msgspec.Struct) -> web.Response:
    return web.Response(body=msgspec.json.encode(answer), content_type="application/json")


async def serve(socket: Path, tick_s: float) -> None:
    """Until it is killed."""
    runner = web.AppRunner(TickingSidecar(socket.with_suffix(".slots"), tick_s).app(), handler_cancellation=True)
    await runner.setup()
    await web.UnixSite(runner, str(socket)).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    place = Path(sys.argv[1])
    # One that was killed left it.
    place.unlink(missing_ok=True)
    asyncio.run(serve(place, float(sys.argv[2]) if len(sys.argv) > 2 else TICK_S))
