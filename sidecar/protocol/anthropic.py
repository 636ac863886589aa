"""From bodies of /v1/messages and /v1/messages/count_tokens to a `ChatRequest` or the chat to count: text only.

Fields and their ranges are those of Anthropic's Messages API. One that is not here is refused by its name: nothing is
ignored that would change the answer. The messages are read in `anthropic_content`, tools in `anthropic_tools`; what the
answer looks like is in `anthropic_answer`.
"""

from dataclasses import dataclass
from typing import Final

import msgspec

from sidecar.protocol.anthropic_content import Unknown, read_conversation, text_blocks
from sidecar.protocol.anthropic_tools import read_anthropic_tools
from sidecar.protocol.fields import Fields, as_text, check_length, invalid_value, missing, not_one_of, too_long
from sidecar.protocol.manner import check_thoughts
from sidecar.protocol.options import (
    MAX_STOP_CHARS,
    MOST_TOKENS,
    Neutral,
    read_model,
    refuse_unsupported,
    unknown_fields,
)
from sidecar.protocol.plan import Encoder, Limits, check_chat_bytes
from sidecar.protocol.requests import ChatRequest, Options, ToolUse
from sidecar.protocol.structured import json_schema
from sidecar.settings import Api
from sidecar.tokenizer.messages import Message, Rendering
from sidecar.wire.grammars import Grammar
from sidecar.wire.internal import Endpoint

MAX_STOP_SEQUENCES: Final = 64
MAX_USER_ID_CHARS: Final = 256
THOUGHTS: Final = ("disabled", "enabled", "adaptive")
REFUSED_OF_THINKING: Final[dict[str, Neutral]] = {"display": ("summarized",)}
# Anthropic's API reference, `thinking.budget_tokens`.
LEAST_BUDGET: Final = 1024


@dataclass(frozen=True, slots=True)
class _Chat:
    """What both paths have. `thinking`: thoughts are to be told; `ignored`: fields that are unknown and may pass."""

    messages: tuple[Message, ...]
    rendering: Rendering
    use: ToolUse | None
    thinking: bool
    grammar: Grammar | None
    ignored: tuple[str, ...]


class CountRequest(msgspec.Struct, frozen=True):
    """A body of /v1/messages/count_tokens."""

    model: str
    messages: tuple[Message, ...]
    rendering: Rendering
    thoughts_wanted: bool
    ignored: tuple[str, ...]


class MessageCount(msgspec.Struct, frozen=True):
    """Anthropic's answer of /v1/messages/count_tokens."""

    input_tokens: int


def read_message(fields: Fields, api: Api) -> ChatRequest:
    """Raises ApiError 400."""
    model = read_model(fields)
    max_tokens = fields.integer("max_tokens", 1, MOST_TOKENS)
    if max_tokens is None:
        raise missing("max_tokens")
    temperature, top_p = fields.number("temperature", 0, 1), fields.number("top_p", 0, 1)
    top_k = fields.integer("top_k", 0, MOST_TOKENS)
    stop, stream = _stop_sequences(fields), fields.flag("stream") or False
    ignored = _check_metadata(fields, api)
    chat = _read_chat(fields, api, max_tokens)
    options = Options(
        model=model,
        choices=1,
        max_tokens=max_tokens,
        max_tokens_param="max_tokens",
        temperature=1.0 if temperature is None else temperature,
        top_p=1.0 if top_p is None else top_p,
        top_k=top_k or 0,
        grammar=chat.grammar,
        seed=None,
        stop=stop,
        stream=stream,
        include_usage=False,
        continuous_usage=False,
        echo_service_tier=False,
        ignored=(*ignored, *chat.ignored),
    )
    return ChatRequest(options, chat.messages, chat.rendering, Endpoint.MESSAGES, chat.use, chat.thinking)


def read_count(fields: Fields, api: Api) -> CountRequest:
    """Raises ApiError 400."""
    model = read_model(fields)
    chat = _read_chat(fields, api)
    return CountRequest(model, chat.messages, chat.rendering, chat.thinking, chat.ignored)


