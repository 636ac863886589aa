"""The OpenAPI document as the public listener keeps it: a sidecar's, with the paths of stored responses beside them.

What those refer to stands in the sidecar's part: the response object, the refusals and the headers.
"""

from typing import Any, Final

import msgspec

from proxy.input_items import DEFAULT_LIMIT, MOST, ORDERS, ItemList
from proxy.responses import ID, INPUT_ITEMS, RESPONSE, Deleted

_SCHEMAS: Final = "#/components/schemas/{name}"
_STATUSES: Final = (400, 401, 403, 404, 408, 409, 414, 429, 431, 500, 503)
_HEADERS: Final = ("x-request-id", "openai-processing-ms", "openai-version")
# What the sidecar calls the answer of /v1/responses.
_RESPONSE: Final = {"$ref": _SCHEMAS.format(name="Response")}
_ID: Final = {
    "name": "id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": f"^{ID.pattern}$"},
}


class Document(msgspec.Struct):
    """The parts of one that are looked into or added to."""

    openapi: str
    info: msgspec.Raw
    paths: dict[str, msgspec.Raw]
    components: dict[str, dict[str, msgspec.Raw]]
    servers: list[dict[str, str]] = []


def merged(document: bytes, address: str) -> bytes:
    """A sidecar's document with what the proxy adds; `address`: the public listener's URL. Raises MsgspecError."""
    found = msgspec.json.decode(document, type=Document)
    (listed, deleted), schemas = msgspec.json.schema_components((ItemList, Deleted), ref_template=_SCHEMAS)
    for schema in schemas.values():
        # A field with a default is always there, too.
        schema["required"] = list(schema["properties"])
    found.paths |= _raw(
        {
            RESPONSE: {
                "get": _operation("retrieveResponse", "Give a stored response.", _RESPONSE, _query("stream", _flag())),
                "delete": _operation("deleteResponse", "Delete a stored response.", deleted),
            },
            INPUT_ITEMS: {
                "get": _operation("listInputItems", "List what a stored response was asked.", listed, *_paging())
            },
        }
    )
    found.components["schemas"] = {**found.components.get("schemas", {}), **_raw(schemas)}
    found.servers = [{"url": address}]
    return msgspec.json.encode(found)


def _operation(name: str, summary: str, answer: dict[str, Any], *query: dict[str, Any]) -> dict[str, Any]:
    return {
        "operationId": name,
        "summary": summary,
        "security": [{"bearer": []}],
        "parameters": [_ID, *query],
        "responses": {
            "200": {
                "description": "The answer.",
                "headers": {header: {"$ref": f"#/components/headers/{header}"} for header in _HEADERS},
                "content": {"application/json": {"schema": answer}},
            },
            **{str(status): {"$ref": f"#/components/responses/{status}"} for status in _STATUSES},
        },
    }


def _paging() -> tuple[dict[str, Any], ...]:
    return (
        _query("limit", {"type": "integer", "minimum": 1, "maximum": MOST, "default": DEFAULT_LIMIT}),
        _query("order", {"enum": list(ORDERS), "default": ORDERS[0]}),
        _query("after", {"type": "string", "description": "The id of an item of this response."}),
    )


def _flag() -> dict[str, Any]:
    return {"type": "boolean", "enum": [False], "description": "A stored response is not streamed."}


def _query(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema}


def _raw(parts: dict[str, Any]) -> dict[str, msgspec.Raw]:
    return {name: msgspec.Raw(msgspec.json.encode(part)) for name, part in parts.items()}
