"""GET /v1/models and /v1/models/{id}: the served models, with what they can do."""

import msgspec
from aiohttp import web

from sidecar.api.front import LOADING, Front, not_ready
from sidecar.protocol.plan import model_not_found
from sidecar.wire.internal import ModelState
from sidecar.wire.listing import entries, entry


class Models:
    """The two handlers. Stateless."""

    def __init__(self, fronts: tuple[Front, ...]) -> None:
        self._fronts = fronts

    async def list(self, _: web.Request) -> web.Response:
        states = [state for front in self._fronts if (state := front.model()) is not None]
        if not states:
            raise not_ready(self._fronts[0].engine.reason or LOADING)
        return json_response(entries(states))

    async def one(self, request: web.Request) -> web.Response:
        name = request.match_info["id"]
        for front in self._fronts:
            if front.served == name:
                return json_response(entry(_known(front)))
        raise model_not_found(name)


def _known(front: Front) -> ModelState:
    state = front.model()
    if state is None:
        raise not_ready(front.engine.reason or LOADING)
    return state


def json_response(document: msgspec.Struct) -> web.Response:
    return web.Response(body=msgspec.json.encode(document), content_type="application/json")
