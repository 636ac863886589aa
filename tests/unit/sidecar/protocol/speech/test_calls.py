"""Calls in each family's own way, recorded from their documents, however the answer is cut."""

import json
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sidecar.protocol.speech.dialect import FORMS, Speech, ToolFormat
from sidecar.protocol.speech.listener import Call, Listener
from sidecar.protocol.speech.pieces import Kind, Piece

OFFERED: dict[str, dict[str, object]] = {
    "f": {"type": "object", "properties": {"n": {"type": "integer"}, "s": {"type": "string"}}},
    "get_time": {},
}
V3 = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{}\n```<｜tool▁call▁end｜>"
V31 = '<｜tool▁call▁begin｜>f<｜tool▁sep｜>{"n": 1}<｜tool▁call▁end｜>'
F, TIME = Call("f", '{"n": 1}'), Call("get_time", "{}")


def listen(form: ToolFormat, parts: Sequence[str], *, one_call: bool = False) -> tuple[Listener, list[Piece]]:
    listener = Speech(tools=form, offered=OFFERED, one_call=one_call).listener()
    pieces = [piece for part in parts for piece in listener.feed(part)] + listener.flush()
    return listener, pieces


def outcome(form: ToolFormat, *parts: str) -> tuple[str, tuple[Call, ...]]:
    """The words and the calls; all of the text must have gone into them."""
    listener, pieces = listen(form, parts)
    assert listener.taken == len("".join(parts))
    return "".join(piece.text for piece in pieces if piece.kind is Kind.WORDS), listener.calls


RECORDED: list[tuple[ToolFormat, str, str, tuple[Call, ...]]] = [
    ("hermes", '<tool_call>\n{"name": "f", "arguments": {"n": 1}}\n</tool_call>', "", (F,)),
    (
        "hermes",
        (
            'Let me see.\n\n<tool_call>\n{"name": "f", "arguments": {"n": 1}}\n</tool_call>\n'
            '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>\n'
        ),
        "Let me see.",
        (F, TIME),
    ),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"n": 1}}</tool_call>\n\nDone. ', "\n\nDone.", (F,)),
    ("hermes", '<tool_call>{"arguments": {"n": 1}, "name": "f"}</tool_call>', "", (F,)),
    ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"n\\": 1}"}</tool_call>', "", (F,)),
    ("hermes", '<tool_call>{"name": "get_time"}</tool_call>', "", (TIME,)),
    ("hermes", '<tool_call>{"name": "get_time", "arguments": null, "id": 5}</tool_call>', "", (TIME,)),
    ("hermes", '<tool_call>[{"name": "f", "arguments": {"n": 1}}]', "", (F,)),
    (
        "hermes",
        (
            "<tool_call>\n<function=f>\n<parameter=n>\n1\n</parameter>\n<parameter=s>\n1\n\n</parameter>\n</function>\n"
            "</tool_call>\n<tool_call>\n<function=get_time>\n</function>\n</tool_call>"
        ),
        "",
        (Call("f", '{"n": 1, "s": "1\\n"}'), TIME),
    ),
    ("llama3", '{"name": "f", "parameters": {"n": 1}}', "", (F,)),
    ("llama3", ' {"type": "function", "name": "f", "parameters": {"n": 1}}', "", (F,)),
    ("llama3", '{"name": "f", "parameters": {"n": 1}}; {"name": "get_time", "parameters": {}}', "", (F, TIME)),
    ("llama3", 'So:<|python_tag|>{"name": "f", "parameters": {"n": 1}}', "So:", (F,)),
    ("mistral", '[TOOL_CALLS] [{"name": "f", "arguments": {"n": 1}}]', "", (F,)),
    (
        "mistral",
        '[TOOL_CALLS][{"name": "f", "arguments": {"n": 1}, "id": "abcdef123"}, {"name": "get_time", "arguments": {}}]',
        "",
        (F, TIME),
    ),
    ("mistral", 'Hm.[TOOL_CALLS]f[ARGS]{"n": 1}[TOOL_CALLS]get_time[ARGS]{}', "Hm.", (F, TIME)),
    ("mistral", '[TOOL_CALLS]f{"n": 1}', "", (F,)),
    ("mistral", '[TOOL_CALLS]f[CALL_ID]abcdef123[ARGS]{"n": 1}', "", (F,)),
    ("deepseek", f"<｜tool▁calls▁begin｜>{V3}\n{V3}<｜tool▁calls▁end｜>", "", (Call("f", "{}"),) * 2),
    ("deepseek", f"I look.\n\n<｜tool▁calls▁begin｜>{V31}{V31}<｜tool▁calls▁end｜>", "I look.", (F, F)),
    ("deepseek", V31, "", (F,)),
    ("phi", '<|tool_call|>[{"name": "f", "arguments": {"n": 1}}]<|/tool_call|>', "", (F,)),
    ("phi", '<|tool_call|>{"name": "f", "arguments": {"n": 1}}</|tool_call|>', "", (F,)),
    ("phi", 'functools[{"name": "f", "arguments": {"n": 1}}, {"name": "get_time"}]', "", (F, TIME)),
]


@pytest.mark.parametrize(("form", "answer", "text", "calls"), RECORDED)
def test_calls_are_read_in_each_family_s_way_and_however_they_are_cut(
    form: ToolFormat, answer: str, text: str, calls: tuple[Call, ...]
) -> None:
    assert outcome(form, answer) == outcome(form, *answer) == (text, calls)
    for at in range(len(answer)):
        assert outcome(form, answer[:at], answer[at:]) == (text, calls)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("answer", ["", " ", "No.\n", '{"a": 1}', "functools is a module", "[1, 2]", "a < b {", "{"])
def test_an_answer_without_calls_is_words(form: ToolFormat, answer: str) -> None:
    assert outcome(form, *answer) == (answer, ())


@pytest.mark.parametrize(
    ("form", "answer"),
    [
        ("hermes", 'a <tool_call>\n{"name": "h", "arguments": {}}\n</tool_call> b'),
        ("hermes", "a\n<tool_call>\n"),
        ("hermes", 'a <tool_call>{"name": "f", "argum'),
        ("hermes", '<tool_call>{"name": "f", "arguments": 5}</tool_call>'),
        ("hermes", '<tool_call>{"name": ["f"], "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"arguments": {}}</tool_call>'),
        ("hermes", "<tool_call>{}</tool_call> <tool_call>{name: f}</tool_call>"),
        ("hermes", "<tool_call>\n<function=h>\n</function>\n</tool_call>"),
        ("hermes", "<tool_call>\n<function=f>\n<parameter=n>\n1"),
        ("llama3", '{"name": "h", "parameters": {}}'),
        ("llama3", '{"answer": {"name": "f", "parameters": {}}}'),
        ("llama3", '<|python_tag|>f.call(n="1")'),
        ("mistral", "[TOOL_CALLS]h[ARGS]{}"),
        ("mistral", "[TOOL_CALLS]f[ARGS]5"),
        ("mistral", "[TOOL_CALLS]"),
        ("deepseek", "<｜tool▁calls▁begin｜>f"),
        ("deepseek", "<｜tool▁call▁begin｜>f<｜tool▁sep｜>"),
        ("deepseek", "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n{}"),
        ("phi", "<|tool_call|>f()<|/tool_call|>"),
    ],
)
def test_what_is_no_call_is_words_and_nothing_is_lost(form: ToolFormat, answer: str) -> None:
    assert outcome(form, answer) == outcome(form, *answer) == (answer, ())


def test_arguments_are_given_as_they_come_and_not_before_the_name_is_known() -> None:
    listener = Speech(tools="hermes", offered=OFFERED).listener()
    parts = ["<tool_call>", '{"name": "f', '", "argu', 'ments": ', '{"n', '": 1', "}}", "</tool_call>"]
    told = [[(piece.kind, piece.text) for piece in listener.feed(part)] for part in parts]
    arguments = Kind.ARGUMENTS
    assert told == [
        *[[], [], [], []],
        [(Kind.CALL, "f"), (arguments, '{"n')],
        [(arguments, '": 1')],
        [(arguments, "}"), (Kind.CALL_END, "")],
        [],
    ]


def test_arguments_that_are_cut_are_given_as_far_as_they_came() -> None:
    assert outcome("hermes", 'a <tool_call>{"name": "f", "arguments": {"n": "') == ("a", (Call("f", '{"n": "'),))


def test_what_is_wrong_behind_the_arguments_is_words() -> None:
    assert outcome("hermes", '<tool_call>{"name": "f", "arguments": {"n": 1} so') == (" so", (F,))


def test_an_answer_may_end_with_its_first_call() -> None:
    answer = '<tool_call>{"name": "f", "arguments": {"n": 1}}</tool_call><tool_call>{"name": "get_time"}</tool_call>'
    for parts in ([answer], list(answer)):
        listener, pieces = listen("hermes", parts, one_call=True)
        assert (listener.calls, listener.over, pieces[-1].kind) == ((F,), True, Kind.CALL_END)
        assert listener.taken == answer.index("}}") + 1


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=6)
    | st.sampled_from(['"}{', "\\", "</tool_call>", "é🙂"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
ARGUMENTS = st.lists(st.dictionaries(st.text(max_size=4), VALUES, max_size=3), min_size=1, max_size=3)


def written(form: ToolFormat, arguments: list[str]) -> str:
    calls = [f'{{"name": "f", "arguments": {one}}}' for one in arguments]
    match form:
        case "hermes":
            return "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)
        case "llama3":
            return "; ".join(call.replace('"arguments"', '"parameters"', 1) for call in calls)
        case "mistral":
            return "".join(f"[TOOL_CALLS]f[ARGS]{one}" for one in arguments)
        case "deepseek":
            inner = (f"<｜tool▁call▁begin｜>f<｜tool▁sep｜>{one}<｜tool▁call▁end｜>" for one in arguments)
            return f"<｜tool▁calls▁begin｜>{''.join(inner)}<｜tool▁calls▁end｜>"
        case _:
            return f"<|tool_call|>[{', '.join(calls)}]<|/tool_call|>"


@given(ARGUMENTS, st.sampled_from(list(FORMS)), st.lists(st.integers(0, 400), max_size=8), st.booleans())
@example([{"a": '}\\"{'}], "hermes", [40, 41, 42, 43], False)
def test_any_arguments_come_through_any_cut(
    arguments: list[dict[str, object]], form: ToolFormat, cuts: list[int], ascii_only: bool
) -> None:
    texts = [json.dumps(one, ensure_ascii=ascii_only) for one in arguments]
    answer = written(form, texts)
    places = sorted({min(cut, len(answer)) for cut in cuts} | {0, len(answer)})
    parts = [answer[start:end] for start, end in pairwise(places)]
    assert outcome(form, *parts) == ("", tuple(Call("f", text) for text in texts))


NOISE = st.lists(
    st.sampled_from(
        [
            *(
                "<tool_call>",
                "</tool_call>",
                '{"name": "f", ',
                '"arguments": ',
                "{",
                "}",
                "[",
                "]",
                '"',
                "\\",
                ",",
                ":",
            ),
            *("[TOOL_CALLS]", "[ARGS]", "f", "<|python_tag|>", "<function=f>", "<parameter=n>", "</parameter>"),
            *(
                "</function>",
                "<｜tool▁call▁begin｜>",
                "<｜tool▁sep｜>",
                "<|tool_call|>",
                " ",
                "\n",
                "1",
                "null",
                ";",
                "é",
            ),
        ]
    ),
    max_size=14,
)


@given(NOISE.map("".join), st.sampled_from(list(FORMS)), st.lists(st.integers(0, 200), max_size=6))
def test_whatever_comes_no_cut_matters(answer: str, form: ToolFormat, cuts: list[int]) -> None:
    places = sorted({min(cut, len(answer)) for cut in cuts} | {0, len(answer)})
    parts = [answer[start:end] for start, end in pairwise(places)]
    assert outcome(form, *parts) == outcome(form, answer) == outcome(form, *answer)


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "string"}, "5", '"5"'),
        ({"type": ["string", "null"]}, "null", "null"),
        ({}, "true", '"true"'),
        ({"type": "boolean"}, "True", "true"),
        ({"type": "number"}, " 1.5 ", "1.5"),
        ({"type": "number"}, "NaN", '"NaN"'),
        ({"type": "array"}, '["a"]', '["a"]'),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "None", "null"),
        ({"type": "object"}, "{no", '"{no"'),
    ],
)
def test_bare_values_are_of_the_schema_s_kind(schema: dict[str, object], text: str, value: str) -> None:
    offered: dict[str, dict[str, object]] = {"f": {"properties": {"k": schema}}}
    listener = Speech(tools="hermes", offered=offered).listener()
    listener.feed(f"<tool_call><function=f><parameter=k>\n{text}\n</parameter></function></tool_call>")
    assert listener.calls == (Call("f", f'{{"k": {value}}}'),)
