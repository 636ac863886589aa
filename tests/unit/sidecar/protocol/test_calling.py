"""The grammar of a chat with tools: what it allows is read as calls that fit, in each form; random walks through it."""

import json
import random
from collections.abc import Iterator
from functools import cache
from typing import Any

import msgspec
import pytest
import torch
import xgrammar

from sidecar.protocol.calling import grammar_of
from sidecar.protocol.requests import ChatRequest, Demand, Options, ToolUse
from sidecar.protocol.speech.dialect import FORMS, Dialect, Speech, ToolFormat
from sidecar.protocol.speech.pieces import Kind
from sidecar.protocol.speech.syntax import SYNTAXES, written
from sidecar.tokenizer.messages import Tool
from sidecar.wire.errors import ApiError
from sidecar.wire.grammars import Grammar, GrammarKind

SCHEMA: dict[str, object] = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "</tool_call>"]}},
    "required": ["a"],
}
TOOLS = (Tool("f", "It looks.", SCHEMA, strict=True), Tool("g"))
LOOSE = tuple(msgspec.structs.replace(tool, strict=False) for tool in TOOLS)
OPTIONS = Options(
    model="m",
    choices=1,
    max_tokens=None,
    max_tokens_param="max_tokens",
    temperature=1.0,
    top_p=1.0,
    seed=7,
    top_k=0,
    stop=(),
    stream=False,
    include_usage=False,
    continuous_usage=False,
    echo_service_tier=False,
    ignored=(),
)
YES = Grammar(GrammarKind.REGEX, "yes|no", "structured_outputs.regex")
END = 256
MARKERS = sorted({marker for form in FORMS.values() for marker in form.markers} | {"<think>", "</think>"})
TOKENS = [*(bytes([byte]) for byte in range(256)), b"", *(marker.encode() for marker in MARKERS)]


def grammar(use: ToolUse | None, speech: Speech, asked: Grammar | None = None) -> Grammar | None:
    options = msgspec.structs.replace(OPTIONS, grammar=asked)
    return grammar_of(ChatRequest(options, (), tool_use=use), speech)


def speech_of(form: ToolFormat, **how: bool) -> Speech:
    return Speech(tools=form, offered={tool.name: tool.parameters or {} for tool in TOOLS}, **how)


@cache
def compiler() -> xgrammar.GrammarCompiler:
    info = xgrammar.TokenizerInfo(TOKENS, xgrammar.VocabType.RAW, vocab_size=len(TOKENS), stop_token_ids=[END])
    return xgrammar.GrammarCompiler(info, max_threads=1)


@cache
def compiled(found: Grammar) -> xgrammar.CompiledGrammar:
    assert found.kind is GrammarKind.STRUCTURAL_TAG
    return compiler().compile_structural_tag(found.source)


def matcher(found: Grammar | None) -> xgrammar.GrammarMatcher:
    assert found is not None
    return xgrammar.GrammarMatcher(compiled(found))


