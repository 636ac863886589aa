"""What a chat template is given beside the messages, what it is not, and where an open message ends."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from sidecar.tokenizer import template as rendering_room
from sidecar.tokenizer.messages import PLAIN, Message, Rendering, ToolCall
from sidecar.tokenizer.model_tokenizer import ModelTokenizer
from sidecar.tokenizer.template import read_words
from sidecar.wire.errors import ApiError

START, END = 0, 1
TURN = (
    "{% for message in messages %}<|start|>{{ message.role }}\n{{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
EFFORT = "{% if reasoning_effort == 'end' %}much{% else %}[{{ reasoning_effort }}]{% endif %}" + TURN
DOCUMENTS = "{% for one in documents or [] %}{{ one.start }}:{{ one['text'] }};{% endfor %}" + TURN
KEYS = "{% for one in documents %}{% for key in one %}<|{{ key }}|>{{ one[key] }}{% endfor %}{% endfor %}" + TURN
ASKED = (Message("user", "the cat"),)
OPEN = (*ASKED, Message("assistant", "on the mat"))

Made = Callable[[str], ModelTokenizer]
hostile = st.lists(st.sampled_from(["the cat", "<|", "|>", "end", "<|end|>", "<|start|>", " ", "ü", "<"])).map("".join)


def text(model: ModelTokenizer, messages: tuple[Message, ...], rendering: Rendering = PLAIN) -> str:
    return model.decode_text(model.encode_chat(messages, rendering))[0]


def refused(model: ModelTokenizer, messages: tuple[Message, ...], rendering: Rendering) -> ApiError:
    with pytest.raises(ApiError) as caught:
        model.encode_chat(messages, rendering)
    assert caught.value.status == 400
    return caught.value


# --- begin, go on, neither ---


def test_an_answer_begins_only_if_it_is_to(made: Made) -> None:
    ended = "<|start|>user\nthe cat<|end|>\n"
    assert text(made(TURN), ASKED) == ended + "<|start|>assistant\n"
    assert text(made(TURN), ASKED, Rendering(add_generation_prompt=False)) == ended


def test_an_open_message_is_what_transformers_makes_of_it(folder: Path) -> None:
    # The template of this folder trims what it is given, so Transformers trims where it cuts.
    theirs = AutoTokenizer.from_pretrained(folder)
    model = ModelTokenizer(folder)
    for content in ("on the mat", "", "on the ", " on\n", "CONTINUE_FINAL_MESSAGE_TAG", "🙂"):
        chat = (*ASKED, Message("assistant", content))
        expected = theirs.apply_chat_template(
            [{"role": message.role, "content": message.content} for message in chat],
            continue_final_message=True,
            return_dict=False,
        )
        assert model.encode_chat(chat, Rendering(False, True)) == expected
        assert model.decode_text(expected)[0].endswith(f"<|start|>assistant\n{content.strip()}".rstrip())


@given(st.tuples(hostile, hostile))
def test_an_open_message_stays_open_and_whole_whatever_is_in_it(made: Made, contents: tuple[str, str]) -> None:
    chat = (Message("user", contents[0]), Message("assistant", contents[1]))
    ids = made(TURN).encode_chat(chat, Rendering(False, True))
    assert (ids.count(START), ids.count(END)) == (2, 1)
    assert made(TURN).decode_text(ids)[0].endswith(f"<|start|>assistant\n{contents[1]}")


@pytest.mark.parametrize("template", ["{{ messages[0].content }}", "{% for m in messages %}{{ m.role }}{% endfor %}"])
def test_a_template_that_drops_the_last_message_cannot_go_on_from_it(made: Made, template: str) -> None:
    error = refused(made(template), OPEN, Rendering(False, True))
    assert (error.param, error.code) == ("continue_final_message", "unsupported_parameter")


# --- variables ---


def test_the_effort_is_given_to_a_template_that_mentions_it(made: Made) -> None:
    assert text(made(EFFORT), ASKED, Rendering(reasoning_effort="low")).startswith("[low]")
    assert text(made(EFFORT), ASKED, Rendering(variables={"reasoning_effort": "low"})).startswith("[low]")
    assert text(made(EFFORT), ASKED).startswith("[]")
    assert text(made(TURN), ASKED, Rendering(reasoning_effort="low")) == text(made(TURN), ASKED)


def test_a_value_that_a_template_compares_is_known_though_a_control_token_has_it(made: Made) -> None:
    assert text(made(EFFORT), ASKED, Rendering(variables={"reasoning_effort": "end"})).startswith("much")


@pytest.mark.parametrize(("value", "shown"), [(True, "True"), (7, "7"), (0.5, "0.5"), ("x", "x"), ("", "")])
def test_a_variable_has_its_type(made: Made, value: str | float | bool, shown: str) -> None:
    template = "{{ thinking }}|{{ thinking is boolean }}" + TURN
    rendered = text(made(template), ASKED, Rendering(variables={"thinking": value}))
    assert rendered.startswith(f"{shown}|{isinstance(value, bool)}<")


def test_what_a_template_says_of_a_variable_is_told(made: Made) -> None:
    template = "{% if thinking %}{{ raise_exception('no thinking here') }}{% endif %}" + TURN
    error = refused(made(template), ASKED, Rendering(variables={"thinking": True}))
    assert "no thinking here" in error.message


@pytest.mark.parametrize("expression", ["1 // thinking", "thinking.x.y", "thinking + 'a'", "range(1000000 - thinking)"])
def test_c4_a_variable_that_breaks_a_template_is_the_client_s_mistake(made: Made, expression: str) -> None:
    assert refused(made("{{ " + expression + " }}"), ASKED, Rendering(variables={"thinking": 0})).param == "messages"


def test_c4_a_template_without_an_end_is_given_up_and_the_next_chat_is_rendered(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering_room, "RENDER_S", 0.2)
    model = made(
        "{% if forever %}{% for _ in range(99999) %}{% for _ in range(99999) %}{% endfor %}{% endfor %}{% endif %}"
        + TURN
    )
    error = refused(model, ASKED, Rendering(variables={"forever": True}))
    assert "within 0.2 s" in error.message
    monkeypatch.undo()
    assert "the cat" in text(model, ASKED)


# --- documents ---


def test_documents_are_given_to_a_template_that_knows_them(made: Made) -> None:
    # "start" and "text" are looked up though a control token has the first.
    rendering = Rendering(documents=({"start": "A", "text": "the hat"}, {"text": "<|end|>"}))
    rendered = text(made(DOCUMENTS), ASKED, rendering)
    assert rendered.startswith("A:the hat;:<|end|>;<|start|>user")
    assert text(made(DOCUMENTS), ASKED) == text(made(TURN), ASKED)


def test_documents_are_refused_where_the_template_knows_none(made: Made) -> None:
    for template in (TURN, "{# documents #}{{ 'documents' }}{{ messages[0].documents }}" + TURN):
        error = refused(made(template), ASKED, Rendering(documents=({"text": "a"},)))
        assert (error.param, error.code) == ("documents", "unsupported_parameter")
        assert "knows no documents" in error.message


@given(hostile, hostile, hostile)
def test_c6_neither_variables_nor_documents_make_control_tokens(made: Made, key: str, value: str, effort: str) -> None:
    for template in (EFFORT, DOCUMENTS, KEYS):
        rendering = Rendering(
            variables={"reasoning_effort": effort},
            documents=({key: value, "text": value},) if template != EFFORT else (),
        )
        ids = made(template).encode_chat(ASKED, rendering)
        assert (ids.count(START), ids.count(END)) == (2, 1)


# --- words ---


def test_the_words_of_a_template() -> None:
    words = read_words("documents {# tools #}{% if a.b == 'c d' %}{{ e[\"f\"] . g }}{% endif %}{% generation %}")
    assert words.variables >= {"a", "e"}
    assert not words.variables & {"documents", "tools", "b", "g"}
    assert words.literals == {"b", "c d", "f", "g"}


def test_a_template_with_a_mistake_has_the_words_before_it() -> None:
    assert "a" in read_words("{{ a }}{{ ' }}").variables
    assert read_words("") == read_words("plain")


def test_a_call_in_the_history_stays_beside_documents(made: Made) -> None:
    call = Message("assistant", "", tool_calls=(ToolCall("c", "f", "{}"),))
    assert text(made(DOCUMENTS), (*ASKED, call), Rendering(documents=({"text": "a"},))).startswith(":a;<|start|>user")
