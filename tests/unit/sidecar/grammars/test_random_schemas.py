"""The promise of structured output: whatever a schema of the documented subset is, a finished answer follows it."""

import json
import random

import pytest
from jsonschema import Draft202012Validator, FormatChecker

from sidecar.engine.grammars import Grammars
from sidecar.grammars.compiling import GrammarCompiler
from sidecar.protocol.json_schema.normalise import normalise
from sidecar.wire.frames import Define
from sidecar.wire.grammars import Compiled, Grammar, GrammarKind
from tests.fakes.grammars import VOCABULARY, random_schema, say

SCHEMAS = 1000
PARTS = 10
# jsonschema knows `time` as draft 3 had it, without an offset.
FORMATS = FormatChecker(["date", "email", "ipv4", "ipv6", "uuid"])


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(VOCABULARY)


@pytest.mark.parametrize("part", range(PARTS))
def test_a_finished_answer_follows_its_schema(compiler: GrammarCompiler, part: int) -> None:
    finished = 0
    for seed in range(part, SCHEMAS, PARTS):
        choose = random.Random(seed)
        schema = random_schema(choose)
        compiled = compiler.compile(Grammar(GrammarKind.JSON_SCHEMA, normalise(schema)))
        assert isinstance(compiled, Compiled), (schema, compiled)
        grammars = Grammars(len(VOCABULARY.tokens))
        grammars.define(Define("k", compiled.compiled, compiler.vocabulary()))
        grammars.close()
        for _ in range(3):
            constraint = grammars.constraint("k")
            assert constraint is not None
            said = say(constraint, choose)
            if said is not None:
                finished += 1
                answer = json.loads(said)
                errors = list(Draft202012Validator(schema, format_checker=FORMATS).iter_errors(answer))
                assert not errors, (seed, schema, said, errors[0].message)
    # Most of them come to an end: else the promise would be empty.
    assert finished > 2 * SCHEMAS / PARTS
