"""The items of a body of /v1/responses, read into the messages of a chat.

A call is part of the assistant's message before it, if one stands right before it, and else begins one. Reasoning is no
part of a prompt: it is passed over.
"""

from typing import Final

import msgspec

from sidecar.protocol.fields import Fields, as_object, check_length, invalid_value, missing, not_one_of, wrong_type
from sidecar.protocol.messages import text_of, unsupported_content
from sidecar.settings import Api
from sidecar.tokenizer.messages import Message, ToolCall
from sidecar.wire.errors import bad_request

ROLES: Final = ("user", "assistant", "system", "developer")
KINDS: Final = ("message", "function_call", "function_call_output", "reasoning")
# Kinds of content that OpenAI knows and a text model cannot take.
_FOREIGN_PARTS: Final = ("input_image", "input_file", "input_audio", "computer_screenshot", "reasoning_text")


def read_input(fields: Fields, api: Api) -> tuple[Message, ...]:
    """Raises ApiError 400 that names the place, like `input[2].content`."""
    given = fields.value("input")
    if given is None:
        raise missing("input")
    if isinstance(given, str):
        return (Message("user", given),)
    if not isinstance(given, list):
        raise wrong_type("input", "a string or an array of input items", given)
    check_length(given, "input", api.max_messages)
    messages: list[Message] = []
    for at, item in enumerate(given):
        _read(as_object(item, f"input[{at}]"), messages)
    if not messages:
        raise invalid_value("input", "it has nothing but reasoning, which is passed over.")
    return tuple(messages)


def _read(item: Fields, messages: list[Message]) -> None:
    kind = item.text("type") or "message"
    if kind == "message":
        messages.append(_message(item))
    elif kind == "function_call":
        _add_call(item, messages)
    elif kind == "function_call_output":
        messages.append(_result(item))
    elif kind != "reasoning":
        supported = ", ".join(f"'{name}'" for name in KINDS)
        raise bad_request(
            f"Items of other types than {supported} are not supported here, and '{item.path('type')}' is another one.",
            param=item.path("type"),
            code="unsupported_value",
        )


def _add_call(item: Fields, messages: list[Message]) -> None:
    call = ToolCall(item.required_text("call_id"), item.required_text("name"), item.required_text("arguments"))
    if messages and messages[-1].role == "assistant":
        last = messages.pop()
        messages.append(msgspec.structs.replace(last, tool_calls=(*last.tool_calls, call)))
    else:
        messages.append(Message("assistant", "", tool_calls=(call,)))


def _result(item: Fields) -> Message:
    call_id = item.required_text("call_id")
    path = item.path("output")
    output = item.value("output")
    if output is None:
        raise missing(path)
    return Message("tool", text_of(output, path, _result_part), tool_call_id=call_id)


def _result_part(part: Fields) -> str:
    return _text(part, ("input_text",))


def _message(item: Fields) -> Message:
    role = item.required_text("role")
    if role not in ROLES:
        raise not_one_of(role, ROLES, item.path("role"))
    path = item.path("content")
    content = item.value("content")
    if content is None:
        raise missing(path)
    return Message(role, text_of(content, path, lambda part: _part(part, role)))


def _part(part: Fields, role: str) -> str:
    if role != "assistant":
        return _text(part, ("input_text", "output_text"))
    if part.required_text("type") == "refusal":
        return part.required_text("refusal")
    return _text(part, ("output_text", "input_text", "refusal"))


def _text(part: Fields, kinds: tuple[str, ...]) -> str:
    kind = part.required_text("type")
    if kind in _FOREIGN_PARTS:
        raise unsupported_content(kind, part.path("type"))
    if kind not in kinds:
        raise not_one_of(kind, kinds, part.path("type"))
    return part.required_text("text")
