"""Structured output with the real model and the stock SDK: it is what was asked for, or it was cut and says so."""

import concurrent.futures
import json
import random
import re
from typing import Any, Literal

import openai
import pydantic
import pytest
from jsonschema import Draft202012Validator

from tests.fakes.grammars import random_schema

MODEL = "smollm2-135m-instruct"
MESSAGES: Any = [{"role": "user", "content": "Invent a person and describe them as JSON."}]
PERSON: Any = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "born": {"type": "string", "format": "date"},
        "hobbies": {"type": "array", "items": {"enum": ["chess", "running", "naps"]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "age", "born", "hobbies"],
    "additionalProperties": False,
}
SCHEMAS = 40


def schema_format(schema: Any) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}}


def test_an_answer_follows_its_schema_streamed_or_not(client: openai.OpenAI) -> None:
    asked: Any = {"model": MODEL, "messages": MESSAGES, "temperature": 0, "response_format": schema_format(PERSON)}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True))
    (choice,) = whole.choices
    assert choice.finish_reason == "stop"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == choice.message.content
    Draft202012Validator(PERSON).validate(json.loads(choice.message.content or ""))


def test_parse_gives_what_pydantic_describes(client: openai.OpenAI) -> None:
    class Pet(pydantic.BaseModel):
        kind: Literal["cat", "dog"]
        name: str = pydantic.Field(max_length=12)

    class Owner(pydantic.BaseModel):
        name: str = pydantic.Field(max_length=16)
        pets: list[Pet] = pydantic.Field(max_length=2)
        town: str | None = pydantic.Field(max_length=16)

    parsed = client.chat.completions.parse(model=MODEL, messages=MESSAGES, temperature=0, response_format=Owner)
    assert isinstance(parsed.choices[0].message.parsed, Owner)
    response = client.responses.parse(model=MODEL, input="Invent a pet.", temperature=0, text_format=Pet)
    assert isinstance(response.output_parsed, Pet)


def test_an_answer_that_is_cut_says_so(client: openai.OpenAI) -> None:
    asked: Any = {"model": MODEL, "messages": MESSAGES, "max_tokens": 5, "response_format": schema_format(PERSON)}
    assert client.chat.completions.create(**asked).choices[0].finish_reason == "length"


def test_a_json_object_is_one(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, temperature=0, max_tokens=300, response_format={"type": "json_object"}
    )
    (choice,) = answer.choices
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content or ""), dict)
    assert (choice.message.content or "").startswith("{")


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_patterns_choices_and_grammars(client: openai.OpenAI, temperature: float) -> None:
    def said(outputs: dict[str, Any]) -> str:
        answer = client.completions.create(
            model=MODEL,
            prompt="The answer is ",
            temperature=temperature,
            max_tokens=60,
            extra_body={"structured_outputs": outputs},
        )
        assert answer.choices[0].finish_reason == "stop"
        return answer.choices[0].text

    assert re.fullmatch(r"[A-Z][a-z]{2,8} \d{1,3}!", said({"regex": r"[A-Z][a-z]{2,8} \d{1,3}!"}))
    assert said({"choice": ["très bien", 'say "no"', "日本"]}) in ("très bien", 'say "no"', "日本")
    assert re.fullmatch(
        "(ab|cd) [0-9]{2}", said({"grammar": 'root ::= ("ab" | "cd") " " digit digit\ndigit ::= [0-9]'})
    )


def test_log_probabilities_are_the_models_own(client: openai.OpenAI) -> None:
    asked: Any = {"model": MODEL, "messages": MESSAGES, "logprobs": True, "top_logprobs": 2, "max_tokens": 30}
    answer = client.chat.completions.create(**asked, response_format=schema_format(PERSON))
    told = answer.choices[0].logprobs
    assert told is not None
    assert told.content
    assert all(-9999 < entry.logprob <= 0 and len(entry.top_logprobs) == 2 for entry in told.content)


def test_a_model_that_goes_on_past_its_end_stops_where_the_form_ends(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        max_tokens=200,
        response_format=schema_format({"enum": ["a"]}),
        extra_body={"ignore_eos": True},
    )
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ('"a"', "stop")


@pytest.mark.parametrize(
    ("outputs", "code", "words"),
    [
        ({"grammar": "root = a"}, "invalid_value", "structured_outputs.grammar"),
        ({"grammar": "root ::= b"}, "invalid_value", "structured_outputs.grammar"),
        ({"json": {"type": "array", "items": {"not": {}}}}, "invalid_json_schema", "'not' is not supported"),
        ({"regex": "a(?=b)"}, "invalid_value", "structured_outputs.regex"),
    ],
)
def test_what_cannot_be_compiled_is_refused_and_the_next_is_served(
    client: openai.OpenAI, outputs: dict[str, Any], code: str, words: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        client.completions.create(model=MODEL, prompt="a", extra_body={"structured_outputs": outputs})
    assert refusal.value.code == code
    assert words in refusal.value.message
    assert client.completions.create(model=MODEL, prompt="a", max_tokens=1).choices


def test_random_schemas_side_by_side(client: openai.OpenAI, house: Any) -> None:
    """Eight at a time, with answers without a form between them, and the engine that began is the one that ends."""
    engine = house.state()["engine_pid"]

    def ask(seed: int) -> bool:
        if seed % 4 == 0:
            plain = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=20, seed=seed)
            return bool(plain.choices[0].message.content)
        schema = random_schema(random.Random(seed))
        answer = client.chat.completions.create(
            model=MODEL, messages=MESSAGES, seed=seed, max_tokens=120, response_format=schema_format(schema)
        )
        (choice,) = answer.choices
        if choice.finish_reason == "stop":
            Draft202012Validator(schema).validate(json.loads(choice.message.content or ""))
        return choice.finish_reason == "stop"

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        finished = list(threads.map(ask, range(SCHEMAS)))
    assert sum(finished) > SCHEMAS / 2
    assert house.state()["engine_pid"] == engine
