"""A sidecar without a model: an HTTP server on a Unix socket that plays a script and remembers what it was asked."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import msgspec
from aiohttp import web

from sidecar.wire import internal
from sidecar.wire.internal import Count, ModelState, RequestState, State, TokenBound, Usage

MODEL: Final = "org/tiny"
ABORT: Final = "abort"
PROMPT_TOKENS: Final = 7
# What a script may hold: bytes to send, an event to wait for, ABORT to break the connection off.
Step = bytes | asyncio.Event | str


def delta(text: str) -> bytes:
    """One content chunk, as the sidecar frames it."""
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}).encode() + b"\n\n"


def usage_comment(completion_tokens: int, prompt_tokens: int = PROMPT_TOKENS) -> bytes:
    usage = Usage(prompt_tokens, completion_tokens, cached_tokens=2, finish_reason="stop", reasoning_tokens=1)
    return internal.USAGE_COMMENT + msgspec.json.encode(usage) + b"\n\n"


OPENAPI: Final[dict[str, Any]] = {
    "openapi": "3.1.0",
    "info": {"title": "Tollhouse"},
    "paths": {"/v1/models": {}},
    "components": {"schemas": {"Model": {}}, "headers": {}},
}
FINISH: Final = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
DONE: Final = b"data: [DONE]\n\n"
STREAM: Final = [delta("Hello"), delta(" you"), usage_comment(3), FINISH + DONE]
WHOLE: Final = (
    b'{"choices":[{"index":0,"message":{"content":"Hello you"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}}'
)


@dataclass(frozen=True)
class Received:
    """A request as it came."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


class FakeSidecar:
    """Its fields are the test's to set, before or while it serves; its memory is `received`, `counted`, `cancelled`."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.models = [model_state()]
        self.slots_path = socket.with_suffix(".slots")
        self.ready = True
        self.reason = ""
        # What it says it has room for, and has; it takes what it is given all the same.
        self.max_sequences = self.max_queue = 1024
        self.running = 0
        self.prompt_tokens = PROMPT_TOKENS
        self.script: Sequence[Step] = STREAM
        self.whole = WHOLE
        self.ignored: str | None = None
        self.refusal: tuple[int, dict[str, Any], dict[str, str]] | None = None
        # What a cancelled request used; unknown ids are not known.
        self.produced: dict[str, int] = {}
        self.always_produced: int | None = None
        # It fails to cancel.
        self.deaf = False
        self.received: list[Received] = []
        self.cancelled: list[str] = []
        # The endpoints of the bodies that it counted.
        self.counted: list[str] = []
        self.left = asyncio.Event()
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._run)
        app.router.add_post("/v1/completions", self._run)
        app.router.add_post("/v1/messages", self._run)
        app.router.add_post("/v1/messages/count_tokens", self._run)
        app.router.add_post("/tokenize", self._run)
        app.router.add_post("/detokenize", self._run)
        app.router.add_post("/v1/responses", self._run)
        app.router.add_post("/v1/embeddings", self._run)
        app.router.add_post("/internal/count", self._count)
        app.router.add_get("/internal/state", self._state)
        app.router.add_get("/internal/openapi", self._openapi)
        app.router.add_delete("/internal/requests/{id}", self._cancel)
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.UnixSite(self._runner, str(self.socket)).start()
        return self

    @property
    def connected(self) -> int:
        """How many connections there are now."""
        server = self._runner.server if self._runner is not None else None
        return len(server.connections) if server is not None else 0

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _openapi(self, _: web.Request) -> web.Response:
        return web.json_response(OPENAPI)

    async def _run(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.received.append(Received(request.path, {k.lower(): v for k, v in request.headers.items()}, body))
        if self.refusal is not None:
            status, error, headers = self.refusal
            return web.json_response({"error": error}, status=status, headers=headers)
        head = {internal.PROMPT_TOKENS: str(self.prompt_tokens)}
        if self.ignored is not None:
            head[internal.IGNORED] = self.ignored
        try:
            if not body.get("stream"):
                for step in self.script:
                    if isinstance(step, asyncio.Event):
                        await step.wait()
                return web.Response(body=self.whole, content_type="application/json", headers=head)
            response = web.StreamResponse(headers={**head, "content-type": "text/event-stream"})
            await response.prepare(request)
            await self._play(request, response)
        except (asyncio.CancelledError, ConnectionError):
            self.left.set()
            raise
        return response

    async def _play(self, request: web.Request, response: web.StreamResponse) -> None:
        for step in self.script:
            if isinstance(step, bytes):
                await response.write(step)
            elif isinstance(step, asyncio.Event):
                await step.wait()
            elif request.transport is not None:
                request.transport.close()
                return

    async def _count(self, request: web.Request) -> web.Response:
        self.counted.append(request.headers[internal.ENDPOINT])
        return _json(Count(self.prompt_tokens, self.models[0].max_context))

    async def _state(self, _: web.Request) -> web.Response:
        return _json(
            State(
                ready=self.ready,
                reason=self.reason,
                models=self.models,
                running=self.running,
                waiting=0,
                max_sequences=self.max_sequences,
                max_queue=self.max_queue,
                kv_used_tokens=0,
                kv_capacity_tokens=4096,
                steps=1,
                engine_pid=1,
                restarts=0,
                heartbeat_age_s=0.0,
                slots_path=str(self.slots_path),
            )
        )

    async def _cancel(self, request: web.Request) -> web.Response:
        request_id = request.match_info["id"]
        if self.deaf:
            return web.Response(status=500)
        self.cancelled.append(request_id)
        tokens = self.produced.get(request_id, self.always_produced)
        known = tokens is not None
        return _json(RequestState(known, False, self.prompt_tokens if known else 0, tokens or 0))

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(text="# HELP tollhouse_sidecar_up One.\n# TYPE tollhouse_sidecar_up gauge\n")


def model_state(name: str = MODEL, max_context: int = 2048) -> ModelState:
    return ModelState(
        id=name,
        max_context=max_context,
        tier="packed",
        precision="fp32",
        device="cpu",
        fingerprint="fp_1",
        created=1_700_000_000,
        capabilities=["chat"],
        bound=TokenBound(per_request=8, per_message=8),
    )


def _json(answer: msgspec.Struct) -> web.Response:
    return web.Response(body=msgspec.json.encode(answer), content_type="application/json")
