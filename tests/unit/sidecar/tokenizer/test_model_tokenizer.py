"""A model folder's tokenizer and chat template, as the front uses them."""

import json
import shutil
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors
from transformers import AutoTokenizer

from sidecar.tokenizer.messages import Message, Rendering, ToolCall
from sidecar.tokenizer.model_tokenizer import ModelTokenizer, TokenizerUnusableError
from sidecar.wire.errors import ApiError

START, END = 0, 1
words = st.lists(
    st.sampled_from(["the cat", "<|", "|>", "end", "<|end|>", "<|start|>", " ", "\n", "ü", "🙂", "<"])
).map("".join)
messages = st.lists(
    st.tuples(st.sampled_from(["system", "user", "assistant", "developer"]), words), min_size=1, max_size=6
)


@pytest.fixture(scope="session")
def model(folder: Path) -> ModelTokenizer:
    return ModelTokenizer(folder)


def chat(*turns: tuple[str, str]) -> tuple[Message, ...]:
    return tuple(Message(role, content) for role, content in turns)


def adding(tmp_path: Path, folder: Path, tokenizer: tokenizers.Tokenizer) -> ModelTokenizer:
    """The model with a tokenizer that puts a special token at both ends."""
    shutil.copytree(folder, tmp_path / "model")
    changed = tokenizers.Tokenizer.from_str(tokenizer.to_str())
    changed.post_processor = processors.TemplateProcessing(
        single="<|start|> $A <|end|>", special_tokens=[("<|start|>", START), ("<|end|>", END)]
    )
    changed.save(str(tmp_path / "model/tokenizer.json"))
    return ModelTokenizer(tmp_path / "model")


def test_a_chat_is_encoded_as_transformers_does(model: ModelTokenizer, folder: Path) -> None:
    turns = [("system", "Be kind"), ("user", "the cat sat"), ("assistant", "on the mat 🙂"), ("user", " Grüße ")]
    theirs = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        [{"role": role, "content": content} for role, content in turns], add_generation_prompt=True, return_dict=False
    )
    assert model.encode_chat(chat(*turns)) == theirs


@given(messages)
def test_c6_only_the_template_writes_control_tokens(model: ModelTokenizer, turns: list[tuple[str, str]]) -> None:
    ids = model.encode_chat(chat(*turns))
    asked_for_system = turns[0][0] in {"system", "developer"}
    count = len(turns) + (0 if asked_for_system else 1)
    assert ids.count(START) == count + 1
    assert ids.count(END) == count
    text = "".join(model._backend.decode([token], skip_special_tokens=False) for token in ids if token in {START, END})
    assert text == "<|start|><|end|>" * count + "<|start|>"


@given(words)
def test_a_client_s_words_come_through_whole(model: ModelTokenizer, text: str) -> None:
    rendered = model._backend.decode(model.encode_chat(chat(("user", text))), skip_special_tokens=False)
    assert rendered == (f"<|start|>system\nBe kind<|end|>\n<|start|>user\n{text.strip()}<|end|>\n<|start|>assistant\n")


@given(messages)
def test_the_bound_bounds(model: ModelTokenizer, turns: list[tuple[str, str]]) -> None:
    bound = model.bound()
    assert bound is not None
    body = json.dumps([{"role": role, "content": content} for role, content in turns]).encode()
    prompt = len(model.encode_chat(chat(*turns)))
    assert prompt <= bound.per_request + bound.per_message * len(turns) + len(body)


def test_the_bound_of_a_completion_has_no_template(plain_folder: Path) -> None:
    model = ModelTokenizer(plain_folder)
    bound = model.bound()
    assert bound is not None
    assert (bound.per_request, bound.per_message) == (0, 0)
    assert not model.has_chat_template
    with pytest.raises(ApiError, match="no chat template") as caught:
        model.encode_chat(chat(("user", "hi")))
    assert caught.value.status == 400


def test_a_completion_s_special_tokens_are_special(model: ModelTokenizer) -> None:
    assert model.encode_text("<|start|>")[:1] == [START]


def test_every_source_of_stop_tokens_counts(model: ModelTokenizer) -> None:
    assert model.stop_token_ids == [1, 2]


def test_a_template_that_refuses_is_the_client_s_mistake(model: ModelTokenizer) -> None:
    with pytest.raises(ApiError, match="say yes") as caught:
        model.encode_chat(chat(("user", "no")))
    assert (caught.value.status, caught.value.param) == (400, "messages")


def test_a_developer_is_a_system_to_a_template_that_knows_none(model: ModelTokenizer) -> None:
    assert model.encode_chat(chat(("developer", "hi"))) == model.encode_chat(chat(("system", "hi")))


def test_markers_have_text_also_where_they_are_special_tokens(model: ModelTokenizer) -> None:
    ids = [START, *model.encode_text("the"), END]
    fed = model.detokenizer(markers=("<|start|>", "<tool_call>"))
    assert "".join(map(fed.feed, ids)) + fed.flush() == "<|start|>the"
    assert [fed.shows(token) for token in (START, END)] == [True, False]


