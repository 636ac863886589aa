"""The only builder of the sidecar's front, and its life: listen, load, serve, drain, leave. No request logic here."""

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import prometheus_client
from aiohttp import web

from sidecar.api.boundary import boundary
from sidecar.api.embeddings import Embeddings
from sidecar.api.front import Front, Language, max_queue
from sidecar.api.generation import Generation
from sidecar.api.internals import Internals
from sidecar.api.listener import GuardedSite, SocketUnusableError, close_socket, open_socket
from sidecar.api.models import Models
from sidecar.api.preparation import Preparation
from sidecar.api.tokenization import Tokenization
from sidecar.api.tracing import tracing
from sidecar.catalog.errors import CatalogError
from sidecar.catalog.fetch import resolve
from sidecar.engine.config import EngineConfig
from sidecar.jsonlog import JsonLog
from sidecar.metrics import Metrics
from sidecar.notify import Notifier
from sidecar.protocol.speech.dialect import find_dialect
from sidecar.settings import Api, Embedding, Sidecar
from sidecar.spans import Tracer
from sidecar.supervisor import Supervisor
from sidecar.telemetry import opened
from sidecar.tokenizer.model_tokenizer import ModelTokenizer, TokenizerUnusableError
from sidecar.wire.anthropic import COUNT_TOKENS
from sidecar.wire.internal import Endpoint
from sidecar.wire.slots import embedding_slots

# The tokenizer leaves Python's lock while it works; more threads than this would take from the engine.
TEXT_THREADS: Final = 2
# Handlers still there after the engine has ended have this long to tell their clients.
LEAVE_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Room:
    """One served model: what is known of it, its engine, and how its tokenizer is loaded."""

    front: Front
    supervisor: Supervisor
    load: Callable[[], Language]

    def announce(self) -> None:
        """Say that the model is ready, once both its engine and its tokenizer are."""
        info = self.supervisor.info
        if not self.front.ready or info is None:
            return
        self.front.log.info(
            "ready",
            model=self.front.served,
            tier=info.tier,
            precision=info.precision,
            device=info.device,
            dtype=info.dtype,
            fingerprint=info.fingerprint,
            max_context=info.max_context,
            max_sequences=info.max_sequences,
            weights_bytes=info.weights_bytes,
            load_s=round(sum(info.load_seconds.values()), 3),
            engine_pid=self.supervisor.engine_pid,
            socket=self.front.settings.socket,
        )


@dataclass(frozen=True, slots=True)
class House:
    """The built front."""

    settings: Sidecar
    log: JsonLog
    rooms: tuple[Room, ...]
    app: web.Application

    @property
    def lives(self) -> bool:
        """Whether every engine serves, or may still come back by itself."""
        return all(room.supervisor.lives for room in self.rooms)

    def tell_ready(self, notifier: Notifier) -> None:
        """Tell the service manager, once every model is ready."""
        if all(room.front.ready for room in self.rooms):
            notifier.ready(f"Serving {', '.join(room.front.served for room in self.rooms)}.")


class Signals:
    """SIGTERM and SIGINT. Mutable: `leave` (set by the first, or by a failed start), `hurry` (by the second)."""

    def __init__(self) -> None:
        self.leave = asyncio.Event()
        self.hurry = asyncio.Event()

    def receive(self) -> None:
        if self.leave.is_set():
            self.hurry.set()
        self.leave.set()

    @contextlib.asynccontextmanager
    async def heard(self) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.receive)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)


def build(
    settings: Sidecar, folder: Path, log: JsonLog, embedding_folder: Path | None = None, tracer: Tracer | None = None
) -> House:
    """Everything, wired; nothing of it runs yet. The folders are the models'; the second is of `settings.embedding`."""
    metrics = Metrics(settings.model.id, settings.metrics.compat)
    room = _room(settings, engine_config(settings, folder), metrics, log)
    room.supervisor.on_step.append(metrics.step)
    if settings.embedding is None or embedding_folder is None:
        return House(settings, log, (room,), application(room.front, tracer=tracer))
    config = embedding_config(settings, settings.embedding, embedding_folder)
    embedding = _room(settings, config, metrics, log)
    return House(settings, log, (room, embedding), application(room.front, embedding.front, tracer))


