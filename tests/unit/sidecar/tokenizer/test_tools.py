"""Tools, calls and results as each kind of chat template gets them."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.protocol.choices import Choices
from sidecar.protocol.speech.dialect import Speech, ToolFormat
from sidecar.protocol.speech.listener import Call, calls_of
from sidecar.protocol.speech.pieces import Kind
from sidecar.tokenizer.messages import PLAIN, Message, Rendering, Tool, ToolCall
from sidecar.tokenizer.model_tokenizer import ModelTokenizer
from sidecar.wire.frames import Delta, Finish

START, END = 0, 1
TURN = (
    "{% for message in messages %}<|start|>{{ message.role }}\n{{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TURN
KNOWS = "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}" + TURN
PHI = (
    "{% for message in messages %}{% if message['role'] == 'system' and 'tools' in message %}"
    "<|start|>{{ message['content'] }}<|tool|>{{ message['tools'] }}<|/tool|><|end|>{% else %}"
    "<|start|>{{ message['content'] }}<|end|>{% endif %}{% endfor %}"
)
JOINS = (
    "{% for message in messages %}{% if message['tool_calls'] %}{% for call in message['tool_calls'] %}"
    "{{ call['function']['name'] + '(' + call['function']['arguments'] + ')' }}{% endfor %}{% else %}"
    "{{ message['content'] }}{% endif %}<|end|>{% endfor %}"
)
SHORT = (
    "{% for message in messages %}{% for call in message['tool_calls'] or [] %}{% if call.id|length != 9 %}"
    "{{ raise_exception('ids have length 9!') }}{% endif %}<{{ call.id }}>{% endfor %}"
    "{% if message['tool_call_id'] %}<{{ message['tool_call_id'] }}>{% endif %}<|end|>{% endfor %}"
)
ASKED = (Message("user", "the cat"),)
LOOK = Tool("look", "It looks.", {"type": "object", "properties": {"end": {"type": "string"}}})
CALLED = (
    *ASKED,
    Message(
        "assistant", "Well.", tool_calls=(ToolCall("call_1", "look", '{"end": 1}'), ToolCall("call_2", "sit", "{}"))
    ),
    Message("tool", "it sat", tool_call_id="call_1"),
    Message("tool", "on it", tool_call_id="call_2"),
)
WITH_LOOK = Rendering(tools=(LOOK,))

Made = Callable[[str], ModelTokenizer]
hostile = st.lists(st.sampled_from(["cat", "<|", "|>", "end", "<|end|>", "<|start|>", " ", "ü", "<", '"'])).map("".join)


def text(model: ModelTokenizer, messages: tuple[Message, ...], rendering: Rendering = PLAIN) -> str:
    return model.decode_text(model.encode_chat(messages, rendering))[0]


def test_a_template_that_knows_tools_is_given_them_in_openai_s_shape(made: Made) -> None:
    model = made(KNOWS)
    assert model.knows_tools
    lines = text(model, ASKED, Rendering(tools=(LOOK, Tool("sit")))).splitlines()
    assert [json.loads(line) for line in lines[:2]] == [
        {
            "type": "function",
            "function": {"name": "look", "description": "It looks.", "parameters": LOOK.parameters},
        },
        {"type": "function", "function": {"name": "sit", "parameters": {"type": "object", "properties": {}}}},
    ]
    assert lines[2:] == text(model, ASKED).splitlines()


def test_a_template_that_knows_none_has_them_described_by_the_system(made: Made) -> None:
    model = made(TURN)
    assert not model.knows_tools
    rendered = text(model, ASKED, WITH_LOOK)
    assert rendered.startswith("<|start|>system\n# Tools\n")
    assert '<tools>\n{"type": "function", "function": {"name": "look", "description": "It looks.", ' in rendered
    assert '<tool_call>\n{"name": <name>, "arguments": <arguments as a JSON object>}\n</tool_call><|end|>\n' in rendered
    assert rendered.endswith(text(model, ASKED))
    told = text(model, (Message("system", "Be kind."), *ASKED), WITH_LOOK)
    assert told.startswith("<|start|>system\nBe kind.\n\n# Tools\n")
    assert told.count("<|start|>system") == 1


def test_a_template_without_a_system_has_them_described_by_the_user(made: Made) -> None:
    rendered = text(made(NO_SYSTEM), ASKED, WITH_LOOK)
    assert rendered.startswith("<|start|>user\n# Tools\n")
    assert rendered.endswith("</tool_call>\n\nthe cat<|end|>\n<|start|>assistant\n")


def test_calls_and_results_are_written_out_where_they_are_not_known(made: Made) -> None:
    assert text(made(TURN), CALLED) == (
        "<|start|>user\nthe cat<|end|>\n"
        '<|start|>assistant\nWell.\n<tool_call>\n{"name": "look", "arguments": {"end": 1}}\n</tool_call>\n'
        '<tool_call>\n{"name": "sit", "arguments": {}}\n</tool_call><|end|>\n'
        "<|start|>user\n<tool_response>\nit sat\n</tool_response>\n<tool_response>\non it\n</tool_response><|end|>\n"
        "<|start|>assistant\n"
    )


def test_the_system_message_has_them_where_the_template_looks_there(made: Made) -> None:
    model = made(PHI)
    assert model.knows_tools
    tools = '[{"name": "look", "description": "It looks.", "parameters": '
    assert text(model, ASKED, WITH_LOOK).startswith(f"<|start|><|tool|>{tools}")
    assert text(model, (Message("system", "Hi"), *ASKED), WITH_LOOK).startswith(f"<|start|>Hi<|tool|>{tools}")
    assert text(model, ASKED) == "<|start|>the cat<|end|>"


def test_a_template_that_joins_arguments_gets_them_as_text(made: Made) -> None:
    assert text(made(JOINS), CALLED).split("<|end|>")[1] == 'look({"end": 1})sit({})'


def test_a_template_that_wants_short_ids_gets_the_same_for_the_same(made: Made) -> None:
    rendered = text(made(SHORT), CALLED)
    first, second = rendered.split("<|end|>")[1].removeprefix("<").removesuffix(">").split("><")
    assert first != second
    assert rendered.endswith(f"<|end|><{first}><|end|><{second}><|end|>")
    own = (Message("assistant", "", tool_calls=(ToolCall("abcDEF123", "f", "{}"),)),)
    assert text(made(SHORT), own) == "<abcDEF123><|end|>"


@pytest.mark.parametrize("template", [KNOWS, TURN])
@given(words=st.tuples(hostile, hostile, hostile))
@settings(max_examples=30)
def test_c6_nothing_in_a_tool_becomes_a_control_token(made: Made, template: str, words: tuple[str, str, str]) -> None:
    description, key, value = words
    parameters: dict[str, object] = {"properties": {key: {"enum": [value, 5], "type": "string"}}}
    model = made(template)
    rendering = Rendering(tools=(Tool("end", description, parameters),))
    ids, bare = model.encode_chat(ASKED, rendering), model.encode_chat(ASKED, Rendering(tools=(Tool("f"),)))
    assert (ids.count(START), ids.count(END)) == (bare.count(START), bare.count(END))
    assert json.dumps(parameters, ensure_ascii=False) in model.decode(ids)


def test_the_vocabulary_of_grammars_has_the_markers_that_they_write(made: Made) -> None:
    model = made(TURN)
    size = max(model.encode_text("z")) + 500
    plain, marked = model.vocabulary(size), model.vocabulary(size, ("<|start|>", "<no marker>"))
    assert (plain[START], plain[END], marked[START], marked[END]) == (b"", b"", b"<|start|>", b"")
    assert plain[END:] == marked[END:]


ANSWERS: list[tuple[ToolFormat, str]] = [
    ("hermes", '<tool_call>\n{"name": "f", "arguments": {"a": "ü🙂"}}\n</tool_call>'),
    ("llama3", '<|python_tag|>{"name": "f", "parameters": {"a": "ü🙂"}}'),
    ("mistral", '[TOOL_CALLS]f[CALL_ID]abc[ARGS]{"a": "ü🙂"}'),
    (
        "deepseek",
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{"a": "ü🙂"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
    ),
    ("phi", '<|tool_call|>[{"name": "f", "arguments": {"a": "ü🙂"}}]<|/tool_call|>'),
]


@pytest.mark.parametrize(("form", "answer"), ANSWERS)
@pytest.mark.parametrize("special", [False, True])
def test_calls_are_read_from_tokens_also_where_their_markers_are_special(
    tmp_path: Path, folder: Path, form: ToolFormat, answer: str, special: bool
) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    speech = Speech(thinks=True, tools=form, offered={"f": {}})
    tokenizer.add_tokens([tokenizers.AddedToken(marker, special=special) for marker in speech.markers])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    model = ModelTokenizer(tmp_path)
    ids = [*model.encode_text(f"<think>the cat</think>\n{answer}", add_special_tokens=False), END]
    choices = Choices(1, partial(model.detokenizer, markers=speech.markers), (), (END,), speech=speech)
    told = [choices.take(Delta("req_1", 0, [token], at)) for at, token in enumerate(ids[:-1], start=1)]
    told.append(choices.take(Delta("req_1", 0, [END], len(ids), Finish.STOP)))
    (choice,) = choices.all
    assert (choice.text, choice.thought, choice.finish_reason) == ("", "the cat", "tool_calls")
    assert calls_of(choice.parts) == (Call("f", '{"a": "ü🙂"}'),)
    pieces = [piece for progress in told for piece in progress.pieces]
    assert "".join(piece.text for piece in pieces if piece.kind is Kind.ARGUMENTS) == '{"a": "ü🙂"}'
