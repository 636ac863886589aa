"""The answers of the public endpoints as JSON Schema, from the records that they are written with.

OpenAPI 3.1 has no place for the events of a stream: what stands for it is the schema of one event, as tools read it.
"""

from dataclasses import dataclass
from typing import Any, Final

import msgspec

from sidecar.protocol import anthropic_answer, response_answer, response_events
from sidecar.protocol.answer import ChatChoice, ChunkChoice, Envelope, TextChoice
from sidecar.protocol.anthropic import MessageCount
from sidecar.protocol.embeddings import EmbeddingList
from sidecar.protocol.openapi.bodies import DETOKENIZE, EMBEDDINGS, TOKENIZE
from sidecar.protocol.openapi.reading import Schema, record, text
from sidecar.protocol.tokenization import Detokenized, Tokenized
from sidecar.wire import anthropic, errors
from sidecar.wire.internal import Endpoint
from sidecar.wire.listing import Model, ModelList

MODELS: Final = "/v1/models"
MODEL: Final = "/v1/models/{id}"
_DONE: Final[Schema] = {"const": "[DONE]"}
_MESSAGE_STOP: Final = record({"type": {"enum": ["message_stop"]}}, "type")
_RESPONSE_EVENTS: Final = (
    response_events.Created
    | response_events.InProgress
    | response_events.ItemAdded
    | response_events.PartAdded
    | response_events.TextDelta
    | response_events.TextDone
    | response_events.ReasoningDelta
    | response_events.ReasoningDone
    | response_events.ArgumentsDelta
    | response_events.ArgumentsDone
    | response_events.PartDone
    | response_events.ItemDone
    | response_events.Completed
    | response_events.Incomplete
    | response_events.Failed
)
# Whole answers by their paths, and what the events of those hold that are streamed on demand.
_WHOLE: Final[dict[str, Any]] = {
    Endpoint.CHAT.value: Envelope[ChatChoice],
    Endpoint.COMPLETIONS.value: Envelope[TextChoice],
    Endpoint.RESPONSES.value: response_answer.Response,
    Endpoint.MESSAGES.value: anthropic_answer.Message,
    anthropic.COUNT_TOKENS: MessageCount,
    EMBEDDINGS: EmbeddingList,
    TOKENIZE: Tokenized,
    DETOKENIZE: Detokenized,
    MODELS: ModelList,
    MODEL: Model,
}
_EVENTS: Final[dict[str, Any]] = {
    Endpoint.CHAT.value: Envelope[ChunkChoice],
    Endpoint.COMPLETIONS.value: Envelope[TextChoice],
    Endpoint.RESPONSES.value: _RESPONSE_EVENTS,
    Endpoint.MESSAGES.value: anthropic_answer.Event,
}


@dataclass(frozen=True, slots=True)
class Answers:
    """What they are, by path, and the `components` that these refer to."""

    whole: dict[str, Schema]
    events: dict[str, Schema]
    error: Schema
    anthropic_error: Schema
    components: dict[str, Schema]


def answers() -> Answers:
    kinds = (*_WHOLE.values(), *_EVENTS.values(), errors.ErrorBody, anthropic.ErrorBody)
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    for component in components.values():
        # A field with a default is always there, too; one that may be left out has none that could be shown.
        given = (name for name, schema in component["properties"].items() if "default" in schema)
        component["required"] = [*component["required"], *given]
    events = dict(zip(_EVENTS, schemas[len(_WHOLE) : -2], strict=True))
    error, anthropic_error = schemas[-2:]
    return Answers(
        whole=dict(zip(_WHOLE, schemas, strict=False)),
        events={
            path: _event(path, [schema, anthropic_error, _MESSAGE_STOP] if path in anthropic.PATHS else [schema, error])
            for path, schema in events.items()
        },
        error=error,
        anthropic_error=anthropic_error,
        components=components,
    )


def _event(path: str, kinds: list[Schema]) -> Schema:
    """A server-sent event whose data is one of the kinds, or the end of the stream."""
    data: Schema = {"type": "string", "contentMediaType": "application/json", "contentSchema": {"anyOf": kinds}}
    ends = path in {Endpoint.CHAT, Endpoint.COMPLETIONS}
    return record({"data": {"anyOf": [_DONE, data]} if ends else data, "event": text()}, "data")
