"""Structured fields: what a well-kept library reads is read the same, and what breaks the grammar is refused."""

from typing import Any

import http_sf
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.structured_fields import FieldError, byte_sequences, inner_lists

SIGNATURE_INPUT = (
    'a=("@method" "content-digest";key="sha-256");created=1618884473;keyid="k\\"\\\\";ok;no=?0;raw=:YQ==:, b=()'
)


def as_the_library_has_it(text: str) -> dict[str, Any]:
    return dict(http_sf.parse(text.encode(), tltype="dictionary"))


def test_a_signature_s_input_is_read_and_written_as_the_library_does() -> None:
    found, theirs = inner_lists(SIGNATURE_INPUT), as_the_library_has_it(SIGNATURE_INPUT)
    assert list(found) == list(theirs)
    for label, one in found.items():
        items, parameters = theirs[label]
        assert [(item.value, dict(item.parameters)) for item in one.items] == [(v, dict(p)) for v, p in items]
        assert dict(one.parameters) == dict(parameters)
    assert ", ".join(f"{label}={one.text}" for label, one in found.items()) == SIGNATURE_INPUT


@pytest.mark.parametrize(
    "odd", ['  a = ("x")', 'a=( "x"   "y" ) ; created=1', 'a=("x"),\tb=("y")', 'a=("x");  n=0012 ']
)
def test_blanks_are_where_the_library_allows_them(odd: str) -> None:
    try:
        theirs = as_the_library_has_it(odd)
    except ValueError:
        with pytest.raises(FieldError):
            inner_lists(odd)
    else:
        assert list(inner_lists(odd)) == list(theirs)


@pytest.mark.parametrize(
    "broken",
    [
        "",
        "a",
        "a=",
        "a=1",
        "A=()",
        'a=("x"',
        'a=("x""y")',
        'a=("x"),',
        'a=("x") b=("y")',
        'a=("x"), a=("y")',
        'a=("x");n=1;n=2',
        'a=("x");n=1.5',
        'a=("x");n=1234567890123456',
        'a=("x");n=token',
        'a=("x");n=@1618884473',
        'a=("x");n="ä"',
        'a=("x");n="\\x"',
        'a=("x");n=:%%:',
        'a=("x");=1',
        "a=(token)",
        "a=('x')",
        'a=("x")\x00',
    ],
)
def test_what_breaks_the_grammar_is_refused(broken: str) -> None:
    with pytest.raises(FieldError):
        inner_lists(broken)


@pytest.mark.parametrize("broken", ["a=:YQ:", "a=:Y Q==:", "a=YQ==", "a=:YQ==", 'a="YQ=="', "a=:YQ==:b"])
def test_broken_bytes_are_refused(broken: str) -> None:
    with pytest.raises(FieldError):
        byte_sequences(broken)


def test_bytes_are_read_with_their_parameters_passed_over() -> None:
    assert byte_sequences("sha-256=:YWJj:;n=1, b=::") == {"sha-256": b"abc", "b": b""}


PIECES = st.sampled_from(
    [
        "a",
        "b1",
        "*",
        "=",
        "(",
        ")",
        '"',
        "x",
        "\\",
        ";",
        ",",
        " ",
        "\t",
        ":",
        "YQ==",
        "?1",
        "?",
        "-",
        "7",
        ".",
        "é",
        "A",
    ]
)


@given(st.lists(PIECES, max_size=24).map("".join))
def test_whatever_comes_is_read_as_the_library_does_or_refused(text: str) -> None:
    """Where we are stricter we refuse; never do we read something else."""
    for read in (inner_lists, byte_sequences):
        try:
            found: dict[str, Any] = read(text)
        except FieldError:
            continue
        theirs = as_the_library_has_it(text)
        assert list(found) == list(theirs)
        for label, one in found.items():
            value, parameters = theirs[label]
            if isinstance(one, bytes):
                assert one == value
            else:
                assert [(item.value, dict(item.parameters)) for item in one.items] == [(v, dict(p)) for v, p in value]
                assert dict(one.parameters) == dict(parameters)
