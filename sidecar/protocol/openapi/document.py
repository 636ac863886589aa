"""The OpenAPI document of the public endpoints, as a client meets them: at a proxy, with a key.

What a body may hold is in `bodies`, what an answer holds in `answers`; here are the operations, the refusals that each
may meet (docs/errors.md) and the headers.
"""

from dataclasses import dataclass
from typing import Final

import msgspec

from sidecar.protocol.openapi.answers import MODEL, MODELS, Answers, answers
from sidecar.protocol.openapi.bodies import DETOKENIZE, EMBEDDINGS, TOKENIZE, bodies
from sidecar.protocol.openapi.reading import Schema, text
from sidecar.settings import Api
from sidecar.wire import anthropic
from sidecar.wire.internal import IGNORED, Endpoint

VERSION: Final = "3.1.0"
_REFUSALS: Final = {
    400: "The request is wrong. The message names the field.",
    401: "The key is missing or wrong.",
    403: "The key may not do this, or not from here, or its tier is in no policy file.",
    404: "There is no such model, or the key may not use it; or no such stored response.",
    408: "The request came too slowly.",
    409: "A request with this id, nonce or idempotency key runs, or was here before.",
    413: "The body is too long.",
    414: "The URL is too long.",
    415: "The body is encoded with something other than gzip.",
    422: "The idempotency key was used for another request.",
    429: "A limit of the key, or its quota.",
    431: "The headers are too long.",
    500: "A fault of the server's, or the operator cancelled the request.",
    503: "The model or the database is not there, or the queue is full.",
    504: "The model took too long.",
}
_OF_ANY: Final = (400, 401, 403, 408, 409, 414, 429, 431, 500, 503)
_OF_TEXT: Final = (*_OF_ANY, 404, 413, 415)
_OF_A_RUN: Final = (*_OF_TEXT, 422, 504)
# Met before the path is known, and so in OpenAI's shape everywhere.
_OF_HEADS: Final = frozenset({400, 408, 414, 431})
_COUNT: Final[Schema] = {"type": "integer"}
_HEADERS: Final[dict[str, tuple[str, Schema]]] = {
    "x-request-id": ("The request's id, as in the log and the ledger.", text()),
    "openai-processing-ms": ("How long it took, in ms.", _COUNT),
    "openai-version": ("The version of OpenAI's API.", text()),
    "request-id": ("The same as `x-request-id`.", text()),
    IGNORED: ("Unknown fields of the body that were ignored.", text()),
    "www-authenticate": ("How a key is sent.", text()),
    "retry-after": ("In so many seconds.", _COUNT),
    "retry-after-ms": ("In so many ms.", _COUNT),
    "x-should-retry": ("Whether it is any use to try again.", {"enum": ["true", "false"]}),
    **{
        f"x-ratelimit-{what}-{of}": (f"Of the key's {of} a minute.", text() if what == "reset" else _COUNT)
        for of in ("requests", "tokens")
        for what in ("limit", "remaining", "reset")
    },
}
_ALWAYS: Final = ("x-request-id", "openai-processing-ms", "openai-version")
_RATES: Final = tuple(name for name in _HEADERS if name.startswith("x-ratelimit"))
_RETRIES: Final = ("retry-after", "retry-after-ms", "x-should-retry")
_EXTRA: Final = {401: ("www-authenticate",), 429: (*_RETRIES, *_RATES), 503: _RETRIES}


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation: what it does, and the statuses of its refusals."""

    name: str
    summary: str
    refusals: tuple[int, ...]


_OPERATIONS: Final = {
    Endpoint.CHAT.value: Operation("createChatCompletion", "Answer a chat.", _OF_A_RUN),
    Endpoint.COMPLETIONS.value: Operation("createCompletion", "Go on with a prompt.", _OF_A_RUN),
    Endpoint.RESPONSES.value: Operation("createResponse", "Answer in the shape of Responses.", _OF_A_RUN),
    Endpoint.MESSAGES.value: Operation("createMessage", "Answer in the shape of Anthropic's Messages.", _OF_A_RUN),
    anthropic.COUNT_TOKENS: Operation("countMessageTokens", "Count what a message would be read as.", _OF_TEXT),
    EMBEDDINGS: Operation("createEmbedding", "Embed texts, if an encoder is served.", _OF_A_RUN),
    TOKENIZE: Operation("tokenize", "Give the tokens of a text or a chat.", _OF_TEXT),
    DETOKENIZE: Operation("detokenize", "Give the text of tokens.", _OF_TEXT),
    MODELS: Operation("listModels", "List the models that the key may use.", _OF_ANY),
    MODEL: Operation("retrieveModel", "Describe a model.", (*_OF_ANY, 404)),
}


def document(api: Api, release: str) -> bytes:
    """The document as JSON. `release` is Tollhouse's."""
    answered, asked = answers(), bodies(api)
    return msgspec.json.encode(
        {
            "openapi": VERSION,
            "info": {
                "title": "Tollhouse",
                "version": release,
                "description": "Bounds are those of one field; the rules between fields are in docs/api.md. "
                "Null is the same as nothing.",
            },
            "paths": {path: _path(path, operation, answered, asked) for path, operation in _OPERATIONS.items()},
            "components": {
                "schemas": answered.components,
                "responses": _refusals("", answered.error)
                | _refusals("Anthropic", answered.anthropic_error, answered.error),
                "headers": {name: _header(name, *told) for name, told in _HEADERS.items()},
                "securitySchemes": {
                    "bearer": {"type": "http", "scheme": "bearer"},
                    "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
                },
            },
        }
    )


