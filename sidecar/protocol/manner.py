"""How the answers to a request are to be read: by what it asks for, its prompt, and the model's ways. Pure."""

from typing import Final

from sidecar.protocol.requests import ChatRequest, Demand, GenerationRequest, ToolUse
from sidecar.protocol.speech.dialect import Dialect, Speech
from sidecar.protocol.speech.thoughts import ends_open, is_left_open
from sidecar.wire.errors import bad_request

# How many tokens a template's last words have at most: those that begin the answer.
LAST_WORDS: Final = 16


def speech_of(request: GenerationRequest, prompt_end: str, dialect: Dialect) -> Speech | None:
    """None where answers are words and nothing else. `prompt_end`: the text of the prompt's last tokens.

    Raises ApiError 400 for calls that must come where none are read, and thoughts that are wanted where there are none.
    """
    if not isinstance(request, ChatRequest):
        return None
    check_thoughts(dialect, wanted=request.thoughts_wanted)
    use = request.tool_use
    if use is not None and dialect.tools == "none":
        _check_free(use)
        use = None
    if not dialect.thinks and use is None:
        return None
    return Speech(
        thinks=dialect.thinks,
        inside=dialect.thinks and _begins_inside(request, prompt_end),
        tools=dialect.tools,
        offered=None if use is None else {tool.name: tool.parameters or {} for tool in use.callable},
        one_call=use is not None and not use.parallel,
        calls_reason="tool_calls" if use is None else _reason(use),
        legacy=use is not None and use.legacy,
    )


def check_thoughts(dialect: Dialect, *, wanted: bool) -> None:
    """Raises ApiError 400 where thoughts are wanted of a model that has none."""
    if wanted and not dialect.thinks:
        raise bad_request(
            "Unsupported value: this model does not reason, so 'thinking.type' may be 'disabled' only.",
            param="thinking.type",
            code="unsupported_value",
        )


def _begins_inside(request: ChatRequest, prompt_end: str) -> bool:
    if request.rendering.continue_final_message:
        return is_left_open(request.messages[-1].content)
    return ends_open(prompt_end)


def _check_free(use: ToolUse) -> None:
    if use.demand is not Demand.NONE:
        raise bad_request(
            "Unsupported value: calls of this model are not read (setting api.tool_format), so none can be asked for.",
            param="function_call" if use.legacy else "tool_choice",
            code="unsupported_value",
        )


def _reason(use: ToolUse) -> str:
    """The finish reason of an answer with calls. Where one was asked for by name, it is no news (OpenAI)."""
    if use.demand is Demand.THIS:
        return "stop"
    return "function_call" if use.legacy else "tool_calls"
