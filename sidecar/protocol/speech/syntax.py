"""How each form writes calls, for a grammar: what makes a model call, or call rightly once it begins to.

Grammars are xgrammar's structural tags, as JSON: https://xgrammar.mlc.ai/docs/tutorials/structural_tag.html. They write
what the form's reader reads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sidecar.protocol.speech import deepseek, hermes, mistral, phi, thoughts
from sidecar.protocol.speech.dialect import FORMS, Dialect

Format = dict[str, object]

# Between two parts of JSON: spaces without end would be an answer without end.
_MOST_SPACES: Final = 1
_NAME: Final = "NAME"


@dataclass(frozen=True, slots=True)
class Syntax:
    """What a form writes around calls: before all of them and behind, around one's arguments, and between two.

    `trigger` is what a call cannot begin without, and other words seldom have.
    """

    opening: str
    call_begin: str
    call_end: str
    separator: str
    closing: str
    trigger: str

    def begin(self, name: str) -> str:
        """What stands before the arguments of a call."""
        return self.call_begin.replace(_NAME, name)


_OBJECT: Final = '{"name": "NAME", "arguments": '
SYNTAXES: Final[dict[str, Syntax]] = {
    "hermes": Syntax("", f"{hermes.BEGIN}\n{_OBJECT}", f"}}\n{hermes.END}", "\n", "", hermes.BEGIN),
    "llama3": Syntax("", '{"name": "NAME", "parameters": ', "}", "; ", "", '{"name": '),
    "mistral": Syntax(f"{mistral.BEGIN}[", _OBJECT, "}", ", ", "]", mistral.BEGIN),
    "deepseek": Syntax(
        deepseek.BEGIN,
        f"{deepseek.CALL_BEGIN}NAME{deepseek.SEPARATOR}",
        deepseek.CALL_END,
        "",
        deepseek.END,
        deepseek.BEGIN,
    ),
    "phi": Syntax(f"{phi.BEGIN}[", _OBJECT, "}", ", ", f"]{phi.END}", phi.BEGIN),
}


def written(dialect: Dialect) -> tuple[str, ...]:
    """The markers that grammars have of a model: also where they are control tokens, an answer may follow with them."""
    own = thoughts.MARKERS if dialect.thinks else ()
    if dialect.tools == "none":
        return own
    syntax = SYNTAXES[dialect.tools]
    text = syntax.opening + syntax.call_begin + syntax.call_end + syntax.closing
    return (*own, *(marker for marker in FORMS[dialect.tools].markers if marker in text))


def calls(syntax: Syntax, schemas: Mapping[str, Format], *, several: bool) -> Format:
    """Calls and nothing else: one, or as many as the model wants. `schemas`: of the arguments, by the tools' names."""
    more = [_more(syntax, schemas)] if several else []
    return _sequence([_text(syntax.opening), _call(syntax, schemas), *more, _text(syntax.closing)])


def words_or_calls(syntax: Syntax, schemas: Mapping[str, Format], *, several: bool) -> Format:
    """Any words, but what begins as a call goes on as one."""
    more = [_more(syntax, schemas)] if several else []
    tags: list[Format] = []
    for name, schema in schemas.items():
        content, end = json_schema(schema), syntax.call_end
        if syntax.closing:
            content, end = _sequence([content, _text(syntax.call_end), *more]), syntax.closing
        tags.append({"type": "tag", "begin": syntax.opening + syntax.begin(name), "content": content, "end": end})
    return {"type": "triggered_tags", "triggers": [syntax.trigger], "tags": tags, "stop_after_first": not several}


def behind_thoughts(form: Format, *, inside: bool) -> Format:
    """The same behind thoughts: those that the answer begins within, or its own if it has any."""
    begin = "" if inside else thoughts.BEGIN
    thought: Format = {"type": "tag", "begin": begin, "content": {"type": "any_text"}, "end": thoughts.END}
    space: Format = {"type": "regex", "pattern": "\\n{0,2}"}
    before = _sequence([thought, space])
    return _sequence([before if inside else {"type": "optional", "content": before}, form])


def either(elements: Sequence[Format]) -> Format:
    return elements[0] if len(elements) == 1 else {"type": "or", "elements": list(elements)}


def json_schema(schema: Format) -> Format:
    return {"type": "json_schema", "json_schema": schema, "max_whitespace_cnt": _MOST_SPACES}


def _call(syntax: Syntax, schemas: Mapping[str, Format]) -> Format:
    """Any one of them."""
    return either(
        [
            _sequence([_text(syntax.begin(name)), json_schema(schema), _text(syntax.call_end)])
            for name, schema in schemas.items()
        ]
    )


def _more(syntax: Syntax, schemas: Mapping[str, Format]) -> Format:
    """Calls behind the first."""
    return {"type": "star", "content": _sequence([_text(syntax.separator), _call(syntax, schemas)])}


def _text(value: str) -> Format:
    return {"type": "const_string", "value": value}


def _sequence(elements: Sequence[Format]) -> Format:
    """Empty texts are left out: xgrammar refuses them."""
    return {"type": "sequence", "elements": [one for one in elements if one.get("value") != ""]}
