"""POST /v1/chat/completions, /v1/completions, /v1/responses, /v1/messages: read → plan → queue → answer.

Everything that can be refused is refused before the head of an answer. After acceptance a request ends once:
- with a whole answer;
- with its client gone: leaving `async with sequences` frees its rows;
- with the engine's failure: an error event and a broken connection in a stream. A proxy's request without a stream gets
  a broken connection too: an error status would tell it that nothing ran, and it would not ask what is owed.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from aiohttp import web

from sidecar.api.boundary import REQUEST_ID, read_body
from sidecar.api.engine import Sequences
from sidecar.api.events import EventStream, break_off
from sidecar.api.front import Front, Language
from sidecar.api.preparation import Preparation
from sidecar.api.run import Run
from sidecar.api.tracing import TRACED
from sidecar.protocol.answer import ChatShape, Head, TextShape
from sidecar.protocol.anthropic_answer import MessageShape
from sidecar.protocol.anthropic_stream import MessageStream
from sidecar.protocol.choices import Choices, Progress
from sidecar.protocol.plan import Plan, stop_token_ids
from sidecar.protocol.response_answer import ResponseShape
from sidecar.protocol.response_stream import ResponseStream
from sidecar.protocol.stream import AnyShape, Stream, StreamOptions, whole
from sidecar.protocol.ticket import read_ticket
from sidecar.supervisor import EngineLostError
from sidecar.wire import internal
from sidecar.wire.errors import ApiError, internal_error
from sidecar.wire.internal import Endpoint

CLIENT_CLOSED: Final = 499
# Ends that are no fault of the engine's, by their error codes (`choices.finish_reason`).
ABORTS: Final[Mapping[str | None, str]] = {"timeout": "deadline", "request_cancelled": "cancelled"}
# So many tokens' log-probabilities are written on the event loop; more take too long for it.
MOST_ON_LOOP: Final = 32


@dataclass(frozen=True, slots=True)
class Exchange:
    """An accepted request on its way to an answer."""

    request: web.Request
    plan: Plan
    run: Run
    shape: AnyShape
    sequences: Sequences


class Generation:
    """The handlers. Stateless."""

    def __init__(self, front: Front, preparation: Preparation) -> None:
        self._front = front
        self._preparation = preparation

    async def chat(self, request: web.Request) -> web.StreamResponse:
        return await self._handle(request, Endpoint.CHAT)

    async def completions(self, request: web.Request) -> web.StreamResponse:
        return await self._handle(request, Endpoint.COMPLETIONS)

    async def responses(self, request: web.Request) -> web.StreamResponse:
        return await self._handle(request, Endpoint.RESPONSES)

    async def messages(self, request: web.Request) -> web.StreamResponse:
        return await self._handle(request, Endpoint.MESSAGES)

    async def _handle(self, request: web.Request, endpoint: Endpoint) -> web.StreamResponse:
        ticket = read_ticket(request.headers, request[REQUEST_ID])
        body = await read_body(request, self._front.settings.api.max_body_bytes)
        language, limits = self._front.limits()
        plan = await self._preparation.plan(body, ticket, language, limits, endpoint)
        grammar = None if plan.options.grammar is None else await self._front.compiled(plan.options.grammar)
        with self._front.flight():
            sequences = self._front.engine.open(ticket.request_id, list(plan.submits), grammar)
            told = (self._front.metrics, self._front.log)
            run = Run(plan, _choices(plan, language), *told, traced=request.get(TRACED))
            sequences.watch(run.note)
            exchange = Exchange(request, plan, run, self._shape(plan, language), sequences)
            try:
                async with sequences:
                    return await (self._stream(exchange) if plan.options.stream else self._whole(exchange))
            except asyncio.CancelledError:
                run.abort("client_gone")
                raise
            except ConnectionError:
                # A write found out before the server did; nobody reads this response.
                run.abort("client_gone")
                return web.Response(status=CLIENT_CLOSED)

    async def _whole(self, exchange: Exchange) -> web.StreamResponse:
        run, plan = exchange.run, exchange.plan
        try:
            await self._consume(exchange, _pass)
        except Exception as exc:
            error = self._failed(exchange, exc)
            if not plan.ticket.proxied:
                raise error from exc
            break_off(exchange.request)
            return web.Response(status=error.status)
        told = (exchange.shape, run.choices, plan.prompt_tokens, plan.options.choices, plan.best_of)
        body = whole(*told) if plan.options.logprobs is None else await asyncio.to_thread(whole, *told)
        run.complete()
        return web.Response(
            body=body, headers={**head(plan.prompt_tokens, plan.options.ignored), "content-type": "application/json"}
        )

    async def _stream(self, exchange: Exchange) -> web.StreamResponse:
        run, plan = exchange.run, exchange.plan
        keep_alive_s = self._front.settings.timeouts.keep_alive_comment_s
        headers = {"x-request-id": plan.ticket.request_id, **head(plan.prompt_tokens, plan.options.ignored)}
        events = EventStream(exchange.request, headers, keep_alive_s)
        stream = _event_order(exchange)

        async def send(progress: Progress) -> None:
            much = len(progress.entries) > MOST_ON_LOOP
            if piece := await asyncio.to_thread(stream.feed, progress) if much else stream.feed(progress):
                await events.send(piece)

        async with events.open():
            try:
                await self._consume(exchange, send)
            except ConnectionError:
                raise
            except Exception as exc:  # noqa: BLE001  whatever it is, the stream must not end as if it were whole
                await events.fail(stream.fail(self._failed(exchange, exc)))
                return events.response
            run.complete()
            await events.finish(stream.end())
        return events.response

    async def _consume(self, exchange: Exchange, told: Callable[[Progress], Awaitable[None]]) -> None:
        """Follow the engine until every choice has ended. Raises what the engine and `told` raise, and ApiError."""
        choices = exchange.run.choices
        async for delta in exchange.sequences:
            if delta.error is not None:
                self._front.log.error("sequence_failed", **exchange.plan.ticket.named(), message=delta.error)
            progress = exchange.run.take(delta)
            if progress.cancel_at is not None:
                exchange.sequences.cancel(progress.index, progress.cancel_at)
            await told(progress)
            if choices.ended:
                return
        raise internal_error()

    def _failed(self, exchange: Exchange, exc: Exception) -> ApiError:
        """What the client is told of a failure after acceptance; noted and logged."""
        error = self._front.failed(exc, exchange.plan.ticket)
        known = "engine_lost" if isinstance(exc, EngineLostError) else ABORTS.get(error.code)
        exchange.run.abort(known or "engine_error", error.code)
        return error

    def _shape(self, plan: Plan, language: Language) -> AnyShape:
        info = self._front.engine.info
        head = Head(
            request_id=plan.ticket.request_id,
            created=int(time.time()),
            model=plan.options.model,
            fingerprint="" if info is None else info.fingerprint,
            echo_service_tier=plan.options.echo_service_tier,
        )
        if plan.endpoint is Endpoint.MESSAGES:
            return MessageShape(head, plan.thoughts_wanted)
        spell = None if plan.options.logprobs is None else language.tokenizer.spell
        if plan.asked is not None:
            return ResponseShape(head, plan.asked, spell, plan.ticket.stored, plan.ticket.previous_response_id)
        told = (head, spell, plan.told_prompts, plan.options.tokens_by_id)
        if plan.endpoint is Endpoint.CHAT:
            return ChatShape(*told, plan.calls, plan.legacy_calls)
        return TextShape(*told)


def _choices(plan: Plan, language: Language) -> Choices:
    options = plan.options
    return Choices(
        len(plan.submits),
        partial(
            language.tokenizer.detokenizer,
            specials=options.specials_shown,
            markers=() if plan.speech is None else plan.speech.markers,
        ),
        options.stop,
        # A token that is to be ignored as an end is a token like any other.
        stop_token_ids(options, language.stop_token_ids),
        plan.tellings,
        min_tokens=options.min_tokens,
        stop_shown=options.stop_shown,
        speech=plan.speech,
    )


def head(prompt_tokens: int, ignored: tuple[str, ...]) -> dict[str, str]:
    """What is told beside an answer, before it."""
    return {internal.PROMPT_TOKENS: str(prompt_tokens), **ignored_headers(ignored)}


def ignored_headers(names: tuple[str, ...]) -> dict[str, str]:
    """The header that names fields which were ignored, if any were.

    A stranger chose the names, so only plain characters of them are shown.
    """
    shown = ("".join(char if "!" <= char <= "~" and char != "," else "?" for char in name[:64]) for name in names[:16])
    return {internal.IGNORED: ", ".join(shown)} if names else {}


def _event_order(exchange: Exchange) -> Stream | ResponseStream | MessageStream:
    plan, shape = exchange.plan, exchange.shape
    told = (exchange.run.choices, plan.prompt_tokens, _stream_options(plan))
    if isinstance(shape, ResponseShape):
        return ResponseStream(shape, *told)
    return MessageStream(shape, *told) if isinstance(shape, MessageShape) else Stream(shape, *told)


def _stream_options(plan: Plan) -> StreamOptions:
    options = plan.options
    return StreamOptions(plan.ticket.proxied, options.include_usage, options.continuous_usage, plan.best_of)


async def _pass(_: Progress) -> None:
    """A whole answer needs no news on the way."""
