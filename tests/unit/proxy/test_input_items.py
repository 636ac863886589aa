"""What a stored response was asked, page by page: every item once, and in OpenAI's shape."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import ResponseItem
from pydantic import TypeAdapter

from proxy.input_items import item_list
from sidecar.wire.errors import ApiError


def page(count: int, **query: str) -> Any:
    asked = json.dumps([{"role": "user", "content": str(number), "id": "same"} for number in range(count)])
    return item_list("resp_1", asked, query)


def texts(found: Any) -> list[str]:
    return [item["content"][0]["text"] for item in found.data]


@given(count=st.integers(0, 45), limit=st.none() | st.integers(1, 100), order=st.sampled_from([None, "asc", "desc"]))
def test_pages_after_each_other_have_every_item_once(count: int, limit: int | None, order: str | None) -> None:
    query = {"limit": None if limit is None else str(limit), "order": order}
    query = {name: value for name, value in query.items() if value is not None}
    seen: list[str] = []
    found = page(count, **query)
    while True:
        seen += texts(found)
        if found.data:
            assert (found.first_id, found.last_id) == (found.data[0]["id"], found.data[-1]["id"])
        if not found.has_more:
            break
        assert len(found.data) == (limit or 20)
        found = page(count, after=found.last_id, **query)
    numbers = [str(number) for number in range(count)]
    assert seen == (numbers if order == "asc" else numbers[::-1])


def test_an_empty_page_has_no_ids() -> None:
    found = page(1, after="msg_1_0")
    assert (found.data, found.first_id, found.last_id, found.has_more) == ([], None, None, False)


@pytest.mark.parametrize(
    ("query", "param", "code"),
    [
        ({"limit": "0"}, "limit", "integer_below_min_value"),
        ({"limit": "101"}, "limit", "integer_above_max_value"),
        ({"limit": "9" * 9999}, "limit", "integer_above_max_value"),
        ({"limit": "-1"}, "limit", "invalid_type"),
        ({"limit": "٣"}, "limit", "invalid_type"),
        ({"limit": ""}, "limit", "invalid_type"),
        ({"order": "up"}, "order", "invalid_value"),
        ({"after": "msg_1_3"}, "after", "invalid_value"),
        ({"after": "same"}, "after", "invalid_value"),
    ],
)
def test_a_wrong_parameter_is_refused_by_name(query: dict[str, str], param: str, code: str) -> None:
    with pytest.raises(ApiError) as caught:
        page(3, **query)
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, param, code)


@pytest.mark.parametrize(
    ("item", "kind"),
    [
        ({"role": "user", "content": "a"}, "input_text"),
        ({"role": "system", "content": [{"type": "input_text", "text": "a"}]}, "input_text"),
        ({"role": "assistant", "content": "a"}, "output_text"),
        ({"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "a"}]}, "refusal"),
    ],
)
def test_a_message_is_one_to_the_sdk(item: dict[str, Any], kind: str) -> None:
    (found,) = item_list("resp_1", json.dumps([item]), {}).data
    read: Any = TypeAdapter(ResponseItem).validate_python(found)
    assert (read.id, read.status, read.role) == ("msg_1_0", "completed", item["role"])
    assert read.content[0].type == kind


def test_another_item_is_given_as_it_came() -> None:
    item = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "id": 5}
    (found,) = item_list("resp_1", json.dumps([item]), {}).data
    assert found == {**item, "id": "item_1_0", "status": "completed"}
