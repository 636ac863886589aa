"""From a body of /v1/completions to a `CompletionRequest`: text or token ids to continue, one prompt or several."""

from typing import Final

from sidecar.protocol.fields import Fields, check_length, invalid_value, missing, unsupported, wrong_type
from sidecar.protocol.options import MOST_TOKENS, Neutral, read_options, refuse_unsupported
from sidecar.protocol.requests import CompletionRequest
from sidecar.settings import Api
from sidecar.wire.errors import bad_request

MAX_LOGPROBS: Final = 20
MAX_BEST_OF: Final = 20
# A prompt meets no chat template.
REFUSED: Final[dict[str, Neutral]] = {
    "add_generation_prompt": (True,),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "documents": ([],),
}

Prompt = str | tuple[int, ...]


def read_completion(fields: Fields, api: Api) -> CompletionRequest:
    """Raises ApiError 400."""
    prompts = _prompts(fields, api.max_prompts)
    echo = fields.flag("echo") or False
    # Without an answer there is only the prompt to give: its text and its log-probabilities.
    max_tokens = fields.integer("max_tokens", 0 if echo else 1, MOST_TOKENS)
    logprobs = fields.integer("logprobs", 0, MAX_LOGPROBS)
    if fields.text("suffix"):
        raise unsupported("suffix")
    refuse_unsupported(fields, REFUSED)
    best_of = fields.integer("best_of", 1, min(MAX_BEST_OF, api.max_choices))
    options = read_options(fields, api, (max_tokens, "max_tokens"), logprobs)
    if best_of is None:
        return CompletionRequest(options, prompts, options.choices, echo)
    if best_of < options.choices:
        raise invalid_value("best_of", f"it must not be less than 'n', which is {options.choices}.")
    if best_of > options.choices and options.stream:
        raise invalid_value("best_of", "which answers are the best is known at their end; it cannot be streamed.")
    return CompletionRequest(options, prompts, best_of, echo)


def _prompts(fields: Fields, most: int) -> tuple[Prompt, ...]:
    prompt = fields.value("prompt")
    if prompt is None:
        raise missing("prompt")
    if isinstance(prompt, str):
        return (prompt,)
    if not isinstance(prompt, list):
        raise wrong_type("prompt", "a string or an array", prompt)
    if prompt and _is_number(prompt[0]):
        return (token_ids(prompt, "prompt"),)
    check_length(prompt, "prompt", most)
    return tuple(read_prompt(one, f"prompt[{at}]") for at, one in enumerate(prompt))


def read_prompt(prompt: object, path: str) -> Prompt:
    """One of several prompts."""
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt, list):
        raise wrong_type(path, "a string or an array of token ids", prompt)
    check_length(prompt, path, MOST_TOKENS)
    return token_ids(prompt, path)


def token_ids(ids: list[object], path: str) -> tuple[int, ...]:
    """A prompt that is tokens already. Here 5.0 is no integer: a number with a point is no token id."""
    for at, token in enumerate(ids):
        if type(token) is not int:
            raise wrong_type(f"{path}[{at}]", "a token id", token)
        if not 0 <= token <= MOST_TOKENS:
            raise bad_request(
                f"Invalid '{path}[{at}]': there is no such token.", param=f"{path}[{at}]", code="invalid_value"
            )
    # Each was seen to be an integer.
    return tuple(token for token in ids if isinstance(token, int))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)
