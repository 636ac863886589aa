"""From a body of /v1/chat/completions to a `ChatRequest`: each field of OpenAI's read, passed over or refused by name.

What several endpoints share is in `options`, tools are in `tools`; here is what only chats have.
"""

from typing import Final

from sidecar.protocol.fields import Fields, as_text, check_length, not_one_of
from sidecar.protocol.messages import read_messages
from sidecar.protocol.metadata import read_metadata
from sidecar.protocol.options import MOST_TOKENS, Neutral, read_options, refuse_unsupported
from sidecar.protocol.rendering import read_rendering
from sidecar.protocol.requests import ChatRequest
from sidecar.protocol.tools import read_tool_use
from sidecar.settings import Api
from sidecar.wire.errors import bad_request

MAX_TOP_LOGPROBS: Final = 20

REFUSED: Final[dict[str, Neutral]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "web_search_options": (),
}
_VERBOSITIES: Final = ("low", "medium", "high")
MODALITIES: Final = ("text", "audio")


def read_chat(fields: Fields, api: Api) -> ChatRequest:
    """Raises ApiError 400."""
    messages = read_messages(fields, api)
    use = read_tool_use(fields)
    rendering = read_rendering(fields, api, messages, tools=() if use is None else use.tools)
    max_tokens = _max_tokens(fields)
    _pass_over(fields)
    logprobs = _logprobs(fields)
    _check_modalities(fields)
    refuse_unsupported(fields, REFUSED)
    return ChatRequest(read_options(fields, api, max_tokens, logprobs), messages, rendering, tool_use=use)


def _max_tokens(fields: Fields) -> tuple[int | None, str]:
    """What one choice may have at most, and the name of the field that says it."""
    new = fields.integer("max_completion_tokens", 1, MOST_TOKENS)
    old = fields.integer("max_tokens", 1, MOST_TOKENS)
    if new is not None and old is not None and new != old:
        raise bad_request(
            "'max_tokens' and 'max_completion_tokens' are both given and differ; give one.",
            param="max_tokens",
            code="invalid_value",
        )
    return (new, "max_completion_tokens") if old is None else (old, "max_tokens")


def _pass_over(fields: Fields) -> None:
    """Fields that have no effect on an answer from here, checked for their types only."""
    fields.choice("verbosity", _VERBOSITIES)
    fields.flag("store")
    for name in ("prediction", "moderation", "prompt_cache_options"):
        fields.object(name)
    read_metadata(fields)


def _logprobs(fields: Fields) -> int | None:
    """How many tokens' log-probabilities are told beside each one's own; None for no log-probabilities."""
    top = fields.integer("top_logprobs", 0, MAX_TOP_LOGPROBS)
    if fields.flag("logprobs"):
        return top or 0
    if top is not None:
        raise bad_request(
            "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled.",
            param="top_logprobs",
            code="invalid_value",
        )
    return None


def _check_modalities(fields: Fields) -> None:
    modalities = fields.array("modalities")
    if modalities is None:
        return
    check_length(modalities, "modalities", len(MODALITIES))
    for at, modality in enumerate(modalities):
        name = as_text(modality, f"modalities[{at}]")
        if name not in MODALITIES:
            raise not_one_of(name, MODALITIES, f"modalities[{at}]")
        if name != "text":
            raise bad_request("This model answers in text only.", param=f"modalities[{at}]", code="unsupported_value")
