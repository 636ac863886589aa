"""What an answer must follow, by what a chat asks about its tools and its format: one grammar for all of it. Pure.

- A call that must come, or one of several: the answer is calls. None need come, but some are strict: what begins as a
  call goes on as one that fits. With a format, an answer without calls has it.
- The thoughts of a model that thinks stand before all that, and are free.
"""

import json
from collections.abc import Mapping
from typing import Final

from sidecar.protocol.json_schema.normalise import normalised
from sidecar.protocol.json_schema.values import SchemaError
from sidecar.protocol.requests import ChatRequest, Demand, GenerationRequest, ToolUse
from sidecar.protocol.speech import syntax
from sidecar.protocol.speech.dialect import Speech
from sidecar.protocol.speech.syntax import SYNTAXES, Format
from sidecar.tokenizer.messages import Tool
from sidecar.wire.errors import ApiError, bad_request
from sidecar.wire.grammars import Grammar, GrammarKind

_NOTHING: Final[Format] = {"type": "object", "properties": {}, "additionalProperties": False}
# The keywords of a schema that may stand beside properties without allowing others.
_PLAIN: Final = frozenset({"type", "properties", "required", "title", "description", "$schema"})
_ANYTHING: Final[Format] = {"type": "object", "additionalProperties": True}


def grammar_of(request: GenerationRequest, speech: Speech | None) -> Grammar | None:
    """None where the answer is free. Raises ApiError 400 for a schema that no grammar can follow."""
    asked = request.options.grammar
    if speech is None or not isinstance(request, ChatRequest):
        return asked
    use = request.tool_use
    form = None if use is None else _calls(use, speech, asked)
    if form is None:
        if asked is None or not speech.thinks:
            return asked
        form = _as_format(asked)
    if speech.thinks:
        form = syntax.behind_thoughts(form, inside=speech.inside)
    param = asked.param if use is None and asked is not None else "tools"
    source = json.dumps({"type": "structural_tag", "format": form}, ensure_ascii=False)
    return Grammar(GrammarKind.STRUCTURAL_TAG, source, param)


def _calls(use: ToolUse, speech: Speech, asked: Grammar | None) -> Format | None:
    """None where calls may be as they like, and so may all else."""
    forced = use.demand is not Demand.NONE
    strict = any(tool.strict for tool in use.callable)
    if not forced and not strict and asked is None:
        return None
    schemas = {tool.name: _schema(tool) if forced or tool.strict else _ANYTHING for tool in use.callable}
    written = SYNTAXES[speech.tools]
    if not forced and asked is None:
        return syntax.words_or_calls(written, schemas, several=use.parallel)
    # A tool that is called by name is called once.
    several = use.parallel and use.demand is not Demand.THIS
    calls = syntax.calls(written, schemas, several=several)
    return calls if forced or asked is None else syntax.either([_as_format(asked), calls])


def _schema(tool: Tool) -> Format:
    if tool.parameters is None or _names_none(tool.parameters):
        return _NOTHING
    try:
        return normalised({"type": "object", **tool.parameters})
    except SchemaError as exc:
        raise _refused(tool, exc) from exc


def _names_none(parameters: Mapping[str, object]) -> bool:
    """Whether this is how SDKs write a function without arguments; of an answer the same schema allows any."""
    return parameters.get("properties") == {} and not parameters.get("required") and parameters.keys() <= _PLAIN


def _refused(tool: Tool, exc: SchemaError) -> ApiError:
    return bad_request(f"Invalid schema for function '{tool.name}': {exc}.", param="tools", code="invalid_json_schema")


def _as_format(grammar: Grammar) -> Format:
    match grammar.kind:
        case GrammarKind.JSON_SCHEMA:
            return syntax.json_schema(json.loads(grammar.source))
        case GrammarKind.REGEX:
            return {"type": "regex", "pattern": grammar.source}
        case GrammarKind.EBNF:
            return {"type": "grammar", "grammar": grammar.source}
        case GrammarKind.STRUCTURAL_TAG:
            form: Format = json.loads(grammar.source)["format"]
            return form