@pytest.mark.parametrize(("specials", "text"), [(False, "the cat 🙂"), (True, "<|start|>the cat 🙂<|end|>")])
def test_a_detokenizer_gives_the_text_with_special_tokens_or_without(
    model: ModelTokenizer, specials: bool, text: str
) -> None:
    fed = model.detokenizer(specials=specials)
    assert "".join(map(fed.feed, [START, *model.encode_text("the cat 🙂"), END])) + fed.flush() == text


@pytest.mark.parametrize("text", ["", "the cat 🙂", "<|start|>the  cat<|end|>", " Grüße\n\n你好 🙂🙂"])
def test_the_offsets_of_a_text_are_where_its_tokens_spell(model: ModelTokenizer, text: str) -> None:
    spelt = [model.spell(token) for token in model.encode_text(text)]
    assert b"".join(spelt).decode() == text
    # A part of a character begins where the character does.
    starts = [len(b"".join(spelt[:at]).decode("utf-8", "ignore")) for at in range(len(spelt))]
    assert model.text_offsets(text) == starts


def test_tokens_are_given_back_as_text_with_their_offsets(model: ModelTokenizer) -> None:
    ids = [START, *model.encode_text("the cat 🙂"), END]
    text, offsets = model.decode_text(ids)
    assert text == "<|start|>the cat 🙂<|end|>"
    assert (len(offsets), offsets[1], text[offsets[-1] :]) == (len(ids), len("<|start|>"), "<|end|>")


def test_a_token_that_the_tokenizer_adds_is_no_part_of_the_text(
    tmp_path: Path, folder: Path, tokenizer: tokenizers.Tokenizer
) -> None:
    adds = adding(tmp_path, folder, tokenizer)
    ids = adds.encode_text("cat")
    assert (ids[0], ids[-1]) == (START, END)
    offsets = adds.text_offsets("cat")
    assert (offsets[:2], offsets[-1]) == ([0, 0], 3)


CONTINUED = Rendering(add_generation_prompt=False, continue_final_message=True)
TOOLS = (
    "{% for message in messages %}{% if message.tool_calls %}{% for call in message.tool_calls %}"
    "<|start|>{{ call.id }} {{ call.function.name }} {{ call.function.arguments | tojson }}{% endfor %}{% else %}"
    "<|start|>{{ message.tool_call_id }} {{ message.content }}{% endif %}<|end|>{% endfor %}"
)


def test_tool_calls_reach_the_template_as_objects_and_no_control_token_hides_in_them(
    tmp_path: Path, folder: Path
) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": TOOLS}))
    model = ModelTokenizer(tmp_path)
    calls = (ToolCall("c1", "f", '{"a": "<|end|>"}'), ToolCall("<|end|>", "g", "not json"))
    ids = model.encode_chat((Message("assistant", "", tool_calls=calls), Message("tool", "42", tool_call_id="c1")))
    assert (ids.count(START), ids.count(END)) == (3, 2)
    rendered = model._backend.decode(ids, skip_special_tokens=False)
    assert '"a"' in rendered
    assert '<|start|><|end|> g "not json"' in rendered
    assert rendered.endswith("<|start|>c1 42<|end|>")


def test_a_folder_without_a_tokenizer_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(TokenizerUnusableError, match=str(tmp_path)):
        ModelTokenizer(tmp_path)


@given(st.one_of(st.text(), words))
def test_what_is_tokenised_and_back_is_the_same_text(model: ModelTokenizer, text: str) -> None:
    assert model.decode(model.encode_text(text, add_special_tokens=False)) == text


def test_a_text_can_do_without_the_tokens_that_the_tokenizer_adds(
    tmp_path: Path, folder: Path, tokenizer: tokenizers.Tokenizer
) -> None:
    adds = adding(tmp_path, folder, tokenizer)
    bare = adds.encode_text("cat", add_special_tokens=False)
    assert adds.encode_text("cat") == [START, *bare, END]
    assert adds.decode(bare) == "cat"
    assert adds.decode([START, *bare, END]) == "<|start|>cat<|end|>"


def test_tokens_are_told_as_the_vocabulary_writes_them(model: ModelTokenizer) -> None:
    ids = [START, *model.encode_text(" the")]
    assert model.token_strs(ids) == ["<|start|>", "Ġthe"]
    assert model.token_strs([1 << 20]) == [""]


@pytest.mark.parametrize(
    "flags", [{"add_generation_prompt": False}, {"add_generation_prompt": False, "continue_final_message": True}]
)
@pytest.mark.parametrize("last", ["on the", "on the ", ""])
def test_a_chat_may_end_otherwise_as_transformers_does(
    model: ModelTokenizer, folder: Path, flags: dict[str, bool], last: str
) -> None:
    turns = [("system", "Be kind"), ("user", "the cat sat"), ("assistant", last)]
    theirs = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        [{"role": role, "content": content} for role, content in turns], return_dict=False, **flags
    )
    assert model.encode_chat(chat(*turns), Rendering(**flags)) == theirs


@given(words.filter(str.strip))
def test_a_message_is_continued_where_it_ends(model: ModelTokenizer, text: str) -> None:
    ids = model.encode_chat(chat(("system", "hi"), ("assistant", text)), CONTINUED)
    assert model.decode(ids) == f"<|start|>system\nhi<|end|>\n<|start|>assistant\n{text.strip()}"
    assert (ids.count(START), ids.count(END)) == (2, 1)
