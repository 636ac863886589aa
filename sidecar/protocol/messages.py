"""The messages of a chat body: roles, contents and the tool calls of its history, read into plain records.

Text models only: a part that is not text is refused with its type. Keys that no template knows are passed over, as
OpenAI does; whether the roles make sense in their order is the chat template's to say.
"""

from collections.abc import Callable
from typing import Final

from sidecar.protocol.fields import Fields, as_object, check_length, missing, not_one_of, wrong_type
from sidecar.settings import Api
from sidecar.tokenizer.messages import Message, ToolCall
from sidecar.wire.errors import ApiError, bad_request

ROLES: Final = ("system", "developer", "user", "assistant", "tool", "function")
# Kinds of content that OpenAI knows and a text model cannot take.
FOREIGN_PARTS: Final = ("image_url", "input_audio", "file")
MAX_TOOL_CALLS: Final = 128


def read_messages(fields: Fields, api: Api) -> tuple[Message, ...]:
    """Raises ApiError 400 that names the place, like `messages[2].content`."""
    messages = fields.array("messages")
    if messages is None:
        raise missing("messages")
    check_length(messages, "messages", api.max_messages)
    return tuple(_message(as_object(message, f"messages[{at}]")) for at, message in enumerate(messages))


def _message(fields: Fields) -> Message:
    role = fields.required_text("role")
    if role not in ROLES:
        raise not_one_of(role, ROLES, fields.path("role"))
    name = fields.text("name")
    call_id = fields.text("tool_call_id")
    if role == "tool" and call_id is None:
        raise missing(fields.path("tool_call_id"))
    if role == "function" and name is None:
        raise missing(fields.path("name"))
    return Message(role, _content(fields, role), name, call_id, _tool_calls(fields) if role == "assistant" else ())


def _content(fields: Fields, role: str) -> str:
    path = fields.path("content")
    content = fields.value("content")
    if content is None and role == "assistant":
        # The answer was a refusal, or nothing but calls.
        if fields.object("audio") is not None:
            raise unsupported_content("audio", fields.path("audio"))
        return fields.text("refusal") or ""
    if content is None:
        raise missing(path)
    return text_of(content, path, lambda part: _part(part, role))


def text_of(content: object, path: str, read: Callable[[Fields], str], kind: str = "parts") -> str:
    """A content's text: a string, or what `read` makes of each of its parts. Raises ApiError 400 for anything else."""
    if isinstance(content, list):
        # How many is bounded by the body's size; none at all is OpenAI's `empty_array`.
        check_length(content, path, len(content))
        # Joined without a separator: the client's parts are its own words, and only it knows where a line ends.
        return "".join(read(as_object(part, f"{path}[{at}]")) for at, part in enumerate(content))
    if not isinstance(content, str):
        raise wrong_type(path, f"a string or an array of content {kind}", content)
    return content


def _part(fields: Fields, role: str) -> str:
    kind = fields.required_text("type")
    if kind in FOREIGN_PARTS:
        raise unsupported_content(kind, fields.path("type"))
    if kind == "refusal" and role == "assistant":
        return fields.required_text("refusal")
    if kind != "text":
        raise not_one_of(kind, ("text", "refusal") if role == "assistant" else ("text",), fields.path("type"))
    return fields.required_text("text")


def _tool_calls(fields: Fields) -> tuple[ToolCall, ...]:
    calls = fields.array("tool_calls")
    function = fields.object("function_call")
    # Deprecated by OpenAI in favour of `tool_calls`; templates know only those.
    old = () if function is None else (_function("", function),)
    if calls is None:
        return old
    check_length(calls, fields.path("tool_calls"), MAX_TOOL_CALLS)
    return tuple(_tool_call(as_object(call, f"{fields.path('tool_calls')}[{at}]")) for at, call in enumerate(calls))


def _tool_call(fields: Fields) -> ToolCall:
    kind = fields.required_text("type")
    if kind != "function":
        raise not_one_of(kind, ("function",), fields.path("type"))
    function = fields.object("function")
    if function is None:
        raise missing(fields.path("function"))
    return _function(fields.required_text("id"), function)


def _function(call_id: str, function: Fields) -> ToolCall:
    return ToolCall(call_id, function.required_text("name"), function.required_text("arguments"))


def unsupported_content(kind: str, path: str) -> ApiError:
    return bad_request(
        f"This model takes text only; '{kind}' content is not supported.", param=path, code="unsupported_content_type"
    )
