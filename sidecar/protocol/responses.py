"""From a body of /v1/responses to a `ResponsesRequest`: a chat in another spelling, and what its answer tells back.

Stateless and text only: what would need a store is refused by name. The items are read in `response_input`, tools in
`tools`; what it shares with the other endpoints is in `options`.
"""

from functools import partial
from typing import Final

import msgspec

from sidecar.protocol.fields import Fields, as_text, not_one_of, unsupported
from sidecar.protocol.metadata import read_metadata
from sidecar.protocol.options import (
    MOST_TOKENS,
    Neutral,
    check_grammar,
    read_options,
    refuse_unsupported,
    unknown_fields,
)
from sidecar.protocol.rendering import read_rendering
from sidecar.protocol.requests import Asked, ResponsesRequest, TextSettings
from sidecar.protocol.response_input import read_input
from sidecar.protocol.structured import read_format
from sidecar.protocol.tools import read_flat_tool_use, told_choice
from sidecar.settings import Api
from sidecar.tokenizer.messages import Message
from sidecar.wire.errors import bad_request
from sidecar.wire.grammars import Grammar

MAX_TOP_LOGPROBS: Final = 20
LOGPROBS: Final = "message.output_text.logprobs"
# OpenAI's API reference, `include`. All but the first tell of items that no answer from here has.
INCLUDABLE: Final = (
    LOGPROBS,
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
)
REFUSED: Final[dict[str, Neutral]] = {
    "background": (False,),
    "conversation": (),
    "n": (1,),
    "previous_response_id": (),
    "prompt": (),
    "store": (False,),
    "truncation": ("disabled",),
    # Chats' names for what has another one here.
    "max_completion_tokens": (),
    "max_tokens": (),
    "messages": (),
    "reasoning_effort": (),
    "response_format": (),
    # A response has no place for them.
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
}
_VERBOSITIES: Final = ("low", "medium", "high")
_SUMMARIES: Final = ("auto", "concise", "detailed")


def read_response(fields: Fields, api: Api) -> ResponsesRequest:
    """Raises ApiError 400 that names the place, like `input[2].content`."""
    refuse_unsupported(fields, REFUSED)
    instructions = fields.text("instructions")
    messages = read_input(fields, api)
    tools, use = read_flat_tool_use(fields)
    if instructions is not None:
        messages = (Message("system", instructions), *messages)
    reasoning = fields.object("reasoning") or Fields({}, "reasoning")
    rendering = read_rendering(fields, api, messages, reasoning, () if use is None else use.tools)
    summary = reasoning.choice("summary", _SUMMARIES)
    text, grammar, unknown_text = _text(fields, api)
    top_logprobs = fields.integer("top_logprobs", 0, MAX_TOP_LOGPROBS) or 0
    logprobs = _logprobs(fields, top_logprobs)
    max_tokens = fields.integer("max_output_tokens", 1, MOST_TOKENS)
    parallel = fields.flag("parallel_tool_calls")
    max_tool_calls = fields.integer("max_tool_calls", 1, MOST_TOKENS)
    metadata = read_metadata(fields)
    options = read_options(fields, api, (max_tokens, "max_output_tokens"), logprobs)
    if options.continuous_usage:
        raise unsupported("stream_options.continuous_usage_stats")
    nested = (*unknown_text, *unknown_fields(reasoning, api))
    asked = Asked(
        instructions=instructions,
        max_output_tokens=max_tokens,
        max_tool_calls=max_tool_calls,
        metadata=metadata,
        parallel_tool_calls=True if parallel is None else parallel,
        prompt_cache_key=fields.text("prompt_cache_key"),
        reasoning_effort=rendering.reasoning_effort,
        reasoning_summary=summary,
        safety_identifier=fields.text("safety_identifier"),
        temperature=options.temperature,
        tool_choice=told_choice(fields),
        tools=tools,
        top_logprobs=top_logprobs,
        top_p=options.top_p,
        user=fields.text("user"),
        text=text,
    )
    options = msgspec.structs.replace(options, grammar=grammar or options.grammar, ignored=(*options.ignored, *nested))
    check_grammar(options)
    return ResponsesRequest(options, messages, rendering, tool_use=use, asked=asked)


def _text(fields: Fields, api: Api) -> tuple[TextSettings, Grammar | None, list[str]]:
    """What is told back of it, what form the text is to have, and what of it is unknown."""
    text = fields.object("text")
    if text is None:
        return TextSettings("medium", {"type": "text"}), None, []
    verbosity = text.choice("verbosity", _VERBOSITIES) or "medium"
    form = text.object("format")
    if form is None:
        return TextSettings(verbosity, {"type": "text"}), None, unknown_fields(text, api)
    unknown: list[str] = []
    grammar = read_format(form, "", partial(unknown_fields, api=api), unknown)
    told: dict[str, object] = {"type": form.value("type")}
    if told["type"] == "json_schema":
        told |= {name: form.value(name) for name in ("name", "description", "schema")}
        told["strict"] = form.value("strict") or False
    return TextSettings(verbosity, told), grammar, unknown + unknown_fields(text, api)


def _logprobs(fields: Fields, top_logprobs: int) -> int | None:
    """How many tokens' log-probabilities are told beside each one's own; None for no log-probabilities."""
    included = [as_text(name, f"include[{at}]") for at, name in enumerate(fields.array("include") or [])]
    for at, name in enumerate(included):
        if name not in INCLUDABLE:
            raise not_one_of(name, INCLUDABLE, f"include[{at}]")
    if LOGPROBS in included:
        return top_logprobs
    if top_logprobs:
        raise bad_request(
            f"The 'top_logprobs' parameter is only allowed when 'include' has '{LOGPROBS}'.",
            param="top_logprobs",
            code="invalid_value",
        )
    return None
