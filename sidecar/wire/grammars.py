"""What an answer may be made to follow, and the messages between the front and its compiling process.

Front → process: `Vocabulary` once, then a `Grammar` at a time. Process → front, one for each: `Learnt`, `Compiled` or
`Refused`. Framed as in `frames`.
"""

import enum
import hashlib

import msgspec


class GrammarKind(enum.StrEnum):
    """How the source of a grammar is written. A structural tag is xgrammar's: JSON that joins the other kinds."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    EBNF = "ebnf"
    STRUCTURAL_TAG = "structural_tag"


class Grammar(msgspec.Struct, frozen=True, tag="grammar"):
    """What a whole answer follows. `param`: the field of the body that asks for it, which a refusal names."""

    kind: GrammarKind
    source: str
    param: str = "response_format"

    @property
    def key(self) -> str:
        """The same for the same language."""
        return hashlib.sha256(f"{self.kind}:{self.source}".encode()).hexdigest()


class Vocabulary(msgspec.Struct, frozen=True, tag="vocabulary"):
    """The bytes of each token, by id; empty for one that is no text, such as a control token.

    `stop_token_ids` may follow where a grammar is complete, and only there.
    """

    tokens: list[bytes]
    stop_token_ids: list[int]


class Learnt(msgspec.Struct, frozen=True, tag="learnt"):
    """The vocabulary as the engine takes it: xgrammar's JSON."""

    vocabulary: bytes


class Compiled(msgspec.Struct, frozen=True, tag="compiled"):
    """A grammar as the engine takes it: xgrammar's JSON."""

    compiled: bytes


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """Why a grammar cannot be compiled."""

    reason: str


CompilerCommand = Vocabulary | Grammar
CompilerReport = Learnt | Compiled | Refused