def _room(settings: Sidecar, config: EngineConfig, metrics: Metrics, log: JsonLog) -> Room:
    supervisor = Supervisor(config, settings.timeouts, max_queue(settings), log)
    front = Front(settings, supervisor, metrics, log, embeds=config.embeds)
    room = Room(front, supervisor, partial(load_language, Path(config.model_path), settings.api))
    supervisor.on_ready.append(lambda _: room.announce())
    return room


def engine_config(settings: Sidecar, folder: Path) -> EngineConfig:
    engine = settings.engine
    return EngineConfig(
        model_path=str(folder),
        slots_path=str(Path(settings.socket).absolute().with_suffix(".slots")),
        precision=engine.precision,
        device=engine.device,
        max_sequences=engine.max_sequences,
        step_token_budget=engine.step_token_budget,
        max_context=settings.model.max_context,
        kv_tokens=engine.kv_tokens,
        threads=engine.threads,
        tier=engine.tier,
        prefix_tokens=engine.prefix_cache_tokens,
        speculation=engine.speculation,
    )


def embedding_config(settings: Sidecar, embedding: Embedding, folder: Path) -> EngineConfig:
    return EngineConfig(
        model_path=str(folder),
        slots_path=str(embedding_slots(Path(settings.socket).absolute())),
        precision=embedding.precision,
        # Encoders are small, and a chat model wants all of a GPU's memory.
        device="cpu",
        max_sequences=embedding.max_sequences,
        step_token_budget=settings.engine.step_token_budget,
        max_context=embedding.max_context,
        kv_tokens=None,
        threads=settings.engine.threads,
        embeds=True,
    )


def application(front: Front, embedding: Front | None = None, tracer: Tracer | None = None) -> web.Application:
    """The routes, on a front, and on that of the embedding model if one is served. `tracer`: where spans go."""
    api = front.settings.api
    middlewares = [boundary(front.log)] if tracer is None else [tracing(tracer), boundary(front.log)]
    app = web.Application(middlewares=middlewares, client_max_size=api.max_body_bytes)
    threads = ThreadPoolExecutor(TEXT_THREADS, thread_name_prefix="text")
    # More than can be accepted need not be looked at.
    most_waiting = max_queue(front.settings) + front.settings.engine.max_sequences
    preparation = Preparation(api, threads, most_waiting, time.monotonic)
    generation = Generation(front, preparation)
    embeddings = Embeddings(embedding, preparation, front)
    fronts = (front,) if embedding is None else (front, embedding)
    models = Models(fronts)
    tokens = Tokenization(fronts, preparation)
    internals = Internals(front, embeddings, preparation)
    app.add_routes(
        [
            web.post(Endpoint.CHAT, generation.chat),
            web.post(Endpoint.COMPLETIONS, generation.completions),
            web.post(Endpoint.RESPONSES, generation.responses),
            web.post(Endpoint.MESSAGES, generation.messages),
            web.post(COUNT_TOKENS, tokens.count_tokens),
            web.post("/v1/embeddings", embeddings.create),
            web.post("/tokenize", tokens.tokenize),
            web.post("/detokenize", tokens.detokenize),
            web.get("/v1/models", models.list),
            web.get("/v1/models/{id:.+}", models.one),
            web.post("/internal/count", internals.count),
            web.get("/internal/state", internals.state),
            web.get("/internal/openapi", internals.openapi),
            web.get("/internal/requests/{id}", internals.usage),
            web.delete("/internal/requests/{id}", internals.cancel),
            web.get("/metrics", internals.metrics),
        ]
    )

    async def close(_: web.Application) -> None:
        threads.shutdown(wait=False, cancel_futures=True)
        await front.compiler.close()

    app.on_cleanup.append(close)
    return app


def load_language(folder: Path, api: Api) -> Language:
    """The model's tokenizer and chat template. Takes seconds: call it in a thread. Raises TokenizerUnusableError."""
    tokenizer = ModelTokenizer(folder)
    return Language(
        tokenizer=tokenizer,
        stop_token_ids=tuple(tokenizer.stop_token_ids),
        bound=tokenizer.bound(),
        chats=tokenizer.has_chat_template,
        created=int((folder / "config.json").stat().st_mtime),
        dialect=find_dialect(
            tokenizer.template_source,
            api.reasoning_format,
            api.tool_format,
            knows_tools=tokenizer.knows_tools,
        ),
    )