def _path(path: str, operation: Operation, answered: Answers, asked: dict[str, Schema]) -> Schema:
    of_anthropic = path in anthropic.PATHS
    prefix = "Anthropic" if of_anthropic else ""
    refusals = {
        str(status): {"$ref": f"#/components/responses/{prefix}{status}"} for status in sorted(operation.refusals)
    }
    told: Schema = {
        "operationId": operation.name,
        "summary": operation.summary,
        "security": [{"bearer": []}, *([{"apiKey": []}] if of_anthropic else [])],
        "responses": {"200": _answer(path, answered), **refusals},
    }
    if path not in asked:
        parameter = {"name": "id", "in": "path", "required": True, "schema": text(least=1)}
        return {"get": {**told, **({"parameters": [parameter]} if path == MODEL else {})}}
    body = {"required": True, "content": {"application/json": {"schema": asked[path]}}}
    return {"post": {**told, "requestBody": body}}


def _answer(path: str, answered: Answers) -> Schema:
    content: Schema = {"application/json": {"schema": answered.whole[path]}}
    if path in answered.events:
        content["text/event-stream"] = {"schema": answered.events[path]}
    headers = (*_ALWAYS, *(("request-id",) if path in anthropic.PATHS else ()))
    if path not in {MODELS, MODEL}:
        headers = (*headers, *_RATES, IGNORED)
    return {"description": "The answer.", "headers": _headers(*headers), "content": content}


def _refusals(prefix: str, schema: Schema, of_heads: Schema | None = None) -> Schema:
    """The refusals in one shape; `of_heads` is that of requests whose head cannot be read."""
    return {
        f"{prefix}{status}": {
            "description": told,
            "headers": _headers(*_ALWAYS, *_EXTRA.get(status, ())),
            "content": {
                "application/json": {
                    "schema": {"anyOf": [schema, of_heads]} if of_heads and status in _OF_HEADS else schema
                }
            },
        }
        for status, told in _REFUSALS.items()
    }


def _headers(*names: str) -> Schema:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _header(name: str, told: str, schema: Schema) -> Schema:
    return {"description": told, "schema": schema, "required": name in _ALWAYS}
