"""What a command says, to a terminal, to a pipe and to a program."""

import io
import json

import pytest

from proxy.cli.exits import CommandError, Exit
from proxy.cli.screen import Screen, counted
from sidecar.yamlfile import Problem
from tests.unit.proxy.cli.conftest import Terminal

pytestmark = pytest.mark.usefixtures("plain_terminal")


def a_screen(out: io.StringIO | None = None, **options: bool) -> tuple[Screen, io.StringIO, io.StringIO]:
    out, err = out or io.StringIO(), io.StringIO()
    return Screen(out, err, **options), out, err


def test_a_pipe_gets_tab_separated_lines() -> None:
    screen, out, _ = a_screen()
    screen.reply(None, lambda: screen.table(["NAME", "SIZE#"], [["a b", "1"], ["c", "22"]]))
    assert out.getvalue() == "a b\t1\nc\t22\n"


def test_a_pipe_gets_no_line_for_no_rows() -> None:
    screen, out, _ = a_screen()
    screen.reply(None, lambda: screen.table(["NAME"], []))
    assert out.getvalue() == ""


def test_a_terminal_gets_a_table_with_a_header_and_colours() -> None:
    screen, out, _ = a_screen(Terminal())
    screen.reply(None, lambda: screen.table(["NAME", "SIZE#"], [["a", "1"]]))
    assert out.getvalue() == "\x1b[1mNAME   SIZE\x1b[0m\na         1\n"


def test_an_identifier_is_never_cut() -> None:
    screen, out, _ = a_screen(Terminal())
    screen.reply(None, lambda: screen.table(["KEY", "NAME"], [["k" * 90, "n" * 90]]))
    assert "k" * 90 + "   " + "n" * 90 in out.getvalue()


def test_wide_characters_take_two_columns() -> None:
    screen, out, _ = a_screen(Terminal())
    screen.reply(None, lambda: screen.table(["A", "B"], [["東京", "x"], ["abcd", "y"]]))
    assert out.getvalue().splitlines()[1:] == ["東京   x", "abcd   y"]


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    screen, out, _ = a_screen(Terminal())
    screen.out.print("plain", style="red")
    assert "\x1b[31m" not in out.getvalue()


def test_a_long_line_is_never_broken() -> None:
    screen, out, _ = a_screen(Terminal())
    screen.reply(None, lambda: "x" * 500)
    assert "x" * 500 in out.getvalue()


def test_a_name_in_brackets_is_no_markup() -> None:
    screen, out, _ = a_screen()
    screen.reply(None, lambda: "[bold]key[/bold] :smile:")
    assert out.getvalue() == "[bold]key[/bold] :smile:\n"


def test_a_program_gets_one_document_and_people_s_words_are_not_made() -> None:
    screen, out, _ = a_screen(as_json=True)
    screen.reply({"key_id": "abc"}, lambda: pytest.fail("nobody reads this"))
    assert json.loads(out.getvalue()) == {"key_id": "abc"}


def test_quiet_leaves_remarks_out_and_warnings_in() -> None:
    screen, _, err = a_screen(quiet=True)
    screen.remark("by the way")
    screen.warn("look")
    assert err.getvalue() == "Warning: look\n"


def test_a_failure_is_said_on_stderr_and_to_a_program_on_stdout() -> None:
    screen, out, err = a_screen(as_json=True)
    screen.failed(CommandError("It broke.", hint="Mend it.", code=Exit.NOT_REACHABLE))
    assert err.getvalue() == "Error: It broke.\nMend it.\n"
    assert json.loads(out.getvalue()) == {"error": {"message": "It broke.", "hint": "Mend it.", "exit_code": 4}}


def test_every_problem_has_a_line_that_begins_with_its_place() -> None:
    screen, out, err = a_screen()
    screen.invalid([Problem("a.yaml", 4, 26, "is no number"), Problem("A__B", 0, 0, "is unknown")], "Do it.")
    assert err.getvalue() == "a.yaml:4:26: is no number\nA__B: is unknown\n2 problems to repair. Do it.\n"
    assert out.getvalue() == ""


def test_counting_knows_one_from_many() -> None:
    assert (counted(1, "tier"), counted(0, "tier"), counted(2, "tier")) == ("1 tier", "0 tiers", "2 tiers")
