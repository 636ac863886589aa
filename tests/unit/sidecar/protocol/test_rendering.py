"""What of a chat body reaches the chat template: read with its defaults, or refused by name."""

import json
from typing import Any

import pytest

from sidecar.protocol.chat import read_chat
from sidecar.protocol.fields import decode_object
from sidecar.protocol.rendering import MAX_DOCUMENT_FIELDS, MAX_DOCUMENTS, MAX_NAME_CHARS
from sidecar.settings import Api
from sidecar.tokenizer.messages import PLAIN, Rendering
from sidecar.wire.errors import ApiError

OPEN = [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "One, two,"}]
CALLED = {
    "role": "assistant",
    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
}
NAMES = ("add_generation_prompt", "continue_final_message", "chat_template_kwargs", "reasoning_effort", "documents")


def read(fields: dict[str, Any], api: Api | None = None) -> Rendering:
    body = json.dumps({"model": "m", "messages": OPEN, **fields}).encode()
    return read_chat(decode_object(body), api or Api()).rendering


@pytest.mark.parametrize(
    "fields",
    [
        {},
        dict.fromkeys(NAMES),
        {"add_generation_prompt": True, "continue_final_message": False, "chat_template_kwargs": {}, "documents": []},
        {"chat_template_kwargs": {"enable_thinking": None}},
    ],
)
def test_what_asks_for_nothing_is_plain(fields: dict[str, Any]) -> None:
    assert read(fields) == PLAIN


@pytest.mark.parametrize(
    ("fields", "begins", "continues"),
    [
        ({"add_generation_prompt": False}, False, False),
        ({"continue_final_message": True}, False, True),
        ({"add_generation_prompt": False, "continue_final_message": True}, False, True),
        ({"add_generation_prompt": None, "continue_final_message": True}, False, True),
    ],
)
def test_an_answer_begins_goes_on_or_is_left_to_the_model(
    fields: dict[str, Any], begins: bool, continues: bool
) -> None:
    rendering = read(fields)
    assert (rendering.add_generation_prompt, rendering.continue_final_message) == (begins, continues)


def test_c4_variables_are_scalars_of_allowed_names() -> None:
    given = {"enable_thinking": False, "thinking": 1.5, "reasoning_effort": "high"}
    assert read({"chat_template_kwargs": given}).variables == given
    api = Api(chat_template_kwargs=("date", "budget"))
    assert read({"chat_template_kwargs": {"date": "", "budget": 7}}, api).variables == {"date": "", "budget": 7}


def test_the_effort_may_be_said_in_two_places_if_they_agree() -> None:
    assert read({"reasoning_effort": "low"}).reasoning_effort == "low"
    both = read({"reasoning_effort": "low", "chat_template_kwargs": {"reasoning_effort": "low"}})
    assert (both.reasoning_effort, both.variables) == ("low", {"reasoning_effort": "low"})


def test_documents_are_objects_of_strings() -> None:
    documents = [{"title": "A", "text": "a"}, {}, {"x" * MAX_NAME_CHARS: ""}]
    assert read({"documents": documents}).documents == tuple(documents)
    assert len(read({"documents": [{"a": "b"}] * MAX_DOCUMENTS}).documents) == MAX_DOCUMENTS
    widest = {str(at): "" for at in range(MAX_DOCUMENT_FIELDS)}
    assert read({"documents": [widest]}).documents == (widest,)


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"add_generation_prompt": 1}, "add_generation_prompt", "invalid_type"),
        ({"continue_final_message": "yes"}, "continue_final_message", "invalid_type"),
        ({"add_generation_prompt": True, "continue_final_message": True}, "continue_final_message", "invalid_value"),
        ({"continue_final_message": True, "messages": OPEN[:1]}, "continue_final_message", "invalid_value"),
        ({"continue_final_message": True, "messages": [CALLED]}, "continue_final_message", "invalid_value"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs", "invalid_type"),
        ({"chat_template_kwargs": {"tools": 1}}, "chat_template_kwargs.tools", "unsupported_parameter"),
        ({"chat_template_kwargs": {"date": None}}, "chat_template_kwargs.date", "unsupported_parameter"),
        ({"chat_template_kwargs": {"x" * 100: 1}}, f"chat_template_kwargs.{'x' * 64}", "unsupported_parameter"),
        ({"chat_template_kwargs": {"thinking": []}}, "chat_template_kwargs.thinking", "invalid_type"),
        ({"chat_template_kwargs": {"thinking": {}}}, "chat_template_kwargs.thinking", "invalid_type"),
        ({"reasoning_effort": "much"}, "reasoning_effort", "invalid_value"),
        ({"reasoning_effort": 1}, "reasoning_effort", "invalid_type"),
        (
            {"reasoning_effort": "low", "chat_template_kwargs": {"reasoning_effort": "high"}},
            "reasoning_effort",
            "invalid_value",
        ),
        ({"documents": {}}, "documents", "invalid_type"),
        ({"documents": ["a"]}, "documents[0]", "invalid_type"),
        ({"documents": [{"a": "b"}, {"text": 5}]}, "documents[1].text", "invalid_type"),
        ({"documents": [{"text": None}]}, "documents[0].text", "invalid_type"),
        ({"documents": [{}] * (MAX_DOCUMENTS + 1)}, "documents", "array_above_max_length"),
        ({"documents": [{str(at): "" for at in range(MAX_DOCUMENT_FIELDS + 1)}]}, "documents", "invalid_value"),
        ({"documents": [{"x" * (MAX_NAME_CHARS + 1): ""}]}, "documents", "invalid_value"),
    ],
)
def test_a_refusal_names_the_field_and_says_what_kind(fields: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(ApiError) as caught:
        read(fields)
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, param, code)


def test_c4_a_name_that_is_not_allowed_is_refused_with_the_setting() -> None:
    with pytest.raises(ApiError, match=r"'chat_template_kwargs\.date'.*api\.chat_template_kwargs"):
        read({"chat_template_kwargs": {"date": "today"}})
    with pytest.raises(ApiError, match=r"api\.chat_template_kwargs"):
        read({"chat_template_kwargs": {"thinking": True}}, Api(chat_template_kwargs=()))