def allowed(walk: xgrammar.GrammarMatcher) -> list[int]:
    mask = torch.zeros((1, -(-len(TOKENS) // 32)), dtype=torch.int32)
    walk.fill_next_token_bitmask(mask)
    bits = int.from_bytes(mask.numpy().tobytes(), "little")
    return [token for token in range(len(TOKENS)) if bits >> token & 1]


def follows(found: Grammar | None, text: str) -> bool:
    """Whether it is a whole answer by the grammar."""
    walk = matcher(found)
    return all(walk.accept_token(byte) for byte in text.encode()) and END in allowed(walk)


def call(form: ToolFormat, name: str, arguments: str) -> str:
    syntax = SYNTAXES[form]
    return syntax.begin(name) + arguments + syntax.call_end


def answer(form: ToolFormat, *calls: str) -> str:
    syntax = SYNTAXES[form]
    return syntax.opening + syntax.separator.join(calls) + syntax.closing


@pytest.fixture(params=sorted(FORMS))
def form(request: pytest.FixtureRequest) -> ToolFormat:
    found: ToolFormat = request.param
    return found


def test_some_calls_are_demanded(form: ToolFormat) -> None:
    f, g = call(form, "f", '{"a": 1}'), call(form, "g", "{}")
    several = grammar(ToolUse(LOOSE, LOOSE, Demand.SOME), speech_of(form))
    one = grammar(ToolUse(LOOSE, LOOSE, Demand.SOME, parallel=False), speech_of(form))
    for found in (several, one):
        assert follows(found, answer(form, f))
        assert follows(found, answer(form, g))
        for wrong in ("", "Well. " + answer(form, f), answer(form, call(form, "h", "{}")), answer(form, f) + "!"):
            assert not follows(found, wrong)
        for arguments in ("{}", '{"a": "1"}', '{"a": 1, "c": 2}', '{"a": 1', "1"):
            assert not follows(found, answer(form, call(form, "f", arguments)))
    assert follows(several, answer(form, f, g, f))
    assert not follows(one, answer(form, f, g))


@pytest.mark.parametrize(
    "more", [{}, {"type": "object", "title": "f", "required": []}, {"additionalProperties": False}]
)
def test_a_tool_without_properties_takes_no_arguments(more: dict[str, object]) -> None:
    tools = (Tool("f", None, {"properties": {}, **more}),)
    found = grammar(ToolUse(tools, tools, Demand.THIS), speech_of("hermes"))
    assert follows(found, answer("hermes", call("hermes", "f", "{}")))
    assert not follows(found, answer("hermes", call("hermes", "f", '{"a": 1}')))


@pytest.mark.parametrize("parameters", [{}, {"type": "object"}, {"properties": {}, "additionalProperties": True}])
def test_a_tool_that_names_no_properties_takes_any(parameters: dict[str, object]) -> None:
    tools = (Tool("f", None, parameters),)
    found = grammar(ToolUse(tools, tools, Demand.THIS), speech_of("hermes"))
    for arguments in ("{}", '{"a": 1}'):
        assert follows(found, answer("hermes", call("hermes", "f", arguments)))


def test_a_tool_that_is_named_is_called_once(form: ToolFormat) -> None:
    found = grammar(ToolUse(TOOLS, LOOSE[1:], Demand.THIS), speech_of(form))
    assert follows(found, answer(form, call(form, "g", "{}")))
    assert not follows(found, answer(form, call(form, "f", '{"a": 1}')))
    assert not follows(found, answer(form, *[call(form, "g", "{}")] * 2))


def test_a_strict_tool_is_called_rightly_or_not_at_all(form: ToolFormat) -> None:
    found = grammar(ToolUse(TOOLS, TOOLS), speech_of(form))
    right, free = call(form, "f", '{"a": 1, "b": "x"}'), call(form, "g", '{"any": [1]}')
    for text in ("", "Well.", answer(form, right), "Well. " + answer(form, right), answer(form, free, right)):
        assert follows(found, text)
    for text in (answer(form, call(form, "f", "{}")), "Well. " + answer(form, call(form, "h", "{}"))):
        assert not follows(found, text)
    one = grammar(ToolUse(TOOLS, TOOLS, parallel=False), speech_of(form))
    assert follows(one, "Well. " + answer(form, right))
    assert not follows(one, answer(form, right, free))


def test_a_format_is_for_answers_without_calls(form: ToolFormat) -> None:
    found = grammar(ToolUse(LOOSE, LOOSE), speech_of(form), YES)
    assert follows(found, "yes")
    assert follows(found, answer(form, call(form, "f", '{"other": 1}')))
    assert not follows(found, "maybe")
    forced = grammar(ToolUse(LOOSE, LOOSE, Demand.SOME), speech_of(form), YES)
    assert not follows(forced, "yes")


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        (YES, "yes"),
        (Grammar(GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA)), '{"a": 1}'),
        (Grammar(GrammarKind.EBNF, 'root ::= "b"'), "b"),
        (Grammar(GrammarKind.STRUCTURAL_TAG, '{"format": {"type": "const_string", "value": "c"}}'), "c"),
    ],
)
def test_a_format_stands_behind_thoughts(asked: Grammar, text: str) -> None:
    found = grammar(None, Speech(thinks=True), asked)
    assert found is not None
    assert found.param == asked.param
    assert follows(found, text)
    assert follows(found, f"<think>\nhm, {text}?\n</think>\n\n{text}")
    assert not follows(found, "hm")
    inside = grammar(None, Speech(thinks=True, inside=True), asked)
    assert follows(inside, f"hm\n</think>\n\n{text}")
    assert not follows(inside, text)