async def serve(settings: Sidecar, log: JsonLog) -> int:
    """Run a sidecar until it is told to leave; gives the exit code."""
    # Else each counter and histogram would have a twin that says when it was made.
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # it has no annotations
    try:
        folder = await asyncio.to_thread(_model_folder, settings.model.source, settings)
        embedding_folder = None
        if settings.embedding is not None:
            embedding_folder = await asyncio.to_thread(_model_folder, settings.embedding.source, settings)
        listening = await asyncio.to_thread(open_socket, Path(settings.socket), log)
    except (CatalogError, SocketUnusableError) as exc:
        return _cannot_start(log, exc)
    try:
        async with opened(os.environ, "tollhouse-sidecar", log) as tracer:
            house = build(settings, folder, log, embedding_folder, tracer)
            return await _run(house, listening, Notifier(os.environ, log))
    finally:
        await asyncio.to_thread(close_socket, listening, Path(settings.socket))


def _model_folder(source: str, settings: Sidecar) -> Path:
    """Raises CatalogError, also for a model that is yet to be fetched."""
    folder = resolve(source, Path(settings.cache).expanduser())
    if folder is None:
        raise CatalogError(f"the model '{source}' is not in the cache", "run: tollhouse-sidecar fetch")
    return folder


def _cannot_start(log: JsonLog, exc: Exception) -> int:
    hint = exc.hint if isinstance(exc, CatalogError) else None
    log.error("start_failed", reason=str(exc), hint=hint)
    return 1


async def _run(house: House, listening: socket.socket, notifier: Notifier) -> int:
    runner = web.AppRunner(
        house.app, handler_cancellation=True, access_log=None, auto_decompress=False, shutdown_timeout=LEAVE_S
    )
    await runner.setup()
    signals = Signals()
    try:
        allowed = frozenset({0, os.getuid()})
        await GuardedSite(runner, listening, Path(house.settings.socket), allowed, house.log).start()
        house.log.info("listening", socket=house.settings.socket, pid=os.getpid())
        async with signals.heard(), asyncio.TaskGroup() as tasks:
            for room in house.rooms:
                room.supervisor.on_ready.append(lambda _: house.tell_ready(notifier))
                tasks.create_task(room.supervisor.run(), name=f"supervisor of {room.front.served}")
            loading = tasks.create_task(_load(house, notifier, signals), name="tokenizers")
            beating = tasks.create_task(notifier.beat(lambda: house.lives), name="watchdog")
            await signals.leave.wait()
            notifier.stopping()
            await _drain(house, signals)
            await asyncio.gather(*(room.supervisor.stop() for room in house.rooms))
            beating.cancel()
            loaded = await loading
    finally:
        await runner.cleanup()
    house.log.info("stopped", exit_code=0 if loaded else 1)
    return 0 if loaded else 1


async def _load(house: House, notifier: Notifier, signals: Signals) -> bool:
    """Whether the tokenizers could be loaded; without them there is nothing to serve.

    One after the other: Transformers cannot be imported in two threads at once.
    """
    for room in house.rooms:
        try:
            room.front.language = await asyncio.to_thread(room.load)
        except (TokenizerUnusableError, OSError) as exc:
            _cannot_start(room.front.log, exc)
            signals.leave.set()
            return False
        room.announce()
    house.tell_ready(notifier)
    return True


async def _drain(house: House, signals: Signals) -> None:
    """Accept nothing new; wait for what was accepted, for as long as the settings or a second signal allow."""
    for room in house.rooms:
        room.supervisor.drain()
    drain_s = house.settings.timeouts.drain_s
    engines = [room.supervisor for room in house.rooms]
    running, waiting = sum(engine.running for engine in engines), sum(engine.waiting for engine in engines)
    house.log.info("draining", running=running, waiting=waiting, drain_s=drain_s)
    landed = asyncio.gather(*(room.front.landed() for room in house.rooms))
    waits: set[asyncio.Future[Any]] = {landed, asyncio.ensure_future(signals.hurry.wait())}
    try:
        await asyncio.wait(waits, timeout=drain_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
