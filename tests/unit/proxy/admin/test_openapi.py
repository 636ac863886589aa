"""The paths of stored responses in the document: what they take and answer is what the proxy reads and writes.

The whole document is tested in tests/unit/sidecar/protocol/openapi/test_document.py.
"""

import json
from typing import Any

import msgspec
import pytest

from proxy.admin.openapi import merged
from proxy.input_items import DEFAULT_LIMIT, MOST, item_list
from proxy.responses import INPUT_ITEMS, RESPONSE, Deleted
from tests.fakes.sidecar import OPENAPI


@pytest.fixture(scope="module")
def found() -> Any:
    return json.loads(merged(json.dumps(OPENAPI).encode(), "http://here"))


def schema(found: Any, path: str, method: str) -> Any:
    content = found["paths"][path][method]["responses"]["200"]["content"]
    name = content["application/json"]["schema"]["$ref"].rpartition("/")[2]
    return found["components"]["schemas"][name]


def test_the_sidecar_s_part_stays_as_it_is(found: Any) -> None:
    for part in ("openapi", "info"):
        assert found[part] == OPENAPI[part]
    assert found["paths"].items() >= OPENAPI["paths"].items()
    assert found["components"]["headers"] == OPENAPI["components"]["headers"]
    assert found["components"]["schemas"].items() >= OPENAPI["components"]["schemas"].items()
    assert found["servers"] == [{"url": "http://here"}]


def test_the_paging_of_input_items_has_the_bounds_that_are_read(found: Any) -> None:
    parameters = {told["name"]: told for told in found["paths"][INPUT_ITEMS]["get"]["parameters"]}
    assert {name for name, told in parameters.items() if told["in"] == "query"} == {"limit", "order", "after"}
    assert parameters["limit"]["schema"] == {
        "type": "integer",
        "minimum": 1,
        "maximum": MOST,
        "default": DEFAULT_LIMIT,
    }
    for order in parameters["order"]["schema"]["enum"]:
        item_list("resp_1", "[]", {"order": order})
    asked = json.dumps([{"content": str(number)} for number in range(2)])
    default = parameters["order"]["schema"]["default"]
    assert item_list("resp_1", asked, {"order": default}) == item_list("resp_1", asked, {})


def test_answers_have_what_is_written(found: Any) -> None:
    for path, method, answer in (
        (INPUT_ITEMS, "get", item_list("resp_1", "[]", {})),
        (RESPONSE, "delete", Deleted("resp_1")),
    ):
        told = schema(found, path, method)
        assert set(told["required"]) == set(told["properties"]) == set(msgspec.to_builtins(answer))


@pytest.mark.parametrize("document", [b"", b"[]", b'{"openapi":"3.1.0"}', b'{"openapi":1,"info":{},"paths":{}}'])
def test_what_is_no_document_is_not_merged(document: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        merged(document, "http://here")
