"""The OpenAPI document of the admin API, made from the table of actions and the records' types."""

import functools
from typing import Any, Final

import msgspec

from proxy.admin.table import ACTIONS, BASE, DOCUMENT, ID, Action
from sidecar.wire.errors import ErrorBody

SCHEMAS: Final = "#/components/schemas/{name}"
STATUSES: Final = {
    "400": "What was given cannot be.",
    "401": "The key is missing or wrong. Only over TCP: the Unix socket needs none.",
    "403": "The key lacks the scope, or asks for more than it may do itself.",
    "404": "There is no such account or key.",
    "409": "The name is taken, or the key is revoked.",
    "429": "Too many wrong keys came from the address.",
    "503": "The database cannot be used now.",
}
_ID: Final = {
    "name": "id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "minLength": 1},
    "description": "A key's id; an account's name or id.",
}


@functools.cache
def of_the_admin_api(release: str) -> bytes:
    """The document, in JSON."""
    types = [*(action.given for action in ACTIONS), *(action.answer for action in ACTIONS), ErrorBody]
    refs, schemas = msgspec.json.schema_components(types, ref_template=SCHEMAS)
    given, answers, error = refs[: len(ACTIONS)], refs[len(ACTIONS) : -1], refs[-1]
    paths: dict[str, dict[str, Any]] = {}
    for action, taken, answer in zip(ACTIONS, given, answers, strict=True):
        paths.setdefault(action.url, {})[action.method.lower()] = _operation(action, taken, answer, schemas)
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "Tollhouse admin API",
                "version": release,
                "description": f"On the admin socket without a key; on the admin port with one. This is {DOCUMENT}.",
            },
            "paths": paths,
            "components": {
                "schemas": schemas,
                "responses": {
                    status: {"description": told, "content": {"application/json": {"schema": error}}}
                    for status, told in STATUSES.items()
                },
                "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            },
        }
    )


def _operation(
    action: Action[Any, Any], taken: dict[str, Any], answer: dict[str, Any], schemas: dict[str, Any]
) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": action.name,
        "summary": action.summary,
        "description": f"`tollhouse {action.command}`. Over TCP it takes a key with the scope `{action.scope}`.",
        "tags": [action.path.removeprefix(BASE).split("/")[1]],
        "security": [{"bearer": []}, {}],
        "parameters": [_ID] if ID in action.path else [],
        "responses": {
            "200": {"description": "Done.", "content": {"application/json": {"schema": answer}}},
            **{status: {"$ref": f"#/components/responses/{status}"} for status in STATUSES},
        },
    }
    fields = schemas[taken["$ref"].rpartition("/")[2]]
    if action.method == "GET":
        operation["parameters"] += [
            {"name": name, "in": "query", "required": name in fields.get("required", []), "schema": _plain(schema)}
            for name, schema in fields["properties"].items()
        ]
    elif fields["properties"]:
        operation["requestBody"] = {
            "required": bool(fields.get("required")),
            "content": {"application/json": {"schema": taken}},
        }
    return operation


def _plain(schema: dict[str, Any]) -> dict[str, Any]:
    """A query has no null: what is not given is left out."""
    options = [option for option in schema.get("anyOf", []) if option != {"type": "null"}]
    return options[0] if len(options) == 1 else schema
