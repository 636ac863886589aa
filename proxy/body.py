"""From a request body to a `Call` or a `Question`: the few fields that admission needs, and the body encoded anew.

Those are read strictly; everything else in the body is the sidecar's to judge. What is forwarded is never the client's
bytes, so nothing that two JSON readers could read differently (duplicate keys, odd whitespace, NaN) gets past here.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import msgspec
from msgspec.structs import replace

from proxy.exchange import Call, Question, TextEndpoint
from proxy.settings import Limits
from sidecar.wire.errors import ApiError, bad_request
from sidecar.wire.internal import Endpoint

# OpenAI's API reference, completions: `max_tokens` defaults to 16.
COMPLETIONS_DEFAULT_MAX_TOKENS: Final = 16
_MAX_INT: Final = 2**63 - 1
# By these a chat template may add words that it adds to no other chat.
_TEMPLATE_FIELDS: Final = frozenset(
    {
        "add_generation_prompt",
        "chat_template_kwargs",
        "continue_final_message",
        "documents",
        "functions",
        "reasoning",
        "reasoning_effort",
        "tools",
    }
)
_RESULT_ROLES: Final = ("tool", "function")
# Those of calls and their results, of the items of /v1/responses and of the blocks of /v1/messages.
_CALL_ITEMS: Final = ("function_call", "function_call_output")
_CALL_BLOCKS: Final = ("tool_use", "tool_result")


class _Input(msgspec.Struct):
    input: str | list[msgspec.Raw] = []


class _Item(msgspec.Struct):
    type: str | None = None


_decoder: Final = msgspec.json.Decoder(dict[str, object])
_raw_decoder: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_input_decoder: Final = msgspec.json.Decoder(_Input)
_kind_decoder: Final = msgspec.json.Decoder(_Item)


def reading(limits: Limits) -> Callable[[Endpoint, bytes], Call]:
    """`read_call` within the limits of the settings."""
    return partial(read_call, max_choices=limits.max_choices, max_prompts=limits.max_prompts)


def read_call(endpoint: Endpoint, body: bytes, *, max_choices: int, max_prompts: int) -> Call:
    """Raises ApiError 400 that names the field at fault."""
    fields = _decode(body)
    store, previous_id = _stored(fields) if endpoint is Endpoint.RESPONSES else (None, None)
    # All that is produced counts, also what is not given in the end.
    one_way, another = (_integer(fields, "n", highest=max_choices), _integer(fields, "best_of", highest=max_choices))
    choices = max(one_way or 1, another or 1)
    max_output, max_output_param = (0, "input") if endpoint is Endpoint.EMBEDDINGS else _max_output(endpoint, fields)
    messages = _messages(endpoint, fields, max_prompts)
    if endpoint is Endpoint.COMPLETIONS:
        choices *= messages
    none_given = _TEMPLATE_FIELDS.isdisjoint(fields) or all(fields.get(name) is None for name in _TEMPLATE_FIELDS)
    plain = none_given and not _has_calls(fields, endpoint)
    if endpoint is Endpoint.MESSAGES:
        # A last message of the assistant's is gone on with.
        plain = plain and not _prefilled(fields.get("messages"))
    return Call(
        endpoint=endpoint,
        model=_model(fields),
        # Embeddings are given whole; the sidecar judges the field.
        stream=endpoint is not Endpoint.EMBEDDINGS and _flag(fields, "stream"),
        choices=choices,
        max_output_tokens=max_output,
        max_output_param=max_output_param,
        messages=messages,
        body=_encode(fields),
        plain=plain,
        store=store,
        previous_id=previous_id,
    )


def continued(call: Call, earlier: Sequence[msgspec.Raw], most_bytes: int) -> Call:
    """A call of /v1/responses with the items of its conversation before its own. Raises ApiError 413.

    An `input` that holds no items stays as it is, for the sidecar to refuse.
    """
    own = _items(call.body)
    if not own:
        return call
    fields = _raw_decoder.decode(call.body)
    fields["input"] = msgspec.Raw(msgspec.json.encode([*earlier, *own]))
    body = msgspec.json.encode(fields)
    if len(body) > most_bytes:
        raise conversation_too_long()
    plain = call.plain and not any(_kind_decoder.decode(item).type in _CALL_ITEMS for item in earlier)
    return replace(call, body=body, plain=plain, messages=call.messages + len(earlier), earlier_items=len(earlier))


def own_items(call: Call) -> bytes:
    """The items of a call of /v1/responses without those before them, as a JSON array; a text is a message."""
    return msgspec.json.encode(_items(call.body)[call.earlier_items :])


def conversation_too_long() -> ApiError:
    return ApiError(
        413,
        "The conversation that 'previous_response_id' leads to is too long for one request.",
        code="request_too_large",
        param="previous_response_id",
    )


def read_question(endpoint: TextEndpoint, body: bytes, usable: Sequence[str]) -> Question:
    """`usable` are the models that the key may use: a body that names none is for the only one, but Anthropic's.

    Raises ApiError 400 that names the field at fault.
    """
    fields = _decode(body)
    if fields.get("model") is None and len(usable) == 1 and endpoint is not TextEndpoint.COUNT_TOKENS:
        fields["model"] = usable[0]
    return Question(endpoint, _model(fields), _encode(fields))


def _decode(body: bytes) -> dict[str, object]:
    try:
        return _decoder.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise bad_request("The request body must be one JSON object in UTF-8.") from exc


def _encode(fields: dict[str, object]) -> bytes:
    try:
        return msgspec.json.encode(fields)
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as exc:
        raise bad_request("The request body holds a value that JSON cannot carry safely.") from exc


def _stored(fields: dict[str, object]) -> tuple[bool | None, str | None]:
    """`store` and `previous_response_id`, taken out: the sidecar is told of a store by us alone."""
    store = _flag(fields, "store") if fields.get("store") is not None else None
    previous_id = fields.get("previous_response_id")
    if previous_id is not None and not isinstance(previous_id, str):
        raise _wrong_type("previous_response_id", "a string")
    for name in ("store", "previous_response_id"):
        fields.pop(name, None)
    return store, previous_id


def _items(body: bytes) -> list[msgspec.Raw]:
    """The items of a body's `input`; none if it is neither a text nor an array."""
    try:
        given = _input_decoder.decode(body).input
    except msgspec.ValidationError:
        return []
    if isinstance(given, str):
        message = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": given}]}
        return [msgspec.Raw(msgspec.json.encode(message))]
    return given


