"""From bodies of /tokenize and /detokenize to tokens and back, in vLLM's shapes. No HTTP, no model.

Nothing runs here, so a prompt may be longer than the context window: a client may ask by how much. Tokens are those
that the same prompt or messages have on the endpoints that run them.
"""

from typing import Final

import msgspec

from sidecar.protocol import completions
from sidecar.protocol.completions import token_ids
from sidecar.protocol.fields import Fields, check_length, invalid_value, missing
from sidecar.protocol.messages import read_messages
from sidecar.protocol.options import Neutral, refuse_unsupported, unknown_fields
from sidecar.protocol.plan import (
    MOST_BYTES_PER_TOKEN,
    Encoder,
    Limits,
    check_bytes,
    check_chat_bytes,
    check_tokens,
)
from sidecar.protocol.rendering import read_rendering
from sidecar.protocol.tools import read_tools
from sidecar.settings import Api
from sidecar.tokenizer.messages import Message, Rendering
from sidecar.wire.errors import bad_request

REFUSED: Final[dict[str, Neutral]] = {
    "chat_template": (),
    "media_io_kwargs": ({},),
    "mm_processor_kwargs": ({},),
}
# What only messages have, and what they have from their template.
REFUSED_WITH_PROMPT: Final = completions.REFUSED
REFUSED_WITH_MESSAGES: Final[dict[str, Neutral]] = {"add_special_tokens": (False,)}


class PromptRequest(msgspec.Struct, frozen=True):
    """A body of /tokenize with a text. `model` of None: none was named."""

    model: str | None
    prompt: str
    add_special_tokens: bool
    return_token_strs: bool
    ignored: tuple[str, ...]


class MessagesRequest(msgspec.Struct, frozen=True):
    """A body of /tokenize with a chat."""

    model: str | None
    messages: tuple[Message, ...]
    rendering: Rendering
    return_token_strs: bool
    ignored: tuple[str, ...]


class DetokenizeRequest(msgspec.Struct, frozen=True):
    """A body of /detokenize."""

    model: str | None
    tokens: tuple[int, ...]
    ignored: tuple[str, ...]


TokenizationRequest = PromptRequest | MessagesRequest | DetokenizeRequest


class Tokenized(msgspec.Struct, frozen=True):
    """vLLM's answer of /tokenize; `token_strs` is null unless it was asked for."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(msgspec.Struct, frozen=True):
    """vLLM's answer of /detokenize."""

    prompt: str


def read_tokenize(fields: Fields, api: Api) -> PromptRequest | MessagesRequest:
    """Raises ApiError 400."""
    model = fields.text("model")
    prompt, messages = fields.text("prompt"), fields.array("messages")
    strs = fields.flag("return_token_strs") or False
    if prompt is not None and messages is not None:
        raise invalid_value("prompt", "'messages' are given, too; give one.")
    if prompt is None and messages is None:
        raise bad_request(
            "Missing required parameter: 'prompt' or 'messages'.", param="prompt", code=missing("prompt").code
        )
    refuse_unsupported(fields, REFUSED)
    if prompt is not None:
        add_special_tokens = fields.flag("add_special_tokens")
        refuse_unsupported(fields, REFUSED_WITH_PROMPT)
        ignored = tuple(unknown_fields(fields, api))
        return PromptRequest(model, prompt, add_special_tokens is not False, strs, ignored)
    refuse_unsupported(fields, REFUSED_WITH_MESSAGES)
    read = read_messages(fields, api)
    rendering = read_rendering(fields, api, read, tools=read_tools(fields))
    return MessagesRequest(model, read, rendering, strs, tuple(unknown_fields(fields, api)))


def read_detokenize(fields: Fields, api: Api) -> DetokenizeRequest:
    """Raises ApiError 400."""
    model = fields.text("model")
    tokens = fields.array("tokens")
    if tokens is None:
        raise missing("tokens")
    return DetokenizeRequest(model, token_ids(tokens, "tokens"), tuple(unknown_fields(fields, api)))


def tokenization(request: TokenizationRequest, encoder: Encoder, limits: Limits) -> Tokenized | Detokenized:
    """The answer. Takes long: call it in a thread.

    Raises ApiError 400 for what is too long, for a token that the model does not have, and for messages that its
    template refuses.
    """
    if isinstance(request, DetokenizeRequest):
        return _detokenized(request, encoder, limits)
    if isinstance(request, PromptRequest):
        check_bytes(len(request.prompt.encode()), "prompt", limits)
        ids = encoder.encode_text(request.prompt, add_special_tokens=request.add_special_tokens)
    else:
        check_chat_bytes(request.messages, request.rendering, limits)
        ids = encoder.encode_chat(request.messages, request.rendering)
    return Tokenized(len(ids), limits.max_context, ids, encoder.token_strs(ids) if request.return_token_strs else None)


def _detokenized(request: DetokenizeRequest, encoder: Encoder, limits: Limits) -> Detokenized:
    if request.tokens:
        # As many as the longest text may have.
        check_length(request.tokens, "tokens", MOST_BYTES_PER_TOKEN * limits.max_context)
    check_tokens(request.tokens, "tokens", limits)
    return Detokenized(encoder.decode(list(request.tokens)))
