"""What a pattern becomes for the compiler matches what Python's `re` says it matches, and is JSON in a string."""

import json
import random
import re
from collections.abc import Iterator

import pytest

from sidecar.engine.grammars import Grammars
from sidecar.grammars import compiling
from sidecar.grammars.compiling import GrammarCompiler
from sidecar.protocol.json_schema.regex_writing import for_answer
from sidecar.protocol.json_schema.strings import string_schema
from sidecar.wire.frames import Define
from sidecar.wire.grammars import Compiled, Grammar, GrammarKind
from tests.fakes.grammars import PATTERNS, VOCABULARY, say

PATTERNS_TRIED = 200
ANCHORED = re.compile(r"\^|\$")


def random_pattern(choose: random.Random, depth: int = 0) -> str:
    """Of groups in groups, repeated in every way, over few characters, so that mistakes show."""
    atoms = ["a", "b", "c", r"\.", '"', r"\\", "[ab]", "[^a]", r"\d", "1"]
    parts = []
    for _ in range(choose.randint(1, 3)):
        if depth < 2 and choose.random() < 0.5:
            branches = [random_pattern(choose, depth + 1) for _ in range(choose.randint(1, 2))]
            part = "(" + "|".join(branches) + ")"
        else:
            part = choose.choice(atoms)
        parts.append(part + choose.choice(["", "", "?", "*", "+", "{2}", "{1,3}", "{0,1}", "{2,}"]))
    return "".join(parts)


@pytest.fixture(scope="module")
def compiler() -> Iterator[GrammarCompiler]:
    with pytest.MonkeyPatch.context() as patch:
        # A slow machine is no reason to refuse here.
        patch.setattr(compiling, "_MOST_MASK_S", 1.0)
        yield GrammarCompiler(VOCABULARY)


def said_of(compiler: GrammarCompiler, grammar: Grammar, choose: random.Random, most: int = 60) -> list[str]:
    compiled = compiler.compile(grammar)
    assert isinstance(compiled, Compiled), (grammar, compiled)
    grammars = Grammars(len(VOCABULARY.tokens))
    grammars.define(Define("k", compiled.compiled, compiler.vocabulary()))
    grammars.close()
    found = []
    for _ in range(6):
        constraint = grammars.constraint("k")
        assert constraint is not None
        said = say(constraint, choose, most)
        if said is not None:
            found.append(said.decode())
    return found


@pytest.mark.parametrize("part", range(4))
def test_what_is_said_matches_the_pattern(compiler: GrammarCompiler, part: int) -> None:
    told = 0
    for seed in range(part, PATTERNS_TRIED, 4):
        choose = random.Random(seed)
        pattern = random_pattern(choose)
        for said in said_of(compiler, Grammar(GrammarKind.REGEX, for_answer(pattern)), choose):
            assert re.fullmatch(pattern, said), (seed, pattern, said)
            told += 1
        schema = json.dumps(string_schema({"pattern": pattern}, "#"))
        for said in said_of(compiler, Grammar(GrammarKind.JSON_SCHEMA, schema), choose):
            assert re.search(pattern, json.loads(said)), (seed, pattern, said)
            told += 1
    assert told > PATTERNS_TRIED


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_string_matches_its_pattern(compiler: GrammarCompiler, pattern: str) -> None:
    schema = json.dumps(string_schema({"pattern": pattern}, "#"))
    found = said_of(compiler, Grammar(GrammarKind.JSON_SCHEMA, schema), random.Random(7), 1000)
    assert found
    assert all(re.search(pattern, json.loads(said)) for said in found)
