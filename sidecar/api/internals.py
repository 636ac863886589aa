"""/internal/* and /metrics: what a proxy asks of its sidecar. On the socket only; a proxy does not pass them on."""

import asyncio

from aiohttp import web

from sidecar.api.boundary import read_body
from sidecar.api.front import Front
from sidecar.api.models import json_response
from sidecar.api.preparation import Preparation
from sidecar.metrics import CONTENT_TYPE
from sidecar.protocol.ticket import is_request_id
from sidecar.wire.errors import bad_request
from sidecar.wire.internal import Count


class Internals:
    """The handlers. Stateless."""

    def __init__(self, front: Front, preparation: Preparation) -> None:
        self._front = front
        self._preparation = preparation

    async def count(self, request: web.Request) -> web.Response:
        body = await read_body(request, self._front.settings.api.max_body_bytes)
        language, limits = self._front.limits()
        prompt_tokens = await self._preparation.count(body, language, limits)
        return json_response(Count(prompt_tokens, limits.max_context))

    async def state(self, _: web.Request) -> web.Response:
        return json_response(self._front.state())

    async def usage(self, request: web.Request) -> web.Response:
        return json_response(self._front.engine.usage(_request_id(request)))

    async def cancel(self, request: web.Request) -> web.Response:
        return json_response(await self._front.engine.cancel_request(_request_id(request)))

    async def metrics(self, _: web.Request) -> web.Response:
        self._front.metrics.observe(self._front.gauges())
        page = await asyncio.to_thread(self._front.metrics.render)
        return web.Response(body=page, headers={"content-type": CONTENT_TYPE})


def _request_id(request: web.Request) -> str:
    request_id = request.match_info["id"]
    if not is_request_id(request_id):
        raise bad_request("This is no request id.", code="invalid_value")
    return request_id