def _model(fields: dict[str, object]) -> str:
    model = fields.get("model")
    if model is None or model == "":
        raise bad_request("you must provide a model parameter", param="model", code="missing_required_parameter")
    if not isinstance(model, str):
        raise _wrong_type("model", "a string")
    return model


def _flag(fields: dict[str, object], name: str) -> bool:
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise _wrong_type(name, "a boolean")
    return bool(value)


def _integer(fields: dict[str, object], name: str, *, highest: int = _MAX_INT) -> int | None:
    """A count of at least 1, or None if it is absent or null. An integral 5.0 is a 5; true is not a 1."""
    value = fields.get(name)
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong_type(name, "an integer")
    if value < 1:
        raise bad_request(f"'{name}' must be at least 1.", param=name, code="integer_below_min_value")
    if value > highest:
        raise bad_request(f"'{name}' must be at most {highest}.", param=name, code="integer_above_max_value")
    return value


def _max_output(endpoint: Endpoint, fields: dict[str, object]) -> tuple[int | None, str]:
    """What the client asks for per choice, and the name of the field to blame if that is too much."""
    if endpoint is Endpoint.COMPLETIONS and _flag(fields, "echo") and fields.get("max_tokens") == 0:
        # Only the prompt's log-probabilities are wanted; a reservation is never empty.
        return 1, "max_tokens"
    if endpoint is Endpoint.RESPONSES:
        return _integer(fields, "max_output_tokens"), "max_output_tokens"
    old = _integer(fields, "max_tokens")
    if endpoint is Endpoint.COMPLETIONS:
        return old or COMPLETIONS_DEFAULT_MAX_TOKENS, "max_tokens"
    if endpoint is Endpoint.MESSAGES:
        return old, "max_tokens"
    new = _integer(fields, "max_completion_tokens")
    if old is not None and new is not None and old != new:
        raise bad_request(
            "'max_tokens' and 'max_completion_tokens' are both given and differ; give one.",
            param="max_tokens",
            code="invalid_value",
        )
    if old is None:
        return new, "max_completion_tokens"
    return old, "max_tokens"


def _messages(endpoint: Endpoint, fields: dict[str, object], max_prompts: int) -> int:
    """How many messages or prompts a body holds; instructions and a system text are one more."""
    given = fields.get(endpoint.prompt_field)
    if endpoint is Endpoint.COMPLETIONS:
        prompts = _prompts(given)
        if prompts > max_prompts:
            raise bad_request(
                f"'prompt' may hold {max_prompts} prompts.", param="prompt", code="array_above_max_length"
            )
        return prompts
    if endpoint is Endpoint.EMBEDDINGS:
        return _prompts(given)
    if endpoint is Endpoint.RESPONSES:
        return (len(given) if isinstance(given, list) else 1) + (fields.get("instructions") is not None)
    messages = len(given) if isinstance(given, list) else 0
    return messages + (endpoint is Endpoint.MESSAGES and fields.get("system") is not None)


def _prompts(given: object) -> int:
    """How many prompts are given: a list of token ids is one."""
    return len(given) if isinstance(given, list) and given and not isinstance(given[0], int) else 1


def _has_calls(fields: dict[str, object], endpoint: Endpoint) -> bool:
    """Whether tools were called earlier in a chat: how a template writes that, its bytes do not bound."""
    messages = _objects(fields.get(endpoint.prompt_field))
    if endpoint is Endpoint.RESPONSES:
        return any(item.get("type") in _CALL_ITEMS for item in messages)
    if endpoint is Endpoint.MESSAGES:
        blocks = (block for message in messages for block in _objects(message.get("content")))
        return any(block.get("type") in _CALL_BLOCKS for block in blocks)
    for message in messages:
        if message.get("role") in _RESULT_ROLES:
            return True
        if message.get("tool_calls") is not None or message.get("function_call") is not None:
            return True
    return False


def _objects(given: object) -> list[dict[str, object]]:
    return [one for one in given if isinstance(one, dict)] if isinstance(given, list) else []


def _prefilled(messages: object) -> bool:
    last = messages[-1] if isinstance(messages, list) and messages else None
    return isinstance(last, dict) and last.get("role") == "assistant"


def _wrong_type(name: str, wanted: str) -> Exception:
    return bad_request(f"'{name}' must be {wanted}.", param=name, code="invalid_type")
