"""What a completion body may hold: one prompt or several, text or token ids."""

import json
from typing import Any

import pytest

from sidecar.protocol.completions import read_completion
from sidecar.protocol.fields import decode_object
from sidecar.protocol.requests import CompletionRequest
from sidecar.settings import Api
from sidecar.wire.errors import ApiError


def read(fields: dict[str, Any], api: Api | None = None) -> CompletionRequest:
    body = json.dumps({"model": "m", "prompt": "Once", **fields}).encode()
    return read_completion(decode_object(body), api or Api())


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Once", ("Once",)),
        ("", ("",)),
        (["a", "b"], ("a", "b")),
        ([1, 2, 3], ((1, 2, 3),)),
        ([[1], [2, 3]], ((1,), (2, 3))),
        (["a", [5]], ("a", (5,))),
    ],
)
def test_a_prompt_is_text_or_tokens_one_or_several(prompt: object, expected: tuple[object, ...]) -> None:
    assert read({"prompt": prompt}).prompts == expected


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"prompt": None}, "prompt", "missing_required_parameter"),
        ({"prompt": {}}, "prompt", "invalid_type"),
        ({"prompt": []}, "prompt", "empty_array"),
        ({"prompt": [[]]}, "prompt[0]", "empty_array"),
        ({"prompt": [1, "a"]}, "prompt[1]", "invalid_type"),
        ({"prompt": ["a", 1]}, "prompt[1]", "invalid_type"),
        ({"prompt": [1.0]}, "prompt[0]", "invalid_type"),
        ({"prompt": [True]}, "prompt[0]", "invalid_type"),
        ({"prompt": [1, -1]}, "prompt[1]", "invalid_value"),
        ({"prompt": [[1], [None]]}, "prompt[1][0]", "invalid_type"),
        ({"prompt": ["a"] * 33}, "prompt", "array_above_max_length"),
        ({"echo": 1}, "echo", "invalid_type"),
        ({"max_tokens": 0}, "max_tokens", "integer_below_min_value"),
        ({"logprobs": 21}, "logprobs", "integer_above_max_value"),
        ({"logprobs": True}, "logprobs", "invalid_type"),
        ({"suffix": "end"}, "suffix", "unsupported_parameter"),
        ({"add_generation_prompt": False}, "add_generation_prompt", "unsupported_parameter"),
        ({"continue_final_message": True}, "continue_final_message", "unsupported_parameter"),
        ({"chat_template_kwargs": {"thinking": True}}, "chat_template_kwargs", "unsupported_parameter"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs", "invalid_type"),
        ({"documents": [{"text": "a"}]}, "documents", "unsupported_parameter"),
        ({"best_of": 2, "stream": True}, "best_of", "invalid_value"),
        ({"best_of": 9}, "best_of", "integer_above_max_value"),
        ({"best_of": 0}, "best_of", "integer_below_min_value"),
        ({"echo": True, "max_tokens": -1}, "max_tokens", "integer_below_min_value"),
        ({"logprobs": -1}, "logprobs", "integer_below_min_value"),
        ({"best_of": 1, "n": 2}, "best_of", "invalid_value"),
        ({"max_completion_tokens": 5}, "max_completion_tokens", "unknown_parameter"),
        ({"messages": []}, "messages", "unknown_parameter"),
    ],
)
def test_c1_a_refusal_names_the_field_and_says_what_kind(fields: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(ApiError) as caught:
        read(fields)
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, param, code)


def test_fields_that_ask_for_nothing_pass() -> None:
    request = read({"echo": False, "suffix": "", "best_of": 2, "n": 2, "logprobs": None, "logit_bias": {}})
    assert request.options.choices == 2
    assert request.options.ignored == ()


def test_the_best_of_several_and_the_prompt_before_them() -> None:
    request = read({"best_of": 4, "n": 2, "echo": True, "max_tokens": 0, "logprobs": 5})
    assert (request.best_of, request.options.choices, request.echo) == (4, 2, True)
    assert (request.options.max_tokens, request.options.logprobs) == (0, 5)
    assert read({"n": 3}).best_of == 3
