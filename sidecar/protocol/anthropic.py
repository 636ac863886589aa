"""From bodies of /v1/messages and /v1/messages/count_tokens to a `ChatRequest` or the chat to count: text only.

Fields and their ranges are those of Anthropic's Messages API. One that is not here is refused by its name: nothing is
ignored that would change the answer. What the answer looks like is in `anthropic_answer`.
"""

from collections.abc import Callable
from typing import Final

import msgspec

from sidecar.protocol.fields import (
    Fields,
    as_object,
    as_text,
    check_length,
    invalid_value,
    missing,
    not_one_of,
    too_long,
)
from sidecar.protocol.messages import text_of, unsupported_content
from sidecar.protocol.options import (
    MAX_STOP_CHARS,
    MOST_TOKENS,
    Neutral,
    read_model,
    refuse_unsupported,
    unknown_fields,
)
from sidecar.protocol.plan import Encoder, Limits, check_chat_bytes
from sidecar.protocol.requests import ChatRequest, Options
from sidecar.settings import Api
from sidecar.tokenizer.messages import PLAIN, Message, Rendering
from sidecar.wire.errors import bad_request
from sidecar.wire.internal import Endpoint

ROLES: Final = ("user", "assistant")
MAX_STOP_SEQUENCES: Final = 64
MAX_USER_ID_CHARS: Final = 256
# Without tools there is nothing to choose.
REFUSED: Final[dict[str, Neutral]] = {"tool_choice": ({"type": "auto"}, {"type": "none"}), "tools": ([],)}
REFUSED_OF_BLOCKS: Final[dict[str, Neutral]] = {"cache_control": (), "citations": ([],)}
_THOUGHTS: Final = ("disabled", "enabled", "adaptive")
_CONTINUED: Final = Rendering(add_generation_prompt=False, continue_final_message=True)

# Gives the fields of an object that are unknown and may pass.
Unknown = Callable[[Fields], list[str]]


class CountRequest(msgspec.Struct, frozen=True):
    """A body of /v1/messages/count_tokens."""

    model: str
    messages: tuple[Message, ...]
    rendering: Rendering
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
    messages, rendering, unknown = _read_chat(fields, api)
    options = Options(
        model=model,
        choices=1,
        max_tokens=max_tokens,
        max_tokens_param="max_tokens",
        temperature=1.0 if temperature is None else temperature,
        top_p=1.0 if top_p is None else top_p,
        top_k=top_k or 0,
        seed=None,
        stop=stop,
        stream=stream,
        include_usage=False,
        # The first event and the last but one tell it, and no event comes after them for it.
        continuous_usage=True,
        echo_service_tier=False,
        ignored=(*ignored, *unknown),
    )
    return ChatRequest(options, messages, rendering, Endpoint.MESSAGES)


def read_count(fields: Fields, api: Api) -> CountRequest:
    """Raises ApiError 400."""
    model = read_model(fields)
    messages, rendering, unknown = _read_chat(fields, api)
    return CountRequest(model, messages, rendering, tuple(unknown))


def count(request: CountRequest, encoder: Encoder, limits: Limits) -> MessageCount:
    """The answer. Takes long: call it in a thread. Raises ApiError 400 as `tokenization` does."""
    check_chat_bytes(request.messages, request.rendering, limits)
    return MessageCount(len(encoder.encode_chat(request.messages, request.rendering)))


def _read_chat(fields: Fields, api: Api) -> tuple[tuple[Message, ...], Rendering, list[str]]:
    """What both paths have, and so the last to be read: the chat, and the fields that are unknown and may pass."""
    ignored: list[str] = []

    def unknown(given: Fields) -> list[str]:
        found = unknown_fields(given, api)
        ignored.extend(found)
        return found

    given = fields.array("messages")
    if given is None:
        raise missing("messages")
    check_length(given, "messages", api.max_messages)
    messages = [_message(as_object(message, f"messages[{at}]"), unknown) for at, message in enumerate(given)]
    rendering = _rendering(messages)
    if fields.value("system") is not None:
        messages.insert(0, Message("system", _content(fields, "system", unknown)))
    _check_thinking(fields, unknown)
    refuse_unsupported(fields, REFUSED)
    unknown(fields)
    return tuple(messages), rendering, ignored


def _rendering(messages: list[Message]) -> Rendering:
    """A last message of the assistant's is the beginning of the answer; an empty one begins nothing, and is dropped."""
    last = messages[-1]
    if last.role != "assistant":
        return PLAIN
    if not last.content:
        if len(messages) == 1:
            raise invalid_value("messages", "they are empty.")
        messages.pop()
        return PLAIN
    return _CONTINUED


def _message(fields: Fields, unknown: Unknown) -> Message:
    role = fields.required_text("role")
    if role not in ROLES:
        raise not_one_of(role, ROLES, fields.path("role"))
    if fields.value("content") is None:
        raise missing(fields.path("content"))
    message = Message(role, _content(fields, "content", unknown))
    unknown(fields)
    return message


def _content(fields: Fields, name: str, unknown: Unknown) -> str:
    """A string or text blocks."""
    return text_of(fields.value(name), fields.path(name), lambda block: _block(block, unknown), "blocks")


def _block(fields: Fields, unknown: Unknown) -> str:
    kind = fields.required_text("type")
    if kind != "text":
        raise unsupported_content(kind[:64], fields.path("type"))
    text = fields.required_text("text")
    refuse_unsupported(fields, REFUSED_OF_BLOCKS)
    unknown(fields)
    return text


def _check_thinking(fields: Fields, unknown: Unknown) -> None:
    thinking = fields.object("thinking")
    if thinking is None:
        return
    kind, path = thinking.required_text("type"), thinking.path("type")
    if kind not in _THOUGHTS:
        raise not_one_of(kind, _THOUGHTS, path)
    if kind != "disabled":
        raise bad_request(f"Unsupported value: '{path}' may be 'disabled' here.", param=path, code="unsupported_value")
    unknown(thinking)


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
