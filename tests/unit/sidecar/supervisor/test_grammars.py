"""What an engine is told of grammars: each once, the vocabulary with the first, and the oldest forgotten."""

import pytest

from sidecar.grammars.compiler import CompiledGrammar
from sidecar.supervisor import grammars
from sidecar.supervisor.grammars import ToldGrammars
from sidecar.wire.frames import Define, Forget


def made(key: str, size: int = 3) -> CompiledGrammar:
    return CompiledGrammar(key, b"v", b"x" * size)


def test_each_is_told_once_and_the_vocabulary_with_the_first() -> None:
    told = ToldGrammars()
    assert told.tell(made("a")) == [Define("a", b"xxx", b"v")]
    assert told.tell(made("b")) == [Define("b", b"xxx", b"")]
    assert told.tell(made("a")) == []


def test_the_oldest_is_forgotten_never_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammars, "MOST_TOLD_BYTES", 7)
    told = ToldGrammars()
    told.tell(made("a"))
    told.tell(made("b"))
    told.tell(made("a"))
    assert told.tell(made("c"))[1:] == [Forget("b")]
    assert told.tell(made("d", 9))[1:] == [Forget("a"), Forget("c")]
    assert told.tell(made("b"))[1:] == [Forget("d")]