def test_calls_stand_behind_thoughts() -> None:
    whole = answer("hermes", call("hermes", "g", "{}"))
    found = grammar(ToolUse(LOOSE, LOOSE, Demand.SOME), speech_of("hermes", thinks=True, inside=True))
    assert follows(found, f"I <tool_call> it.</think>\n{whole}")
    assert not follows(found, whole)


def test_the_markers_that_grammars_write_are_those_of_the_model() -> None:
    assert written(Dialect(thinks=True)) == ("<think>", "</think>")
    assert written(Dialect(tools="mistral")) == ("[TOOL_CALLS]",)
    # What Llama writes before code is no part of its calls.
    assert written(Dialect(tools="llama3")) == ()


def test_where_nothing_is_asked_the_answer_is_free_or_as_the_client_has_it() -> None:
    assert grammar(ToolUse(LOOSE, LOOSE), speech_of("hermes")) is None
    assert grammar(None, Speech(thinks=True)) is None
    assert grammar(None, Speech(), YES) == YES
    assert grammar_of(ChatRequest(msgspec.structs.replace(OPTIONS, grammar=YES), ()), None) == YES


def test_a_schema_that_no_grammar_can_follow_is_refused_where_it_must_be_followed() -> None:
    odd = (Tool("f", None, {"properties": {"a": {"not": {}}}}),)
    assert grammar(ToolUse(odd, odd), speech_of("hermes")) is None
    for use in (ToolUse(odd, odd, Demand.SOME), ToolUse(odd, (msgspec.structs.replace(odd[0], strict=True),))):
        with pytest.raises(ApiError, match="'f'") as caught:
            grammar(use, speech_of("hermes"))
        assert (caught.value.status, caught.value.param, caught.value.code) == (400, "tools", "invalid_json_schema")


def walks(found: Grammar | None, seeds: range) -> Iterator[str]:
    """Random answers by the grammar, those that end soon."""
    walk = matcher(found)
    for seed in seeds:
        chance = random.Random(seed)
        walk.reset()
        text = b""
        while len(text) < 400:
            tokens = allowed(walk)
            if END in tokens and (tokens == [END] or chance.random() < 0.7):
                yield text.decode()
                break
            plain = [token for token in tokens if token < 128 or token > END]
            token = chance.choice(plain or [token for token in tokens if token != END])
            assert walk.accept_token(token)
            text += TOKENS[token]


def test_whatever_the_grammar_allows_is_read_as_calls_that_fit(form: ToolFormat) -> None:
    found = grammar(ToolUse(LOOSE, LOOSE, Demand.SOME), speech_of(form))
    texts = list(walks(found, range(6)))
    assert texts
    for text in texts:
        listener = speech_of(form).listener()
        pieces = listener.feed(text) + listener.flush()
        assert listener.calls
        assert not [piece for piece in pieces if piece.kind is Kind.WORDS]
        for made in listener.calls:
            arguments: dict[str, Any] = json.loads(made.arguments)
            assert made.name == "f" or not arguments
            assert made.name == "g" or isinstance(arguments["a"], int)
