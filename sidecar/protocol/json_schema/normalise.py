"""From a client's JSON Schema to one that the grammar compiler follows to the letter, or a refusal of the keyword.

What comes out allows no text that the client's schema does not: where no grammar can follow a keyword it is refused,
never passed over. It may allow fewer: objects have only the properties they name unless `additionalProperties` says
otherwise (as with OpenAI's `strict`), in the order in which they are named. JSON Schema 2020-12; the older name
`definitions` is known, too. Pure.
"""

import json
from collections.abc import Callable
from typing import Final

from sidecar.protocol.json_schema.merge import ANNOTATIONS, are_apart, merged
from sidecar.protocol.json_schema.references import References
from sidecar.protocol.json_schema.strings import string_schema, written_pattern
from sidecar.protocol.json_schema.values import (
    Schema,
    SchemaError,
    counts,
    numbers,
    of_type,
    refuse,
    types_of,
    values_of,
)

# GUARDS, C5.
MOST_BYTES: Final = 64 * 1024
MOST_DEPTH: Final = 64
# Of what comes out: alternatives of alternatives multiply.
MOST_NODES: Final = 8192
_KEYWORDS: Final[dict[str, tuple[str, ...]]] = {
    "object": (
        *("properties", "required", "additionalProperties", "patternProperties", "propertyNames"),
        *("minProperties", "maxProperties"),
    ),
    "array": ("items", "prefixItems", "minItems", "maxItems", "uniqueItems"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "format"),
    "integer": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "format"),
    "boolean": (),
    "null": (),
}
_GENERAL: Final = ("type", "enum", "const", "$ref", "anyOf", "oneOf", "allOf", "$defs", "definitions")
SUPPORTED: Final = frozenset(_GENERAL) | frozenset(name for names in _KEYWORDS.values() for name in names)


def normalise(schema: dict[str, object]) -> str:
    """The schema for the compiler, as JSON. Raises SchemaError."""
    return json.dumps(normalised(schema), ensure_ascii=False)


def normalised(schema: dict[str, object]) -> Schema:
    """The same before it is written, as a part of something larger."""
    try:
        size = len(json.dumps(schema, ensure_ascii=False).encode())
    except RecursionError as exc:
        raise SchemaError(f"it is nested more than {MOST_DEPTH} deep") from exc
    if size > MOST_BYTES:
        raise SchemaError(f"it has {size} bytes, and {MOST_BYTES} are the most")
    normaliser = _Normaliser(schema)
    result = normaliser.schema(schema, "#", 0)
    return {**result, "$defs": normaliser.definitions}


