"""/internal/* and /metrics: what a proxy asks of its sidecar. On the socket only; a proxy does not pass them on."""

import asyncio
from importlib.metadata import version

from aiohttp import web

from sidecar.api.boundary import REQUEST_ID, read_body
from sidecar.api.embeddings import Embeddings
from sidecar.api.engine import Engine
from sidecar.api.front import Front
from sidecar.api.models import json_response
from sidecar.api.preparation import Preparation
from sidecar.metrics import CONTENT_TYPE
from sidecar.protocol.fields import Fields
from sidecar.protocol.openapi.document import document
from sidecar.protocol.ticket import Ticket, is_request_id
from sidecar.wire.errors import bad_request
from sidecar.wire.internal import ENDPOINT, Count, Endpoint


class Internals:
    """The handlers. Stateless."""

    def __init__(self, front: Front, embeddings: Embeddings, preparation: Preparation) -> None:
        self._front = front
        self._embeddings = embeddings
        self._others = () if embeddings.front is None else (embeddings.front,)
        self._preparation = preparation

    async def count(self, request: web.Request) -> web.Response:
        body = await read_body(request, self._front.settings.api.max_body_bytes)
        fields = await self._preparation.fields(body)
        endpoint = _endpoint(request, fields)
        if endpoint is Endpoint.EMBEDDINGS:
            # Nothing is reserved yet: the proxy asks in order to do so.
            _, plan = await self._embeddings.plan(fields, Ticket(request[REQUEST_ID]))
            return json_response(Count(plan.prompt_tokens, plan.max_context))
        language, limits = self._front.limits()
        prompt_tokens = await self._preparation.count(body, language, limits, endpoint, fields)
        return json_response(Count(prompt_tokens, limits.max_context))

    async def state(self, _: web.Request) -> web.Response:
        return json_response(self._front.state(self._others))

    async def openapi(self, _: web.Request) -> web.Response:
        api = self._front.settings.api
        body = await asyncio.to_thread(lambda: document(api, version("tollhouse")))
        return web.Response(body=body, content_type="application/json")

    async def usage(self, request: web.Request) -> web.Response:
        request_id = _request_id(request)
        return json_response(self._engine(request_id).usage(request_id))

    async def cancel(self, request: web.Request) -> web.Response:
        request_id = _request_id(request)
        return json_response(await self._engine(request_id).cancel_request(request_id))

    def _engine(self, request_id: str) -> Engine:
        """The engine that knows the request."""
        known = (front.engine for front in self._others if front.engine.usage(request_id).known)
        return next(known, self._front.engine)

    async def metrics(self, _: web.Request) -> web.Response:
        self._front.metrics.observe(self._front.gauges(self._others))
        page = await asyncio.to_thread(self._front.metrics.render)
        return web.Response(body=page, headers={"content-type": CONTENT_TYPE})


def _endpoint(request: web.Request, fields: Fields) -> Endpoint:
    """Which endpoint a body is for. Raises ApiError 400 for one that is told and not known.

    Where it is not told: a chat has messages, and of embeddings the body has an input and no prompt.
    """
    told = request.headers.get(ENDPOINT)
    names = fields.names()
    if told is not None:
        if told not in set(Endpoint):
            raise bad_request(f"The header '{ENDPOINT}' names no endpoint.", code="invalid_value")
        return Endpoint(told)
    if "messages" in names:
        return Endpoint.CHAT
    return Endpoint.EMBEDDINGS if "input" in names and "prompt" not in names else Endpoint.COMPLETIONS


def _request_id(request: web.Request) -> str:
    request_id = request.match_info["id"]
    if not is_request_id(request_id):
        raise bad_request("This is no request id.", code="invalid_value")
    return request_id
