"""What is seen while the model loads."""

import io
import re

import pytest

from proxy.cli.loadbar import LoadBar
from proxy.cli.screen import Screen


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def seen(err: io.StringIO, *, quiet: bool = False) -> str:
    with LoadBar(Screen(io.StringIO(), err, quiet=quiet), "m") as bar:
        for reason, phase in (
            ("starting", ""),
            ("unreachable", ""),
            ("loading", ""),
            ("loading", "read"),
            ("loading", "read"),
            ("loading", "parity"),
            ("loading", "read"),
            ("loading", "of a later release"),
        ):
            bar.show(reason, phase)
    return err.getvalue()


def test_a_pipe_gets_a_line_for_each_phase() -> None:
    assert seen(io.StringIO()).splitlines() == [
        "m: loading: reading the weights",
        "m: loading: comparing answers with it",
        "m: loading: reading the weights",
    ]


def test_a_terminal_gets_a_bar() -> None:
    shown = seen(Terminal())
    assert "━" in shown
    assert "m: loading" in shown


def test_no_color_leaves_the_bar_without_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    shown = seen(Terminal())
    assert "━" in shown
    assert not re.search(r"\x1b\[[0-9;]*3[0-9](;[0-9;]*)?m", shown)


def test_quiet_is_quiet() -> None:
    assert seen(io.StringIO(), quiet=True) == ""
    assert seen(Terminal(), quiet=True) == ""