def count(request: CountRequest, encoder: Encoder, limits: Limits) -> MessageCount:
    """The answer. Takes long: call it in a thread. Raises ApiError 400 as `tokenization` does."""
    check_thoughts(limits.dialect, wanted=request.thoughts_wanted)
    check_chat_bytes(request.messages, request.rendering, limits)
    return MessageCount(len(encoder.encode_chat(request.messages, request.rendering)))


def _read_chat(fields: Fields, api: Api, max_tokens: int | None = None) -> _Chat:
    """What both paths have, and so the last to be read."""
    ignored: list[str] = []

    def unknown(given: Fields) -> None:
        ignored.extend(unknown_fields(given, api))

    messages = read_conversation(fields, api, unknown)
    use = read_anthropic_tools(fields, unknown)
    rendering = _rendering(messages, use)
    if fields.value("system") is not None:
        messages.insert(0, Message("system", text_blocks(fields, "system", unknown)))
    thinking = _thinking(fields, max_tokens, unknown)
    grammar = _format(fields, unknown)
    unknown(fields)
    return _Chat(tuple(messages), rendering, use, thinking, grammar, tuple(ignored))


def _rendering(messages: list[Message], use: ToolUse | None) -> Rendering:
    """A last message of the assistant's is the beginning of the answer; an empty one begins nothing, and is dropped."""
    tools = () if use is None else use.tools
    last = messages[-1]
    if last.role == "assistant":
        if last.tool_calls:
            raise invalid_value("messages", "the last one has 'tool_use' blocks, and no results of them come after it.")
        if last.content:
            return Rendering(add_generation_prompt=False, continue_final_message=True, tools=tools)
        messages.pop()
        if not messages:
            raise invalid_value("messages", "they are empty.")
    return Rendering(tools=tools)


def _thinking(fields: Fields, max_tokens: int | None, unknown: Unknown) -> bool:
    """Whether thoughts are to be told."""
    thinking = fields.object("thinking")
    if thinking is None:
        return False
    kind = thinking.required_text("type")
    if kind not in THOUGHTS:
        raise not_one_of(kind, THOUGHTS, thinking.path("type"))
    if kind == "enabled":
        path = thinking.path("budget_tokens")
        budget = thinking.integer("budget_tokens", LEAST_BUDGET, MOST_TOKENS)
        if budget is None:
            raise missing(path)
        if max_tokens is not None and budget >= max_tokens:
            raise invalid_value(path, "it must be less than 'max_tokens'.")
    refuse_unsupported(thinking, REFUSED_OF_THINKING)
    unknown(thinking)
    return kind != "disabled"


def _format(fields: Fields, unknown: Unknown) -> Grammar | None:
    """The form that the answer is to have."""
    config = fields.object("output_config")
    form = None if config is None else config.object("format")
    grammar: Grammar | None = None
    if form is not None:
        kind = form.required_text("type")
        if kind != "json_schema":
            raise not_one_of(kind, ("json_schema",), form.path("type"))
        schema = form.value("schema")
        if schema is None:
            raise missing(form.path("schema"))
        grammar = json_schema(schema, form.path("schema"), form.path())
        unknown(form)
    if config is not None:
        unknown(config)
    return grammar


def _check_metadata(fields: Fields, api: Api) -> list[str]:
    """It has no effect on an answer from here. Gives the fields in it that are unknown and may pass."""
    metadata = fields.object("metadata")
    if metadata is None:
        return []
    if len(metadata.text("user_id") or "") > MAX_USER_ID_CHARS:
        raise too_long(metadata.path("user_id"), MAX_USER_ID_CHARS)
    return unknown_fields(metadata, api)


def _stop_sequences(fields: Fields) -> tuple[str, ...]:
    given = fields.array("stop_sequences") or []
    if given:
        check_length(given, "stop_sequences", MAX_STOP_SEQUENCES)
    stops = tuple(as_text(stop, f"stop_sequences[{at}]") for at, stop in enumerate(given))
    for at, stop in enumerate(stops):
        if not stop:
            raise invalid_value(f"stop_sequences[{at}]", "an empty text ends nothing.")
        if len(stop) > MAX_STOP_CHARS:
            raise too_long(f"stop_sequences[{at}]", MAX_STOP_CHARS)
    return stops
