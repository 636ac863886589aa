"""What the bodies of chats hold, as JSON Schema: messages, their contents, and what reaches a template beside them.

A test holds the names here to those that the readers of `messages`, `responses` and `anthropic` ask for.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from sidecar.protocol import anthropic, messages, rendering, responses
from sidecar.protocol import anthropic_content as content
from sidecar.protocol import response_input as items
from sidecar.protocol.openapi.reading import Schema, array, nullable, record, text
from sidecar.protocol.options import Neutral
from sidecar.settings import Api

_ASSISTANT: Final = "assistant"


def refused(*tables: Mapping[str, Neutral]) -> dict[str, Schema]:
    """Fields that may say only what asks for nothing."""
    return {
        name: {"description": "Not supported.", "enum": list(neutral)}
        for table in tables
        for name, neutral in table.items()
    }


def messages_and_rendering(api: Api) -> dict[str, Schema]:
    """A chat as OpenAI has it."""
    words = _words(_part("text"))
    common = {"name": text(), "tool_call_id": text()}
    kinds = [
        record(
            {"role": _one_of(_but(messages.ROLES, _ASSISTANT, "tool", "function")), "content": words, **common},
            "role",
            "content",
        ),
        record({"role": _one_of(("tool",)), "content": words, **common}, "role", "content", "tool_call_id"),
        record({"role": _one_of(("function",)), "content": words, **common}, "role", "content", "name"),
        record(
            {
                "role": _one_of((_ASSISTANT,)),
                "content": _words(_part("text"), _part("refusal", "refusal")),
                "refusal": text(),
                "tool_calls": array(_call(), messages.MAX_TOOL_CALLS, 1),
                "function_call": _function(),
                **refused({"audio": ()}),
                **common,
            },
            "role",
        ),
    ]
    return {"messages": array({"anyOf": kinds}, api.max_messages, 1), **_rendering(api)}


def response_input(api: Api) -> dict[str, Schema]:
    """A chat as Responses have it."""
    given, answered = _part("input_text"), _part("output_text")
    kinds = [
        _item(_but(items.ROLES, _ASSISTANT), _words(given, answered)),
        _item((_ASSISTANT,), _words(given, answered, _part("refusal", "refusal"))),
        record(
            {"type": _one_of(("function_call",)), "call_id": text(), "name": text(), "arguments": text()},
            *("type", "call_id", "name", "arguments"),
        ),
        record(
            {"type": _one_of(("function_call_output",)), "call_id": text(), "output": _words(given)},
            *("type", "call_id", "output"),
        ),
        record({"type": _one_of(("reasoning",))}, "type"),
    ]
    return {
        "input": {"anyOf": [text(), array({"anyOf": kinds}, api.max_messages, 1)]},
        "include": array({"enum": list(responses.INCLUDABLE)}),
        **_rendering(api),
    }


def anthropic_messages(api: Api) -> dict[str, Schema]:
    """A chat as both of Anthropic's endpoints have it."""
    closed: Schema = {"additionalProperties": api.unknown_fields == "ignore"}

    def block(kind: str, told: dict[str, Schema], *required: str) -> Schema:
        return record({"type": _one_of((kind,)), **told}, "type", *required) | closed

    uncached = refused(content.REFUSED_OF_BLOCKS)
    words = block("text", {"text": text(), **refused(content.REFUSED_OF_TEXTS)}, "text")
    result: dict[str, Schema] = {"tool_use_id": text(), "content": _words(words), "is_error": {"type": "boolean"}}
    call: dict[str, Schema] = {
        "id": text(),
        "name": text(),
        "input": {"type": "object", "properties": {}, "required": []},
    }
    asked = [words, block("tool_result", {**result, **uncached}, "tool_use_id")]
    said = [
        words,
        block("tool_use", {**call, **refused(content.REFUSED_OF_CALLS)}, "id", "name", "input"),
        *(block(kind, {name: text() for name in names}) for kind, names in content.THOUGHTS.items()),
    ]
    turns = [
        record({"role": _one_of((role,)), "content": _words(*blocks)}, "role", "content") | closed
        for role, blocks in ((_ASSISTANT, said), ("user", asked))
    ]
    return {
        "messages": array({"anyOf": turns}, api.max_messages, 1),
        "system": _words(words),
        "thinking.type": {"enum": list(anthropic.THOUGHTS)},
        **{f"thinking.{name}": schema for name, schema in refused(anthropic.REFUSED_OF_THINKING).items()},
        "output_config.format.type": {"enum": ["json_schema"]},
        "output_config.format.schema": {"type": "object"},
    }


def _rendering(api: Api) -> dict[str, Schema]:
    document: Schema = {
        "type": "object",
        "maxProperties": rendering.MAX_DOCUMENT_FIELDS,
        "propertyNames": {"maxLength": rendering.MAX_NAME_CHARS},
        "additionalProperties": text(),
    }
    variable = nullable({"anyOf": [{"type": kind} for kind in ("string", "number", "boolean")]})
    return {
        "chat_template_kwargs": {
            "properties": dict.fromkeys(api.chat_template_kwargs, variable),
            "additionalProperties": False,
        },
        "documents": array(document, rendering.MAX_DOCUMENTS),
    }


def _words(*parts: Schema) -> Schema:
    """A content: a string or such parts."""
    return {"anyOf": [text(), array({"anyOf": list(parts)}, least=1)]}


def _part(kind: str, field: str = "text") -> Schema:
    return record({"type": _one_of((kind,)), field: text()}, "type", field)


def _item(roles: Iterable[str], words: Schema) -> Schema:
    return record({"type": _one_of(("message",)), "role": _one_of(roles), "content": words}, "role", "content")


def _function() -> Schema:
    return record({"name": text(), "arguments": text()}, "name", "arguments")


def _call() -> Schema:
    return record({"type": _one_of(("function",)), "id": text(), "function": _function()}, "type", "id", "function")


def _one_of(values: Iterable[str]) -> Schema:
    return {"enum": list(values)}


def _but(roles: Iterable[str], *others: str) -> list[str]:
    return [role for role in roles if role not in others]
