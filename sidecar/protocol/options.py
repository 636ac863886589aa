"""The fields that chats and completions share, and the two tables of fields that have no effect or are refused.

A field in a table is implemented, accepted without effect, or refused with its name; one that is in none is unknown.
"""

from collections.abc import Callable
from functools import partial
from typing import Final

from sidecar.protocol.fields import (
    Fields,
    as_integer,
    as_text,
    check_length,
    invalid_value,
    missing,
    too_long,
    unsupported,
    wrong_type,
)
from sidecar.protocol.requests import Options
from sidecar.protocol.structured import read_grammar
from sidecar.settings import Api
from sidecar.wire.errors import bad_request

INT64: Final = (1 << 63) - 1
MOST_TOKENS: Final = (1 << 31) - 1
MAX_STOPS: Final = 16  # OpenAI takes 4; lm-eval's HumanEval sends 6
MAX_STOP_CHARS: Final = 256
COMPLETION_DEFAULT_TOKENS: Final = 16  # OpenAI's, for /v1/completions

# Fields that are not supported, with the values that ask for nothing: those pass.
Neutral = tuple[object, ...]
REFUSED: Final[dict[str, Neutral]] = {
    "chat_template": (),
    "length_penalty": (1,),
    "priority": (0,),
    "prompt_logprobs": (),
    "use_beam_search": (False,),
}
# What each of them must be, where it is neutral or not: a wrong type is told as one.
_NUMBERS: Final = frozenset({"length_penalty", "priority"})
_OBJECTS: Final = frozenset({"chat_template_kwargs"})
# GUARDS, C1.
MAX_BIASES: Final = 300
MAX_STOP_TOKENS: Final = 64
MAX_ALLOWED_TOKENS: Final = 1024
MAX_BAD_WORDS: Final = 128
MAX_BAD_WORD_CHARS: Final = 256
MOST_BIAS: Final = 100
_MOST_PENALTY: Final = 2
# Transformers takes any; past this nothing is left of a distribution.
_MOST_REPETITION_PENALTY: Final = 10
_LEAST_REPETITION_PENALTY: Final = 0.01

# Texts without an effect, and how many characters OpenAI lets them have.
IGNORED_TEXTS: Final[dict[str, int | None]] = {
    "user": None,
    "safety_identifier": 64,
    "prompt_cache_key": None,
    "prompt_cache_retention": None,
}
_TIERS: Final = ("auto", "default", "flex", "scale", "priority", "fast")


def read_options(fields: Fields, api: Api, max_tokens: tuple[int | None, str], logprobs: int | None) -> Options:
    """Read what both endpoints have. The caller has read its own fields by now: what is left unread is unknown."""
    model = read_model(fields)
    stream = fields.flag("stream") or False
    include_usage, continuous_usage, ignored = _stream_options(fields, api, stream=stream)
    service_tier = fields.choice("service_tier", _TIERS)
    for name, most in IGNORED_TEXTS.items():
        _check_ignored_text(fields, name, most)
    choices = fields.integer("n", 1, api.max_choices)
    temperature = fields.number("temperature", 0, 2)
    top_p = fields.number("top_p", 0, 1)
    top_k = fields.integer("top_k", -1, MOST_TOKENS)
    min_p = fields.number("min_p", 0, 1)
    presence = fields.number("presence_penalty", -_MOST_PENALTY, _MOST_PENALTY)
    frequency = fields.number("frequency_penalty", -_MOST_PENALTY, _MOST_PENALTY)
    repetition = fields.number("repetition_penalty", _LEAST_REPETITION_PENALTY, _MOST_REPETITION_PENALTY)
    min_tokens = fields.integer("min_tokens", 0, MOST_TOKENS)
    seed = fields.integer("seed", -INT64 - 1, INT64)
    stop = _stop(fields)
    stop_shown = fields.flag("include_stop_str_in_output") or False
    refuse_unsupported(fields, REFUSED)
    grammar, ignored_of_it = read_grammar(fields, partial(unknown_fields, api=api))
    options = Options(
        model=model,
        choices=1 if choices is None else choices,
        max_tokens=max_tokens[0],
        max_tokens_param=max_tokens[1],
        truncate_prompt_tokens=_truncate_prompt_tokens(fields),
        temperature=1.0 if temperature is None else temperature,
        top_p=1.0 if top_p is None else top_p,
        top_k=max(0, top_k or 0),
        min_p=min_p or 0.0,
        presence_penalty=presence or 0.0,
        frequency_penalty=frequency or 0.0,
        repetition_penalty=1.0 if repetition is None else repetition,
        logit_bias=_logit_bias(fields),
        min_tokens=min_tokens or 0,
        ignore_eos=fields.flag("ignore_eos") or False,
        stop_token_ids=_stop_token_ids(fields),
        allowed_token_ids=_allowed_token_ids(fields),
        bad_words=_bad_words(fields),
        grammar=grammar,
        logprobs=logprobs,
        tokens_by_id=fields.flag("return_tokens_as_token_ids") or False,
        tokens_told=fields.flag("return_token_ids") or False,
        seed=seed,
        stop=stop,
        stop_shown=stop_shown,
        specials_shown=fields.flag("skip_special_tokens") is False,
        stream=stream,
        include_usage=include_usage,
        continuous_usage=continuous_usage,
        echo_service_tier=service_tier is not None,
        ignored=tuple(ignored + ignored_of_it + unknown_fields(fields, api)),
    )
    check_grammar(options)
    return options


def check_grammar(options: Options) -> None:
    """Raises ApiError 400 for what may leave a grammar nothing to go on with."""
    if options.grammar is None:
        return
    beside = {
        "min_tokens": options.min_tokens,
        "allowed_token_ids": options.allowed_token_ids,
        "bad_words": options.bad_words,
    }
    for name, asked in beside.items():
        if asked:
            raise invalid_value(name, f"it cannot be combined with '{options.grammar.param}'.")


