"""The document has every public path and every refusal that the manual knows, and nothing in it leads nowhere.

It is the proxy's: the sidecar's, with the paths of stored responses.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from proxy.admin.openapi import merged
from proxy.responses import INPUT_ITEMS, RESPONSE
from proxy.routes import METHODS
from sidecar.protocol.answer import ChatChoice, ChatMessage, Envelope
from sidecar.protocol.openapi.bodies import EMBEDDINGS
from sidecar.protocol.openapi.document import document
from sidecar.settings import Api
from sidecar.wire import anthropic
from sidecar.wire.internal import Endpoint

DOCS = Path(__file__).parents[5] / "docs"


@pytest.fixture(scope="module")
def found() -> Any:
    return json.loads(merged(document(Api(), "1.2.3"), "http://127.0.0.1:8000"))


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def operations(found: Any) -> Iterator[tuple[str, Any]]:
    """Each with its path."""
    for path, item in found["paths"].items():
        for operation in item.values():
            yield path, operation


def test_it_is_of_this_release(found: Any) -> None:
    assert (found["openapi"], found["info"]["version"]) == ("3.1.0", "1.2.3")


def test_it_has_the_paths_of_the_public_listener_and_of_the_manual(found: Any) -> None:
    methods = {path: {method.upper() for method in item} for path, item in found["paths"].items()}
    # HEAD is GET without a body.
    assert methods == {path: set(names) - {"HEAD"} for path, names in METHODS.items()}
    manual = re.findall(r"`(GET|POST|DELETE) (/[\w/{}]+)`", (DOCS / "api.md").read_text())
    assert {(method, path) for path, names in methods.items() for method in names} == set(manual)


def test_references_lead_somewhere(found: Any) -> None:
    assert len(set(references(found))) > 50
    for reference in references(found):
        node = found
        for name in reference.removeprefix("#/").split("/"):
            node = node[name]


def test_it_has_the_statuses_of_the_manual_and_no_others(found: Any) -> None:
    public = (DOCS / "errors.md").read_text().partition("## The admin listener")[0]
    told = {
        status for cell in re.findall(r"^\| `\w+` \| ([\d, ]+) \|", public, re.MULTILINE) for status in cell.split(", ")
    }
    statuses = {status for _, operation in operations(found) for status in operation["responses"]}
    # Another method is another operation.
    assert statuses == (told - {"405"}) | {"200"}


def test_operations_have_names_of_their_own(found: Any) -> None:
    names = [operation["operationId"] for _, operation in operations(found)]
    assert len(set(names)) == len(names)


def test_anthropic_s_paths_have_its_errors_and_its_key(found: Any) -> None:
    for path, operation in operations(found):
        schema = operation["responses"]["401"]["$ref"]
        assert schema.endswith("Anthropic401") is (path in anthropic.PATHS)
        assert ({"apiKey": []} in operation["security"]) is (path in anthropic.PATHS)
        assert {"bearer": []} in operation["security"]


def test_what_an_answer_always_has_is_required(found: Any) -> None:
    def schema(path: str) -> Any:
        content = found["paths"][path]["post"]["responses"]["200"]["content"]
        return found["components"]["schemas"][content["application/json"]["schema"]["$ref"].rpartition("/")[2]]

    shape = Envelope(
        id="x",
        object="x",
        created=1,
        model="m",
        system_fingerprint="",
        choices=(ChatChoice(0, ChatMessage(""), "stop"),),
    )
    assert set(schema(Endpoint.CHAT)["required"]) == set(msgspec.to_builtins(shape))
    response = schema(Endpoint.RESPONSES)
    assert set(response["properties"]) - set(response["required"]) == {"service_tier", "usage", "user"}
    assert schema(EMBEDDINGS)["required"] == ["data", "model", "usage", "object"]


def test_a_stored_response_is_what_was_answered(found: Any) -> None:
    def schema(path: str, method: str) -> Any:
        return found["paths"][path][method]["responses"]["200"]["content"]["application/json"]["schema"]

    assert schema(RESPONSE, "get") == schema(Endpoint.RESPONSES, "post")
    assert schema(INPUT_ITEMS, "get") != schema(RESPONSE, "delete")


def test_the_proxy_s_schemas_take_no_name_of_the_sidecar_s(found: Any) -> None:
    own = json.loads(document(Api(), "1.2.3"))["components"]["schemas"]
    assert set(found["components"]["schemas"]) - set(own) == {"Deleted", "ItemList"}


def test_streams_are_where_they_can_be_asked_for(found: Any) -> None:
    streamed = {
        path for path, operation in operations(found) if "text/event-stream" in operation["responses"]["200"]["content"]
    }
    assert streamed == set(Endpoint) - {Endpoint.EMBEDDINGS}
