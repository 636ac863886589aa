"""What a client wrote is compiled apart: whatever it does to the compiler, the process goes on and says so."""

import os
import signal
from typing import Any

import pytest

from sidecar.grammars import __main__ as process
from sidecar.grammars.__main__ import compile_apart
from sidecar.grammars.compiling import GrammarCompiler
from sidecar.wire.grammars import Compiled, Grammar, GrammarKind, Refused
from tests.fakes.grammars import VOCABULARY

ANY = Grammar(GrammarKind.REGEX, "a")


class FakeCompiler:
    """Does what its name says to the child it is in."""

    def __init__(self, does: str) -> None:
        self._does = does

    def compile(self, _: Grammar) -> Any:
        match self._does:
            case "loop":
                while True:
                    pass
            case "abort":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exit":
                os._exit(0)
            case "raise":
                raise AttributeError("a mistake of ours")
            case "large":
                return Compiled(bytes(process.MOST_COMPILED_BYTES + 1))
        return Compiled(b"x" * 200_000)


def apart(does: str, most_wall_s: float = 30.0) -> Any:
    compiler: Any = FakeCompiler(does)
    return compile_apart(compiler, ANY, most_wall_s)


def test_what_is_compiled_comes_back_whole() -> None:
    assert apart("well") == Compiled(b"x" * 200_000)


def test_c5_a_compiler_that_takes_too_long_is_ended() -> None:
    answer = apart("loop", 0.05)
    assert isinstance(answer, Refused)
    assert "too long" in answer.reason


@pytest.mark.parametrize("does", ["abort", "exit", "raise"])
def test_c5_a_compiler_that_fails_costs_its_child(does: str) -> None:
    assert apart(does) == Refused("the compiler failed on it")


def test_c5_what_is_too_large_is_refused() -> None:
    assert apart("large") == Refused("it is too large when compiled; make it smaller")


@pytest.mark.parametrize(
    ("kind", "source", "words"),
    [
        (GrammarKind.EBNF, "root = a", "EBNF"),
        (GrammarKind.EBNF, "root ::= b", "not defined"),
        (GrammarKind.STRUCTURAL_TAG, "{}", ""),
        (GrammarKind.JSON_SCHEMA, '{"$ref":"#"}', "no answer can follow it"),
    ],
)
def test_what_is_wrong_is_said(kind: GrammarKind, source: str, words: str) -> None:
    answer = compile_apart(GrammarCompiler(VOCABULARY), Grammar(kind, source), 30.0)
    assert isinstance(answer, Refused)
    assert words in answer.reason
    assert ".cc:" not in answer.reason
