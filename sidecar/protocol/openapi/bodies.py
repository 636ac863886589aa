"""The bodies of the public endpoints as JSON Schema: what `reading` cannot read off their readers, and the samples.

A new field of one value needs nothing here; an array, an object or a field that is refused needs a row. Bounds are the
readers' own constants. Rules between fields are in no schema: docs/api.md has them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from sidecar.protocol import anthropic, chat, completions, embeddings, metadata, options, responses
from sidecar.protocol import tokenization as tokens
from sidecar.protocol.fields import Fields
from sidecar.protocol.openapi.conversations import (
    anthropic_messages,
    messages_and_rendering,
    refused,
    response_input,
)
from sidecar.protocol.openapi.forms import response_format, structured_outputs, text_format
from sidecar.protocol.openapi.reading import Schema, array, describe, text
from sidecar.protocol.openapi.tools import called, flat, of_anthropic, offered
from sidecar.protocol.options import MOST_TOKENS, Neutral
from sidecar.settings import Api
from sidecar.wire.anthropic import COUNT_TOKENS
from sidecar.wire.internal import Endpoint

EMBEDDINGS: Final = Endpoint.EMBEDDINGS.value
TOKENIZE: Final = "/tokenize"
DETOKENIZE: Final = "/detokenize"

_MODEL: Final = text(least=1)
_TOKEN: Final[Schema] = {"type": "integer", "minimum": 0, "maximum": MOST_TOKENS}
_PROMPT: Final[Schema] = {"anyOf": [text(), array(_TOKEN, least=1)]}
_INPUT: Final[Schema] = {"anyOf": [text(least=1), array(_TOKEN, least=1)]}
_CHAT: Final[dict[str, object]] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
_TEXT: Final[dict[str, object]] = {"model": "m", "prompt": "x"}
_NAMED: Final[dict[str, object]] = {"name": "n", "schema": {}}
_FORMAT: Final[dict[str, object]] = {"response_format": {"type": "json_schema", "json_schema": _NAMED}}
_INPUT_TEXT: Final[dict[str, object]] = {"model": "m", "input": "x"}
_TEXT_FORMAT: Final[dict[str, object]] = {"reasoning": {}, "text": {"format": {"type": "json_schema", **_NAMED}}}
_OBJECT: Final[dict[str, object]] = {"response_format": {"type": "json_object"}}
_STREAMED: Final[dict[str, object]] = {"stream": True, "stream_options": {}}

_ANTHROPIC: Final[dict[str, object]] = {
    "thinking": {"type": "enabled", "budget_tokens": anthropic.LEAST_BUDGET},
    "tools": [{"name": "n", "input_schema": {}}],
    "tool_choice": {"type": "tool", "name": "n"},
    "output_config": {"format": {"type": "json_schema", "schema": {}}},
}


@dataclass(frozen=True, slots=True)
class Body:
    """One endpoint's: its reader, samples of bodies, the tables of what it refuses, and what else is to be said."""

    read: Callable[[Fields, Api], object]
    samples: tuple[dict[str, object], ...]
    refused: tuple[Mapping[str, Neutral], ...]
    more: dict[str, Schema]


def bodies(api: Api) -> dict[str, Schema]:
    """Each body's schema by its path. Raises UndescribedError."""
    return {
        path: describe(body.read, body.samples, refused(*body.refused) | body.more, api)
        for path, body in _bodies(api).items()
    }