class _Normaliser:
    """One schema on its way. Mutable: `definitions` (what is referred to), `_nodes`."""

    def __init__(self, root: dict[str, object]) -> None:
        self.definitions: dict[str, Schema] = {}
        self._references = References(root)
        self._nodes = 0

    def schema(self, given: object, path: str, depth: int) -> Schema:
        """`path` is where it stands, as a JSON pointer."""
        self._nodes += 1
        if depth > MOST_DEPTH:
            raise SchemaError(f"it is nested more than {MOST_DEPTH} deep", path)
        if self._nodes > MOST_NODES:
            raise SchemaError(f"it has more than {MOST_NODES} parts, its alternatives multiplied")
        if given is True:
            return {}
        if given is False:
            raise SchemaError("'false' allows nothing", path)
        if not isinstance(given, dict):
            raise SchemaError("a schema must be an object or a boolean", path)
        plain = {name: value for name, value in given.items() if name not in ANNOTATIONS and name[:2] != "x-"}
        for name in plain:
            if name not in SUPPORTED:
                raise refuse(name, path)
        plain = {name: value for name, value in plain.items() if name not in ("$defs", "definitions")}
        if "$ref" in plain and len(plain) == 1:
            return self._reference(plain["$ref"], path, depth)
        return self._joined(plain, path, depth)

    def _reference(self, pointer: object, path: str, depth: int) -> Schema:
        """A definition of its own for each place that is referred to, made once: schemas may be recursive."""
        target, place = self._references.follow(pointer, path)
        name = self._references.name(place)
        if name not in self.definitions:
            self.definitions[name] = {}
            self.definitions[name] = self.schema(target, place, depth + 1)
        return {"$ref": f"#/$defs/{name}"}

    def _joined(self, plain: dict[str, object], path: str, depth: int) -> Schema:
        """Together with what stands in `allOf` and behind `$ref`, then alternative by alternative."""
        whole = self._unfolded(plain, path, depth)
        for name in ("anyOf", "oneOf"):
            if name in whole:
                return self._alternatives(whole, name, path, depth)
        return self._typed(whole, path, depth)

    def _unfolded(self, given: object, path: str, depth: int) -> dict[str, object]:
        """A schema together with what stands behind its `$ref` and in its `allOf`, and so without them."""
        if depth > MOST_DEPTH:
            raise SchemaError(f"it is nested more than {MOST_DEPTH} deep, or is part of itself", path)
        if given is True:
            return {}
        if not isinstance(given, dict):
            raise SchemaError("a schema that is joined with others must be an object", path)
        whole = {name: value for name, value in given.items() if name not in ("$ref", "allOf", "$defs", "definitions")}
        if "$ref" in given:
            target, place = self._references.follow(given["$ref"], path)
            whole = merged(whole, self._unfolded(target, place, depth + 1), path)
        for at, part in enumerate(_array(given, "allOf", path)):
            whole = merged(whole, self._unfolded(part, f"{path}/allOf/{at}", depth + 1), path)
        return whole

    def _alternatives(self, whole: dict[str, object], name: str, path: str, depth: int) -> Schema:
        others = {key: value for key, value in whole.items() if key != name and key not in ANNOTATIONS}
        branches: list[Schema] = []
        for at, given in enumerate(_array(whole, name, path)):
            place = f"{path}/{name}/{at}"
            if others:
                given = merged(others, self._unfolded(given, place, depth + 1), place)  # noqa: PLW2901
            branches.append(self.schema(given, place, depth + 1))
        if not branches:
            raise SchemaError(f"'{name}' has no alternatives", path)
        if name == "oneOf":
            self._check_apart(branches, path)
        return branches[0] if len(branches) == 1 else {"anyOf": branches}

    def _check_apart(self, branches: list[Schema], path: str) -> None:
        """Raises SchemaError if a text may follow two alternatives, of which `oneOf` allows just one."""
        plain = [self._plain(branch) for branch in branches]
        for at, one in enumerate(plain):
            for other in plain[at + 1 :]:
                if not are_apart(one, other):
                    raise SchemaError(
                        "'oneOf' is supported where its alternatives differ in type, or in the constant of a required "
                        "property; use 'anyOf'",
                        path,
                    )

    def _plain(self, schema: Schema) -> list[Schema]:
        """The alternatives of a finished schema, references followed."""
        reference = schema.get("$ref")
        if isinstance(reference, str):
            return self._plain(self.definitions[reference.rpartition("/")[2]])
        branches = schema.get("anyOf")
        if isinstance(branches, list):
            return [plain for branch in branches for plain in self._plain(branch)]
        return [schema]

    def _typed(self, whole: dict[str, object], path: str, depth: int) -> Schema:
        for name in ("const", "enum"):
            if name in whole:
                return values_of(whole, path)
        types = types_of(whole, path)
        if types is None:
            # A keyword of one type says nothing of the others; what follows it is of that type.
            types = [kind for kind, names in _KEYWORDS.items() if any(name in whole for name in names)]
            types = [kind for kind in types if kind != "integer"]
            if not types:
                return {}
        for name in whole:
            if name not in ("type", *ANNOTATIONS) and not any(name in _KEYWORDS[kind] for kind in types):
                raise SchemaError(f"'{name}' does not go with the type {' or '.join(types)}", path)
        branches = [self._one_type(kind, of_type(whole, _KEYWORDS[kind]), path, depth) for kind in types]
        return branches[0] if len(branches) == 1 else {"anyOf": branches}

    def _one_type(self, kind: str, given: dict[str, object], path: str, depth: int) -> Schema:
        makers: dict[str, Callable[[], Schema]] = {
            "object": lambda: self._object(given, path, depth + 1),
            "array": lambda: self._array(given, path, depth + 1),
            "string": lambda: string_schema(given, path),
            "number": lambda: numbers(given, path, whole=False),
            "integer": lambda: numbers(given, path, whole=True),
        }
        maker = makers.get(kind)
        return {"type": kind} if maker is None else maker()

    def _object(self, given: Schema, path: str, depth: int) -> Schema:
        properties = _mapping(given, "properties", path)
        required = _names(given, path)
        extra = given.get("additionalProperties", not properties)
        least, most = counts(given, "minProperties", "maxProperties", path)
        if given.get("patternProperties") or given.get("propertyNames"):
            if properties or required:
                raise SchemaError("'patternProperties' and 'propertyNames' beside named properties", path)
            result = self._by_pattern(given, extra, path, depth)
        else:
            made = {
                name: self.schema(value, f"{path}/properties/{_escaped(name)}", depth)
                for name, value in properties.items()
            }
            for name in required:
                if name not in made:
                    if extra is False and "additionalProperties" in given:
                        raise SchemaError(f"'{name[:64]}' is required, and 'additionalProperties' forbids it", path)
                    unnamed = True if extra is False else extra
                    made[name] = self.schema(unnamed, f"{path}/additionalProperties", depth)
            others = extra if extra is False else self.schema(extra, f"{path}/additionalProperties", depth)
            result = {"type": "object", "properties": made, "required": required, "additionalProperties": others}
        if least > len(required) and not (least <= 1 or result.get("additionalProperties") is False):
            # A name may come twice, as JSON has it, and then counts once.
            raise SchemaError("'minProperties' is supported up to 1 where names are free", path)
        if most is not None and most < len(required):
            raise SchemaError("'maxProperties' is less than the number of required properties", path)
        if extra is False and least > len(properties):
            raise SchemaError("'minProperties' is more than there are properties", path)
        return result | ({"minProperties": least} if least else {}) | ({} if most is None else {"maxProperties": most})

    def _by_pattern(self, given: Schema, extra: object, path: str, depth: int) -> Schema:
        """An object whose names follow one pattern."""
        patterns = _mapping(given, "patternProperties", path)
        names = given.get("propertyNames")
        if names is not None:
            known = names if isinstance(names, dict) else {}
            pattern = known.get("pattern")
            if patterns or not isinstance(pattern, str) or set(known) - ANNOTATIONS - {"type"} != {"pattern"}:
                raise SchemaError("'propertyNames' is supported with a 'pattern' alone", path)
            patterns = {pattern: extra}
        if len(patterns) != 1:
            raise SchemaError("'patternProperties' is supported with one pattern", path)
        ((pattern, value),) = patterns.items()
        written = written_pattern(pattern, path)
        made = self.schema(value, f"{path}/patternProperties/{_escaped(pattern)}", depth)
        return {"type": "object", "patternProperties": {f"^{written}$": made}, "additionalProperties": False}

    def _array(self, given: Schema, path: str, depth: int) -> Schema:
        least, most = counts(given, "minItems", "maxItems", path)
        if given.get("uniqueItems") not in (None, False) and (most is None or most > 1):
            raise SchemaError("the keyword 'uniqueItems' is not supported", path)
        prefix = [
            self.schema(part, f"{path}/prefixItems/{at}", depth)
            for at, part in enumerate(_array(given, "prefixItems", path)[:most])
        ]
        rest = given.get("items", not prefix or least > len(prefix))
        if isinstance(rest, list):
            raise SchemaError("'items' must be one schema; a list of them is 'prefixItems'", path)
        if rest is False and least > len(prefix):
            raise SchemaError("'minItems' is more than there may be", path)
        result: Schema = {"type": "array", "items": rest is not False and self.schema(rest, f"{path}/items", depth)}
        return (
            result
            | ({"prefixItems": prefix} if prefix else {})
            | ({"minItems": least} if least else {})
            | ({} if most is None else {"maxItems": most})
        )


def _array(given: Schema, name: str, path: str) -> list[object]:
    value = given.get(name, [])
    if not isinstance(value, list):
        raise SchemaError(f"'{name}' must be an array", path)
    return value


def _mapping(given: Schema, name: str, path: str) -> dict[str, object]:
    value = given.get(name, {})
    if not isinstance(value, dict):
        raise SchemaError(f"'{name}' must be an object", path)
    return value


def _names(given: Schema, path: str) -> list[str]:
    required = _array(given, "required", path)
    names = [name for name in required if isinstance(name, str)]
    if len(names) < len(required):
        raise SchemaError("'required' must be an array of strings", path)
    return list(dict.fromkeys(names))


def _escaped(name: str) -> str:
    """As a part of a JSON pointer (RFC 6901)."""
    return name[:64].replace("~", "~0").replace("/", "~1")
