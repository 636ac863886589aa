"""Configuration files: every problem at once, each with its place, and nothing that YAML readers disagree on."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from sidecar import yamlfile
from sidecar.yamlfile import ConfigInvalidError, Problem


class Inner(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    port: Annotated[int, Meta(ge=0, le=65535)] = 80
    wait_s: Annotated[float, Meta(gt=0)] = 1.0
    on: bool = False
    name: Annotated[str, Meta(min_length=1, max_length=8, pattern="^[a-z]+$")] = "inner"


class Outer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    version: Literal[1]
    inner: Inner = Inner()
    limit: Annotated[int, Meta(ge=1)] | Literal["unlimited"] = "unlimited"
    words: Annotated[list[str], Meta(max_length=3)] = []
    tiers: dict[str, Inner] = {}
    maybe: int | None = None


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.yaml"


def problems(path: Path, text: str | bytes, **environ: str) -> list[tuple[int, int, str]]:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigInvalidError) as caught:
        yamlfile.load(path, Outer, environ=environ, env_prefix="T__")
    assert {problem.path for problem in caught.value.problems} <= {str(path), *environ}
    return [(problem.line, problem.column, problem.message) for problem in caught.value.problems]


def read(path: Path, text: str, **environ: str) -> Outer:
    path.write_text(text, "utf-8")
    return yamlfile.load(path, Outer, environ=environ, env_prefix="T__")


def test_a_good_file_becomes_its_type(path: Path) -> None:
    value = read(
        path,
        "version: 1\ninner: {port: 0, wait_s: 2, on: true, name: abc}\nlimit: 5\nwords: [a, 'no', \"1\", no]\n"
        "tiers:\n  free: {port: 1}\n  'on': {}\nmaybe: null\n".replace("[a, 'no', \"1\", no]", "['no', \"1\", no]"),
    )
    assert value == Outer(
        version=1,
        inner=Inner(port=0, wait_s=2.0, on=True, name="abc"),
        limit=5,
        words=["no", "1", "no"],
        tiers={"free": Inner(port=1), "on": Inner()},
    )
    assert isinstance(value.inner.wait_s, float)


def test_every_problem_is_told_in_the_order_of_the_file(path: Path) -> None:
    text = "version: 2\ninner:\n  prot: 1\n  port: 70000\n  on: yes\nwords: [1]\nlimit: unlimted\n"
    found = problems(path, text)
    assert [place[:2] for place in found] == [(1, 10), (3, 3), (4, 9), (5, 7), (6, 9), (7, 8)]
    assert found[1][2] == "unknown field 'prot'; did you mean 'port'?"
    assert found[2][2] == "expected a whole number from 0 to 65535, got 70000"
    assert "this word is a boolean in YAML 1.1" in found[3][2]
    assert "quotes" in found[4][2]
    assert "did you mean 'unlimited'?" in found[5][2]


@pytest.mark.parametrize(
    ("written", "hint"),
    [
        ("010", "write 10, or 8 if it was meant as octal"),
        ("089", "write 89"),
        ("0x1F", "write 31"),
        ("0o17", "write 15"),
        ("0b11", "write 3"),
        ("1_000", "write 1000"),
        ("+5", "write 5"),
        ("1e3", "write 1000"),
        ("12:30", "base-60 number 750"),
        ("no", "boolean in YAML 1.1"),
        ("Off", "boolean in YAML 1.1"),
        ("True", "write true"),
        ("'5'", "take the quotes away"),
        ("9999999999999999999999", "too large"),
        (".inf", "infinity"),
    ],
)
def test_f13_a_number_in_a_form_readers_disagree_on_is_told_what_to_write(path: Path, written: str, hint: str) -> None:
    ((line, column, message),) = problems(path, f"version: 1\ninner:\n  port: {written}\n")
    assert (line, column) == (3, 9)
    assert hint in message


@pytest.mark.parametrize(("written", "hint"), [(".5", "write 0.5"), ("5.", "write 5"), ("1e-2", "write 0.01")])
def test_decimals_are_plain(path: Path, written: str, hint: str) -> None:
    ((*_, message),) = problems(path, f"version: 1\ninner: {{wait_s: {written}}}\n")
    assert hint in message


@pytest.mark.parametrize("written", ["1", "1.5", "true", "null", "", "010", "12:30"])
def test_f13_text_that_looks_like_something_else_wants_quotes(path: Path, written: str) -> None:
    ((line, column, message),) = problems(path, f"version: 1\ninner:\n  name: {written}\n")
    assert (line, column) == (3, 9 if written else 8)
    assert message.startswith("expected text, ")


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("''", "must have at least 1 character"),
        ("abcdefghi", "must have at most 8 characters, has 9"),
        ("ABC", "'ABC' does not match ^[a-z]+$"),
    ],
)
def test_text_has_its_bounds(path: Path, written: str, message: str) -> None:
    assert problems(path, f"version: 1\ninner: {{name: {written}}}\n") == [(2, 15, message)]


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("version: &a 1\n", (1, 10), "anchors are not allowed"),
        ("version: 1\nwords: *a\n", (2, 8), "aliases are not allowed"),
        ("version: !!int 1\n", (1, 10), "tags"),
        ("version: 1\nversion: 1\n", (2, 1), "'version' stands here twice, first on line 1"),
        ("version: 1\ntiers: {<<: {}}\n", (2, 9), "merge keys"),
        ("version: 1\ntiers: {? [a] : {}}\n", (2, 11), "a key must be text"),
        ("version: 1\ntiers: {1: {}}\n", (2, 9), "quotes"),
        ("version: 1\n---\nversion: 1\n", (2, 1), "a second document"),
        ("version: 1\n\tinner: 2\n", (2, 1), "cannot start any token"),
        ("version: [1\n", (2, 1), "expected ',' or ']'"),
        ("version: 1\nx: \x07\n", (2, 4), "control character"),
        ("version: 1\nwords: " + "[" * 25 + "]" * 25 + "\n", (2, 27), "nested deeper than 20 levels"),
        ("version: 1\ninner: [1]\n", (2, 8), "expected a mapping, but this is a list"),
        ("version: 1\nwords: {a: 1}\n", (2, 8), "expected a list, but this is a mapping"),
        ("version: 1\nwords: [a, b, c, d]\n", (2, 8), "must have at most 3 entries, has 4"),
        ("version: 1\ninner:\n", (2, 7), "expected a mapping, there is nothing here"),
        ("inner: {}\n", (1, 1), "missing field 'version'"),
        ("", (1, 1), "missing field 'version'"),
        ("# nothing\n", (1, 1), "missing field 'version'"),
        ("hello\n", (1, 1), "expected a mapping, got hello"),
    ],
)
def test_f13_what_is_not_allowed_is_told_where_it_stands(
    path: Path, text: str, place: tuple[int, int], message: str
) -> None:
    found = problems(path, text)
    assert found[0][:2] == place, found
    assert message in found[0][2]
    assert len(found) == 1


def test_bytes_that_are_not_utf8_have_a_place(path: Path) -> None:
    assert problems(path, b"version: 1\nx: \xff\n") == [(2, 4, "is not UTF-8 from here on")]


def test_f13_a_file_that_is_too_long_is_not_read(path: Path) -> None:
    assert problems(path, b"#" * (yamlfile.MAX_BYTES + 1)) == [(0, 0, f"is longer than {yamlfile.MAX_BYTES} bytes")]


def test_a_missing_file_is_a_problem(path: Path) -> None:
    with pytest.raises(ConfigInvalidError) as caught:
        yamlfile.read(path, Outer)
    assert str(caught.value) == f"{path}: there is no such file"


def test_a_folder_in_place_of_a_file_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalidError, match="cannot be read: Is a directory"):
        yamlfile.read(tmp_path, Outer)


def test_variables_take_the_place_of_values(path: Path) -> None:
    value = read(
        path,
        "version: 2\ninner: {port: x}\n",
        T__VERSION="1",
        T__INNER__PORT="443",
        T__INNER__NAME="no",
        T__WORDS='[a, "1"]',
        T__TIERS__FREE__ON="true",
        OTHER="1",
    )
    expected = Inner(port=443, name="no")
    assert value == Outer(version=1, inner=expected, words=["a", "1"], tiers={"free": Inner(on=True)})


def test_a_variable_is_text_where_text_is_expected(path: Path) -> None:
    assert read(path, "version: 1\n", T__WORDS='["010"]').words == ["010"]
    class_ = msgspec.defstruct("class_", [("a", str)], frozen=True)
    path.write_text("a: x\n")
    assert yamlfile.load(path, class_, environ={"T__A": "010"}, env_prefix="T__").a == "010"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("T__INNER__PORT", "0x10", "write 16"),
        ("T__INNER__PROT", "1", "did you mean 'port'?"),
        ("T__INNER", "{port: -1}", "from 0 to 65535, got -1"),
        ("T__INNER__", "1", "expected a name such as T__SECTION__KEY"),
        ("T__WORDS", "[a", "expected ',' or ']'"),
        ("T__WORDS__0", "a", "goes into a list"),
    ],
)
def test_a_wrong_variable_is_a_problem_with_its_name(path: Path, name: str, value: str, message: str) -> None:
    ((line, _, said),) = problems(path, "version: 1\nwords: [b]\n", **{name: value})
    assert line == 0
    assert message in said


def test_a_problem_of_a_variable_is_shown_without_a_place() -> None:
    assert str(Problem("T__A", 0, 0, "wrong")) == "T__A: wrong"
    assert str(Problem("a.yaml", 3, 1, "wrong")) == "a.yaml:3:1: wrong"


def test_a_document_tells_where_values_and_keys_stand(path: Path) -> None:
    path.write_text("version: 1\ntiers:\n  free:\n    port: 5\nwords:\n  - a\n  - b\n")
    document = yamlfile.read(path, Outer)
    assert document.value.tiers["free"].port == 5
    assert document.position(("tiers", "free", "port")) == (4, 11)
    assert document.key_position(("tiers", "free")) == (3, 3)
    assert document.position(("words", 1)) == (7, 5)
    # What is left out has the place of what it would stand in.
    assert document.position(("tiers", "free", "on")) == (4, 5)
    assert document.key_position(("tiers", "paid")) == (3, 3)
    assert document.problem(("version",), "no") == Problem(str(path), 1, 10, "no")


def test_a_type_that_checks_itself_is_heard(path: Path) -> None:
    class Checked(msgspec.Struct):
        a: int

        def __post_init__(self) -> None:
            raise ValueError("a is not liked")

    path.write_text("a: 1\n")
    with pytest.raises(ConfigInvalidError, match=r"x\.yaml:1:1: a is not liked"):
        yamlfile.read(path, Checked)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_f13_no_bytes_do_anything_but_give_a_value_or_problems(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(data)
    try:
        yamlfile.read(path, Outer)
    except ConfigInvalidError as exc:
        said = exc.problems
    else:
        return
    assert said


@given(
    st.builds(
        lambda port, wait, on, limit, maybe: {
            "version": 1,
            "inner": {"port": port, "wait_s": wait / 8, "on": on},
            "limit": limit,
            "maybe": maybe,
        },
        st.integers(0, 65535),
        st.integers(1, 10**6),
        st.booleans(),
        st.integers(1, 10**15) | st.just("unlimited"),
        st.none() | st.integers(-(10**9), 10**9),
    )
)
def test_json_is_read_as_it_is(tmp_path_factory: pytest.TempPathFactory, data: dict[str, object]) -> None:
    path = tmp_path_factory.getbasetemp() / "json.yaml"
    path.write_bytes(msgspec.json.encode(data))
    assert yamlfile.read(path, Outer).value == msgspec.convert(data, Outer)
