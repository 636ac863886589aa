"""What is seen while the model loads."""

import io
import re

import pytest

from proxy.cli.loadbar import LoadBar
from proxy.cli.screen import Screen
from tests.unit.proxy.cli.conftest import Terminal

pytestmark = pytest.mark.usefixtures("plain_terminal")


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
