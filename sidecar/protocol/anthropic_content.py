"""The messages of a body of /v1/messages: blocks of content, read into the messages of a chat.

A result of a tool is a message of its own there; what stands beside it in the user's turn comes before or behind it, as
it was sent. Of an assistant's turn all texts are one, and its calls follow. Thoughts are passed over.
"""

import json
from collections.abc import Callable
from typing import Final

from sidecar.protocol.fields import Fields, as_object, check_length, missing, not_one_of, wrong_type
from sidecar.protocol.messages import text_of, unsupported_content
from sidecar.protocol.options import Neutral, refuse_unsupported
from sidecar.settings import Api
from sidecar.tokenizer.messages import Message, ToolCall

ROLES: Final = ("user", "assistant")
REFUSED_OF_BLOCKS: Final[dict[str, Neutral]] = {"cache_control": ()}
REFUSED_OF_TEXTS: Final[dict[str, Neutral]] = {**REFUSED_OF_BLOCKS, "citations": ([],)}
REFUSED_OF_CALLS: Final[dict[str, Neutral]] = {**REFUSED_OF_BLOCKS, "caller": ({"type": "direct"},), "toolset_name": ()}
# What each kind of thoughts holds.
THOUGHTS: Final = {"thinking": ("thinking", "signature"), "redacted_thinking": ("data",)}
# How a model is told of a tool that failed: no chat template has a word for it.
ERROR: Final = "Error: "

# Notes the fields of an object that are unknown and may pass. Raises ApiError 400 where they may not.
Unknown = Callable[[Fields], None]


def read_conversation(fields: Fields, api: Api, unknown: Unknown) -> list[Message]:
    """Raises ApiError 400 that names the place, like `messages[2].content[0].text`."""
    given = fields.array("messages")
    if given is None:
        raise missing("messages")
    check_length(given, "messages", api.max_messages)
    messages: list[Message] = []
    for at, message in enumerate(given):
        messages += _turn(as_object(message, f"messages[{at}]"), unknown)
    return messages


def text_blocks(fields: Fields, name: str, unknown: Unknown) -> str:
    """A string or text blocks."""
    return text_of(fields.value(name), fields.path(name), lambda block: _text(block, unknown), "blocks")


def _turn(fields: Fields, unknown: Unknown) -> list[Message]:
    role = fields.required_text("role")
    if role not in ROLES:
        raise not_one_of(role, ROLES, fields.path("role"))
    path = fields.path("content")
    content = fields.value("content")
    if content is None:
        raise missing(path)
    if isinstance(content, list):
        check_length(content, path, len(content))
        blocks = [as_object(block, f"{path}[{at}]") for at, block in enumerate(content)]
        read = _said if role == "assistant" else _asked
        messages = read(blocks, unknown)
    elif isinstance(content, str):
        messages = [Message(role, content)]
    else:
        raise wrong_type(path, "a string or an array of content blocks", content)
    unknown(fields)
    return messages


def _asked(blocks: list[Fields], unknown: Unknown) -> list[Message]:
    """The user's words, and the results of tools between them."""
    messages: list[Message] = []
    for block in blocks:
        if block.required_text("type") == "tool_result":
            messages.append(_result(block, unknown))
            continue
        text = _text(block, unknown)
        if messages and messages[-1].role == "user":
            text = messages.pop().content + text
        messages.append(Message("user", text))
    return messages


def _result(block: Fields, unknown: Unknown) -> Message:
    call_id = block.required_text("tool_use_id")
    text = "" if block.value("content") is None else text_blocks(block, "content", unknown)
    failed = block.flag("is_error")
    refuse_unsupported(block, REFUSED_OF_BLOCKS)
    unknown(block)
    return Message("tool", ERROR + text if failed else text, tool_call_id=call_id)


def _said(blocks: list[Fields], unknown: Unknown) -> list[Message]:
    """The assistant's words and calls."""
    texts: list[str] = []
    calls: list[ToolCall] = []
    for block in blocks:
        kind = block.required_text("type")
        if kind == "tool_use":
            calls.append(_call(block, unknown))
        elif kind in THOUGHTS:
            for name in THOUGHTS[kind]:
                block.text(name)
            unknown(block)
        else:
            texts.append(_text(block, unknown))
    return [Message("assistant", "".join(texts), tool_calls=tuple(calls))]


def _call(block: Fields, unknown: Unknown) -> ToolCall:
    call_id, name = block.required_text("id"), block.required_text("name")
    given = block.value("input")
    if given is None:
        raise missing(block.path("input"))
    if not isinstance(given, dict):
        raise wrong_type(block.path("input"), "an object", given)
    refuse_unsupported(block, REFUSED_OF_CALLS)
    unknown(block)
    return ToolCall(call_id, name, json.dumps(given, ensure_ascii=False))


def _text(block: Fields, unknown: Unknown) -> str:
    kind = block.required_text("type")
    if kind != "text":
        raise unsupported_content(kind[:64], block.path("type"))
    text = block.required_text("text")
    refuse_unsupported(block, REFUSED_OF_TEXTS)
    unknown(block)
    return text
