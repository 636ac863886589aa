"""GET /v1/models and /v1/models/{id}: the served models, with what they can do."""

import msgspec
from aiohttp import web

from sidecar.api.front import LOADING, Front, not_ready
from sidecar.protocol.plan import model_not_found
from sidecar.wire.internal import ModelState


class Details(msgspec.Struct, frozen=True):
    """What Tollhouse tells of a model beyond OpenAI's fields."""

    precision: str
    tier: str
    capabilities: list[str]


class Model(msgspec.Struct, frozen=True):
    """OpenAI's model object, with the context window as others name it."""

    id: str
    created: int
    max_model_len: int
    tollhouse: Details
    object: str = "model"
    owned_by: str = "tollhouse"


class ModelList(msgspec.Struct, frozen=True):
    """OpenAI's list of models; it has no pages."""

    data: list[Model]
    object: str = "list"


class Models:
    """The two handlers. Stateless."""

    def __init__(self, fronts: tuple[Front, ...]) -> None:
        self._fronts = fronts

    async def list(self, _: web.Request) -> web.Response:
        states = [state for front in self._fronts if (state := front.model()) is not None]
        if not states:
            raise not_ready(self._fronts[0].engine.reason or LOADING)
        return json_response(ModelList([_model(state) for state in states]))

    async def one(self, request: web.Request) -> web.Response:
        name = request.match_info["id"]
        for front in self._fronts:
            if front.served == name:
                return json_response(_model(_known(front)))
        raise model_not_found(name)


def _known(front: Front) -> ModelState:
    state = front.model()
    if state is None:
        raise not_ready(front.engine.reason or LOADING)
    return state


def json_response(document: msgspec.Struct) -> web.Response:
    return web.Response(body=msgspec.json.encode(document), content_type="application/json")


def _model(state: ModelState) -> Model:
    details = Details(state.precision, state.tier, state.capabilities)
    return Model(state.id, state.created, state.max_context, details)
