"""From bodies of /v1/embeddings to sequences, and from vectors to answers."""

import base64
import json
from typing import Any

import numpy as np
import pytest

from sidecar.protocol.embeddings import (
    MAX_INPUTS,
    MAX_TOKENS,
    EmbeddingPlan,
    embedding_answer,
    make_embedding_plan,
    read_embedding,
)
from sidecar.protocol.fields import Fields
from sidecar.protocol.plan import Limits
from sidecar.protocol.ticket import Ticket
from sidecar.settings import Api
from sidecar.wire.errors import ApiError
from tests.fakes.engine import LetterTokenizer

LIMITS = Limits("e", 20, 1000, ())
SIZE = 4
VECTOR = np.array([0.1, 0.2, 0.3, 0.9], dtype="<f4")


def plan(ticket: Ticket | None = None, limits: Limits = LIMITS, **told: Any) -> EmbeddingPlan:
    request = read_embedding(Fields({"model": "e", "input": "abc", **told}), Api())
    return make_embedding_plan(request, ticket or Ticket("req"), limits, LetterTokenizer(), SIZE)


def refused(ticket: Ticket | None = None, limits: Limits = LIMITS, **told: Any) -> tuple[str | None, str | None]:
    """The field at fault and the code."""
    with pytest.raises(ApiError) as caught:
        plan(ticket, limits, **told)
    assert caught.value.status == 400
    return caught.value.param, caught.value.code


@pytest.mark.parametrize(
    ("value", "prompts"),
    [
        ("ab", [[97, 98]]),
        (["ab", "c"], [[97, 98], [99]]),
        ([5, 6], [[5, 6]]),
        ([[5, 6], [7]], [[5, 6], [7]]),
        (["a", [7]], [[97], [7]]),
    ],
)
def test_every_shape_of_input_becomes_a_sequence_each(value: object, prompts: list[list[int]]) -> None:
    made = plan(input=value)
    assert [submit.prompt_ids for submit in made.submits] == prompts
    assert [submit.index for submit in made.submits] == list(range(len(prompts)))
    assert {submit.max_new_tokens for submit in made.submits} == {0}
    assert made.prompt_tokens == sum(map(len, prompts))


def test_c1_as_many_inputs_as_openai_takes_and_no_more() -> None:
    assert len(plan(input=["a"] * MAX_INPUTS).submits) == MAX_INPUTS
    assert refused(input=["a"] * (MAX_INPUTS + 1)) == ("input", "array_above_max_length")
    assert refused(input=[[5]] * (MAX_INPUTS + 1)) == ("input", "array_above_max_length")


def test_the_tokens_of_one_input_are_not_counted_as_inputs() -> None:
    wide = Limits("e", MAX_INPUTS + 1, 1000, ())
    assert plan(limits=wide, input=[5] * (MAX_INPUTS + 1)).prompt_tokens == MAX_INPUTS + 1


@pytest.mark.parametrize(
    ("told", "param", "code"),
    [
        ({"model": None}, "model", "missing_required_parameter"),
        ({"input": None}, "input", "missing_required_parameter"),
        ({"input": 5}, "input", "invalid_type"),
        ({"input": ""}, "input", "invalid_value"),
        ({"input": []}, "input", "empty_array"),
        ({"input": [[]]}, "input[0]", "empty_array"),
        ({"input": ["a", ""]}, "input[1]", "invalid_value"),
        ({"input": [True]}, "input[0]", "invalid_type"),
        ({"input": [5, "a"]}, "input[1]", "invalid_type"),
        ({"input": [1000]}, "input", "invalid_value"),
        ({"input": ["a", [1000]]}, "input[1]", "invalid_value"),
        ({"input": "a" * 21}, "input", "context_length_exceeded"),
        ({"input": ["a", "a" * 21]}, "input[1]", "context_length_exceeded"),
        ({"dimensions": SIZE + 1}, "dimensions", "invalid_value"),
        ({"dimensions": 0}, "dimensions", "integer_below_min_value"),
        ({"encoding_format": "hex"}, "encoding_format", "invalid_value"),
    ],
)
def test_what_cannot_be_embedded_is_refused_by_name(told: dict[str, Any], param: str, code: str) -> None:
    assert refused(**told) == (param, code)


def test_c2_a_text_far_too_long_is_refused_before_it_is_tokenised() -> None:
    tokenizer = LetterTokenizer()
    request = read_embedding(Fields({"model": "e", "input": ["a", "b" * 161]}), Api())
    with pytest.raises(ApiError) as caught:
        make_embedding_plan(request, Ticket("req"), LIMITS, tokenizer, SIZE)
    assert (caught.value.param, caught.value.code) == ("input[1]", "context_length_exceeded")
    assert tokenizer.encoded == 1


def test_a_text_without_tokens_is_refused() -> None:
    class Deaf(LetterTokenizer):
        def encode_text(self, text: str) -> list[int]:
            return []

    request = read_embedding(Fields({"model": "e", "input": " "}), Api())
    with pytest.raises(ApiError) as caught:
        make_embedding_plan(request, Ticket("req"), LIMITS, Deaf(), SIZE)
    assert (caught.value.param, caught.value.code) == ("input", "invalid_value")


def test_all_inputs_together_have_a_limit() -> None:
    wide = Limits("e", MAX_TOKENS, 1000, ())
    assert plan(limits=wide, input=["a", [5] * (MAX_TOKENS - 1)]).prompt_tokens == MAX_TOKENS
    assert refused(limits=wide, input=["ab", [5] * (MAX_TOKENS - 1)]) == ("input", "max_tokens_per_request")


def test_the_reservation_is_a_ceiling() -> None:
    assert plan(Ticket("req", max_total_tokens=3)).prompt_tokens == 3
    assert refused(Ticket("req", max_total_tokens=2)) == ("input", "reservation_exceeded")


def test_numbers_are_the_vectors_own() -> None:
    answer = json.loads(embedding_answer(plan(input=["a", "bc"]), [VECTOR.tobytes(), (-VECTOR).tobytes()]))
    assert (answer["object"], answer["model"]) == ("list", "e")
    assert [(one["object"], one["index"]) for one in answer["data"]] == [("embedding", 0), ("embedding", 1)]
    assert np.array_equal(np.array(answer["data"][1]["embedding"], dtype="<f4"), -VECTOR)
    assert answer["usage"] == {"prompt_tokens": 3, "total_tokens": 3}


def test_base64_is_of_little_endian_fp32() -> None:
    answer = json.loads(embedding_answer(plan(encoding_format="base64"), [VECTOR.tobytes()]))
    assert base64.b64decode(answer["data"][0]["embedding"]) == VECTOR.tobytes()


def test_a_shortened_vector_has_length_1_again() -> None:
    answer = json.loads(embedding_answer(plan(dimensions=2), [VECTOR.tobytes()]))
    found = answer["data"][0]["embedding"]
    assert found == pytest.approx([0.1 / 0.05**0.5, 0.2 / 0.05**0.5], abs=1e-6)