def _bodies(api: Api) -> dict[str, Body]:
    conversation = messages_and_rendering(api)
    common = {"model": _MODEL, **anthropic_messages(api), **of_anthropic(api)}
    return {
        Endpoint.CHAT.value: Body(
            chat.read_chat,
            (_CHAT, {**_CHAT, **_STREAMED, **_FORMAT}, {**_CHAT, **_OBJECT, "structured_outputs": {}}),
            (chat.REFUSED, options.REFUSED),
            _shared() | conversation | _chat(),
        ),
        Endpoint.COMPLETIONS.value: Body(
            completions.read_completion,
            (_TEXT, {**_TEXT, **_OBJECT, "structured_outputs": {}}, {**_TEXT, "echo": True, **_STREAMED, **_FORMAT}),
            (completions.REFUSED, options.REFUSED),
            _shared() | response_format() | {"prompt": _one_or_many(_PROMPT, api.max_prompts), "suffix": text(0)},
        ),
        Endpoint.RESPONSES.value: Body(
            responses.read_response,
            (_INPUT_TEXT, {**_INPUT_TEXT, **_STREAMED, **_TEXT_FORMAT}, {**_INPUT_TEXT, "structured_outputs": {}}),
            (responses.REFUSED, options.REFUSED),
            _shared() | _metadata() | response_input(api) | text_format() | flat(),
        ),
        Endpoint.MESSAGES.value: Body(
            anthropic.read_message,
            ({**_CHAT, "max_tokens": 1}, {**_CHAT, **_ANTHROPIC, "max_tokens": MOST_TOKENS, "metadata": {}}),
            (),
            common
            | {
                "stop_sequences": array(text(options.MAX_STOP_CHARS, 1), anthropic.MAX_STOP_SEQUENCES),
                "metadata.user_id": text(anthropic.MAX_USER_ID_CHARS),
            },
        ),
        COUNT_TOKENS: Body(
            anthropic.read_count,
            (_CHAT, {**_CHAT, **_ANTHROPIC}),
            (),
            common,
        ),
        EMBEDDINGS: Body(
            embeddings.read_embedding,
            (_INPUT_TEXT,),
            (),
            {"model": _MODEL, "input": _one_or_many(_INPUT, embeddings.MAX_INPUTS)},
        ),
        TOKENIZE: Body(
            tokens.read_tokenize,
            ({"prompt": "x"}, {"messages": _CHAT["messages"]}),
            (tokens.REFUSED,),
            conversation | offered() | {"model": _MODEL, "prompt": {"description": "Either this or `messages`."}},
        ),
        DETOKENIZE: Body(tokens.read_detokenize, ({"tokens": []},), (), {"model": _MODEL, "tokens": array(_TOKEN)}),
    }


def _shared() -> dict[str, Schema]:
    """Of chats, completions and responses."""
    stop = text(options.MAX_STOP_CHARS)
    limited = {name: {"maxLength": most} for name, most in options.IGNORED_TEXTS.items() if most is not None}
    return {
        **limited,
        **structured_outputs(),
        "model": _MODEL,
        "truncate_prompt_tokens": {"not": {"const": 0}},
        "logit_bias": {
            "maxProperties": options.MAX_BIASES,
            "propertyNames": {"pattern": "^[0-9]{1,10}$"},
            "additionalProperties": {
                "type": "number",
                "minimum": -options.MOST_BIAS,
                "maximum": options.MOST_BIAS,
            },
        },
        "stop": {"anyOf": [stop, array(stop, options.MAX_STOPS, 1)]},
        "stop_token_ids": array(_TOKEN, options.MAX_STOP_TOKENS),
        "allowed_token_ids": array(_TOKEN, options.MAX_ALLOWED_TOKENS, 1),
        "bad_words": array(
            {**text(options.MAX_BAD_WORD_CHARS), "pattern": r"\S"},
            options.MAX_BAD_WORDS,
        ),
    }


def _metadata() -> dict[str, Schema]:
    return {
        "metadata": {
            "maxProperties": metadata.MAX_METADATA,
            "propertyNames": {"maxLength": metadata.MAX_METADATA_KEY_CHARS},
            "additionalProperties": text(metadata.MAX_METADATA_VALUE_CHARS),
        }
    }


def _chat() -> dict[str, Schema]:
    return {
        **_metadata(),
        **called(),
        "modalities": array({"enum": ["text"]}, len(chat.MODALITIES), 1),
        **response_format(),
    }


def _one_or_many(prompt: Schema, most: int) -> Schema:
    return {"anyOf": [*prompt["anyOf"], array(prompt, most, 1)]}
