"""Where a sequence is in its grammar: what may come next, also behind guesses, and what the sampler makes of it."""

import numpy as np
import pytest
import torch

from sidecar.engine.grammars import Constraint, Grammars, GrammarUnreadableError
from sidecar.engine.sampler import Row, sample
from sidecar.grammars.compiling import GrammarCompiler
from sidecar.wire.frames import Define, Sampling
from sidecar.wire.grammars import Compiled, Grammar, GrammarKind
from tests.fakes.grammars import STOP, VOCABULARY

SIZE = len(VOCABULARY.tokens)


def token(text: str) -> int:
    return VOCABULARY.tokens.index(text.encode())


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(VOCABULARY)


@pytest.fixture
def constraint(compiler: GrammarCompiler) -> Constraint:
    """Of `abc` or `abd`, and nothing else."""
    compiled = compiler.compile(Grammar(GrammarKind.REGEX, "ab[cd]"))
    assert isinstance(compiled, Compiled)
    grammars = Grammars(SIZE)
    grammars.define(Define("k", compiled.compiled, compiler.vocabulary()))
    grammars.close()
    found = grammars.constraint("k")
    assert found is not None
    return found


def allowed(mask: torch.Tensor) -> set[int]:
    bits = np.unpackbits(mask.numpy().view(np.uint8), bitorder="little", count=SIZE)
    return {int(at) for at in np.flatnonzero(bits)}


def test_a_grammar_is_followed_to_its_end(constraint: Constraint) -> None:
    assert allowed(constraint.masks(())[0]) == {token("a"), token("ab")}
    assert not constraint.take(token("ab"))
    assert allowed(constraint.masks(())[0]) == {token("c"), token("d")}
    assert not constraint.take(token("d"))
    assert allowed(constraint.masks(())[0]) == {STOP}
    assert constraint.take(STOP)


def test_guesses_leave_nothing_behind(constraint: Constraint) -> None:
    draft = (token("a"), token("b"), token("x"), token("c"))
    masks = constraint.masks(draft)
    assert masks.shape[0] == len(draft) + 1
    assert allowed(masks[1]) == {token("b")}
    assert allowed(masks[2]) == {token("c"), token("d")}
    # Nobody gets behind a guess that the grammar does not allow.
    assert len(allowed(masks[3])) == SIZE
    assert allowed(constraint.masks(())[0]) == {token("a"), token("ab")}
    assert len(constraint.masks((token("ab"), token("c"), STOP, STOP))) == 5
    assert allowed(constraint.masks(())[0]) == {token("a"), token("ab")}


def test_only_what_is_allowed_is_picked_and_logprobs_stay_the_models(constraint: Constraint) -> None:
    logits = torch.zeros(3, SIZE)
    logits[:, token("x")] = 9.0
    logits[:, token("a")] = 1.0
    greedy, free = Sampling(temperature=0), Sampling(seed=3)
    mask = constraint.masks(())[0]
    rows = [Row(greedy, [1], 1, (), 1, mask), Row(free, [1], 1, (), None, mask), Row(greedy, [1], 1)]
    picked = sample(logits, rows)
    assert picked[0].token == token("a")
    assert picked[1].token in {token("a"), token("ab")}
    assert picked[2].token == token("x")
    told = picked[0].logprobs
    assert told is not None
    assert told.top_ids == [token("x")]
    assert told.token == pytest.approx(torch.log_softmax(logits[0], -1)[token("a")].item(), abs=1e-5)


def test_a_grammar_that_was_not_told_or_is_broken_is_said_so(compiler: GrammarCompiler) -> None:
    grammars = Grammars(SIZE)
    with pytest.raises(GrammarUnreadableError, match="not known"):
        grammars.constraint("k")
    grammars.define(Define("k", b"{}", compiler.vocabulary()))
    grammars.close()
    with pytest.raises(GrammarUnreadableError):
        grammars.constraint("k")
    grammars.forget("k")
    grammars.forget("k")
