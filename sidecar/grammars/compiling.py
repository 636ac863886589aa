"""xgrammar's compiler behind our own words. Synchronous, and as slow as what it is given."""

import random
import re
import time
from typing import Final

import numpy as np
import torch
import xgrammar

from sidecar.wire.grammars import Compiled, Grammar, GrammarKind, Refused, Vocabulary

# Between two parts of a JSON text: a model may write `{"a": 1}` or `{"a":1}`, and never spaces without end.
_MOST_SPACES: Final = 1
_BITS: Final = 32
# What is kept of parts of grammars; the children that compile have it, and what they add goes with them.
_MOST_CACHED_BYTES: Final = 256 * 1024 * 1024
# A string whose length is bounded is the slowest part of common schemas, for any bound above the longest token: it is
# compiled once here.
_SLOW_PART: Final = '{"type":"string","maxLength":1024}'
# What xgrammar 0.2 lets a string of bounded length have, as it writes it: control characters, too, which JSON does not.
_LOOSE_CHARACTER: Final = r"(([^\"\\\r\n]))"
_CHARACTER: Final = r"(([^\0-\x1f\"\\]))"
# Digits without end, and exponents that no double has, as it writes them: a small model may never stop.
_DIGITS: Final = (
    (re.compile(r"\[1-9\] \[0-9\]\*"), "[1-9] [0-9]{0, 17}"),
    (re.compile(r"(\[eE\] \w+ \w+_digits)\{1, -1\}"), r"\1{1, 2}"),
    (re.compile(r"(\w+_digits)\{1, -1\}"), r"\1{1, 17}"),
)
# How it writes some patterns: followed in this way they match too much at times, and come to dead ends at others.
_AUTOMATON: Final = re.compile(r'Regex\("((?:[^"\\]|\\.)*)", json_string=true\)')
_ESCAPES: Final = {"n": "\n", "r": "\r", "t": "\t", "0": "\0"}
# How long the next token's mask may take on average, of a processor's time, on a walk of so many tokens.
_MOST_MASK_S: Final = 0.004
_WALK: Final = 64


class GrammarCompiler:
    """Compiles for one vocabulary."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._info = xgrammar.TokenizerInfo(
            vocabulary.tokens,
            xgrammar.VocabType.RAW,
            vocab_size=len(vocabulary.tokens),
            stop_token_ids=vocabulary.stop_token_ids,
        )
        self._size = len(vocabulary.tokens)
        # One thread: it is forked.
        self._compiler = xgrammar.GrammarCompiler(self._info, max_threads=1, cache_limit_bytes=_MOST_CACHED_BYTES)
        self._compile(Grammar(GrammarKind.JSON_SCHEMA, _SLOW_PART))

    def vocabulary(self) -> bytes:
        return self._info.serialize_json().encode()

    def compile(self, grammar: Grammar) -> Compiled | Refused:
        try:
            compiled = self._compile(grammar)
        except MemoryError:
            return Refused("it takes too much memory to compile; make it smaller")
        except (RuntimeError, ValueError) as exc:
            # xgrammar's errors are RuntimeErrors, but for that of a name that it does not know.
            return Refused(_words(exc))
        refusal = self._try(compiled)
        if refusal is not None:
            return refusal
        return Compiled(compiled.serialize_json().encode())

    def _compile(self, grammar: Grammar) -> xgrammar.CompiledGrammar:
        source = grammar.source
        if grammar.kind is GrammarKind.REGEX:
            return self._compiler.compile_regex(source)
        if grammar.kind is GrammarKind.EBNF:
            return self._compiler.compile_grammar(source)
        if grammar.kind is GrammarKind.STRUCTURAL_TAG:
            return self._compiler.compile_grammar(_mended(str(xgrammar.Grammar.from_structural_tag(source))))
        read = xgrammar.Grammar.from_json_schema(
            source, any_whitespace=True, max_whitespace_cnt=_MOST_SPACES, strict_mode=True
        )
        return self._compiler.compile_grammar(_mended(str(read)))

    def _try(self, compiled: xgrammar.CompiledGrammar) -> Refused | None:
        """Follow it for some tokens: each step of the engine waits for its masks."""
        matcher = xgrammar.GrammarMatcher(compiled)
        mask = torch.empty((1, -(-self._size // _BITS)), dtype=torch.int32)
        choose = random.Random(0)
        began_s = time.thread_time()
        taken = 0
        while taken < _WALK and not matcher.is_terminated():
            matcher.fill_next_token_bitmask(mask)
            allowed = np.flatnonzero(np.unpackbits(mask.numpy().view(np.uint8), bitorder="little", count=self._size))
            if not len(allowed):
                return Refused("no answer can follow it")
            matcher.accept_token(int(choose.choice(allowed)))
            taken += 1
        if time.thread_time() - began_s > _MOST_MASK_S * _WALK:
            return Refused("it takes too long to follow; repeat fewer things, or simpler ones")
        return None


def _mended(ebnf: str) -> str:
    """A grammar of xgrammar 0.2 without what is wrong in some: see the constants, and `tests/unit/sidecar/grammars`."""
    patterns: list[str] = []

    def rule(found: re.Match[str]) -> str:
        name = f"pattern_{len(patterns)}"
        rules = str(xgrammar.Grammar.from_regex(_unescaped(found[1])))
        patterns.append(re.sub(r"\broot(?=[_ )])", name, rules))
        return f"(({name}))"

    for loose, bounded in _DIGITS:
        ebnf = loose.sub(bounded, ebnf)
    text = _AUTOMATON.sub(rule, ebnf.replace(_LOOSE_CHARACTER, _CHARACTER))
    return "\n".join([text, *patterns])


def _unescaped(literal: str) -> str:
    """What a literal of the EBNF stands for."""

    def character(found: re.Match[str]) -> str:
        escape = found[1]
        return chr(int(escape[1:], 16)) if len(escape) > 1 else _ESCAPES.get(escape, escape)

    return re.sub(r"\\(U[0-9a-f]{8}|u[0-9a-f]{4}|x[0-9a-f]{2}|.)", character, literal)


def _words(exc: Exception) -> str:
    """What xgrammar says, without where in its source it says it."""
    text = " ".join(str(exc).split())
    _, found, said = text.partition(".cc:")
    if not found:
        return text
    return said.partition(": ")[2] or text