def read_model(fields: Fields) -> str:
    """The name of the model. Raises ApiError 400 without one, in OpenAI's words."""
    model = fields.text("model")
    if not model:
        raise bad_request("you must provide a model parameter", param="model", code=missing("model").code)
    return model


def _truncate_prompt_tokens(fields: Fields) -> int | None:
    count = fields.integer("truncate_prompt_tokens", -1, MOST_TOKENS)
    if count == 0:
        raise invalid_value("truncate_prompt_tokens", "it must be 1 or more, or -1 for what the model can take.")
    return count


def _check_ignored_text(fields: Fields, name: str, most: int | None) -> None:
    text = fields.text(name)
    if text is not None and most is not None and len(text) > most:
        raise too_long(name, most)


def refuse_unsupported(fields: Fields, table: dict[str, Neutral]) -> None:
    """Raises ApiError 400 for a field of the table that asks for something."""
    for name, neutral in table.items():
        value = fields.value(name)
        if value is None:
            continue
        _check_kind(name, value, fields.path(name))
        if not any(type_of(value) is type_of(allowed) and value == allowed for allowed in neutral):
            raise unsupported(fields.path(name))


def type_of(value: object) -> type:
    """JSON has one kind of number."""
    return float if isinstance(value, int) and not isinstance(value, bool) else type(value)


def _check_kind(name: str, value: object, path: str) -> None:
    kinds: list[tuple[frozenset[str], Callable[[object], bool], str]] = [
        (_NUMBERS, lambda found: type_of(found) is float, "a decimal"),
        (_OBJECTS, lambda found: isinstance(found, dict), "an object"),
    ]
    for names, fits, expected in kinds:
        if name in names and not fits(value):
            raise wrong_type(path, expected, value)


def _stream_options(fields: Fields, api: Api, *, stream: bool) -> tuple[bool, bool, list[str]]:
    options = fields.object("stream_options")
    if options is None:
        return False, False, []
    if not stream:
        raise bad_request(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
            param="stream_options",
            code="invalid_value",
        )
    include = options.flag("include_usage") or False
    continuous = options.flag("continuous_usage_stats") or False
    options.flag("include_obfuscation")
    return include, include and continuous, unknown_fields(options, api)


def unknown_fields(fields: Fields, api: Api) -> list[str]:
    """The fields that nobody read, for the header. Raises ApiError 400 where the settings refuse them."""
    unknown = fields.unread()
    if unknown and api.unknown_fields == "refuse":
        name = unknown[0][:MAX_STOP_CHARS]
        raise bad_request(f"Unknown parameter: '{name}'.", param=name, code="unknown_parameter")
    return unknown


def _logit_bias(fields: Fields) -> dict[int, float]:
    """Token ids, as decimal strings, to what is added to their logits; whether the model has them is the plan's."""
    biases = fields.object("logit_bias")
    if biases is None:
        return {}
    names = biases.names()
    if len(names) > MAX_BIASES:
        raise invalid_value("logit_bias", f"at most {MAX_BIASES} tokens are allowed.")
    found: dict[int, float] = {}
    for name in names:
        if not (name.isascii() and name.isdigit() and len(name) <= 10):
            raise invalid_value("logit_bias", f"'{name[:64]}' is no token id.")
        bias = biases.number(name, -MOST_BIAS, MOST_BIAS)
        if bias is None:
            raise wrong_type(biases.path(name), "a decimal", None)
        found[int(name)] = bias
    return found


def _stop_token_ids(fields: Fields) -> tuple[int, ...]:
    tokens = fields.array("stop_token_ids")
    return _tokens(tokens, "stop_token_ids", MAX_STOP_TOKENS) if tokens else ()


def _allowed_token_ids(fields: Fields) -> tuple[int, ...]:
    tokens = fields.array("allowed_token_ids")
    return () if tokens is None else _tokens(tokens, "allowed_token_ids", MAX_ALLOWED_TOKENS)


def _tokens(tokens: list[object], path: str, most: int) -> tuple[int, ...]:
    """Ids of tokens; whether the model has them is the plan's."""
    check_length(tokens, path, most)
    return tuple(as_integer(token, f"{path}[{at}]", 0, MOST_TOKENS) for at, token in enumerate(tokens))


def _bad_words(fields: Fields) -> tuple[str, ...]:
    found = fields.array("bad_words")
    if not found:
        return ()
    check_length(found, "bad_words", MAX_BAD_WORDS)
    words = tuple(as_text(word, f"bad_words[{at}]") for at, word in enumerate(found))
    for at, word in enumerate(words):
        if not word.strip():
            raise invalid_value(f"bad_words[{at}]", "white space alone is no word.")
        if len(word) > MAX_BAD_WORD_CHARS:
            raise too_long(f"bad_words[{at}]", MAX_BAD_WORD_CHARS)
    return words


def _stop(fields: Fields) -> tuple[str, ...]:
    value = fields.value("stop")
    if value is None:
        return ()
    if isinstance(value, str):
        stops = [value]
    elif isinstance(value, list):
        if value:
            check_length(value, "stop", MAX_STOPS)
        stops = [as_text(stop, f"stop[{at}]") for at, stop in enumerate(value)]
    else:
        raise wrong_type("stop", "a string or an array of strings", value)
    for stop in stops:
        if len(stop) > MAX_STOP_CHARS:
            raise bad_request(
                f"Invalid 'stop': a stop sequence is longer than {MAX_STOP_CHARS} characters.",
                param="stop",
                code="string_above_max_length",
            )
    return tuple(stop for stop in stops if stop)
