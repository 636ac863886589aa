"""The bodies of GET /v1/models and /v1/models/{id}, as sidecar and proxy give them."""

from collections.abc import Iterable
from typing import Literal

import msgspec

from sidecar.wire.internal import ModelState


class Details(msgspec.Struct, frozen=True):
    """What Tollhouse tells of a model beyond OpenAI's fields."""

    precision: str
    tier: str
    capabilities: list[str]


class Model(msgspec.Struct, frozen=True):
    """OpenAI's model object, with its context window, root and parent as vLLM names them: there are no adapters."""

    id: str
    created: int
    max_model_len: int
    root: str
    tollhouse: Details
    parent: str | None = None
    object: Literal["model"] = "model"
    owned_by: Literal["tollhouse"] = "tollhouse"


class ModelList(msgspec.Struct, frozen=True):
    """OpenAI's list of models; it has no pages."""

    data: list[Model]
    object: Literal["list"] = "list"


def entry(state: ModelState) -> Model:
    details = Details(state.precision, state.tier, state.capabilities)
    return Model(state.id, state.created, state.max_context, root=state.id, tollhouse=details)


def entries(states: Iterable[ModelState]) -> ModelList:
    return ModelList([entry(state) for state in states])
