"""Environment variables laid over a document: `PREFIX__SECTION__KEY=value`. Names are lower-cased to field names.

A value that begins with `[` or `{` is YAML; any other is one scalar, and text needs no quotes.
"""

from collections.abc import Mapping as MappingABC

from sidecar.yamlfile.nodes import Broken, Mapping, Node, Problem, Scalar, Sequence, compose


def overlay(root: Node, environ: MappingABC[str, str], prefix: str, problems: list[Problem]) -> Node:
    """The document with the variables' values in it. What is wrong with a variable itself goes to `problems`."""
    for name in sorted(environ):
        if not name.startswith(prefix):
            continue
        keys = name[len(prefix) :].lower().split("__")
        if not all(keys):
            problems.append(Problem(name, 0, 0, f"expected a name such as {prefix}SECTION__KEY"))
            continue
        value = _value(name, environ[name], problems)
        root = _placed(root, keys, value, problems)
    return root


def _value(name: str, text: str, problems: list[Problem]) -> Node:
    if text.lstrip()[:1] not in {"[", "{"}:
        return Scalar(name, 0, 0, text, plain=True, loose=True)
    found: list[Problem] = []
    node = compose(name, text.encode("utf-8", "surrogateescape"), found)
    problems.extend(Problem(name, 0, 0, f"at character {problem.column}: {problem.message}") for problem in found)
    return Broken(name, 0, 0) if node is None else _placeless(node)


def _placeless(node: Node) -> Node:
    """The same with line 0: in a variable there is no place to point at."""
    match node:
        case Scalar():
            return Scalar(node.source, 0, 0, node.text, plain=node.plain)
        case Sequence():
            return Sequence(node.source, 0, 0, tuple(map(_placeless, node.items)))
        case Mapping():
            entries = tuple((_placeless(key), _placeless(value)) for key, value in node.entries)
            return Mapping(node.source, 0, 0, entries)
        case _:
            return Broken(node.source, 0, 0)


def _placed(node: Node, keys: list[str], value: Node, problems: list[Problem]) -> Node:
    """`node` with `value` under `keys`; mappings on the way are made where there are none."""
    if not keys:
        return value
    if isinstance(node, Sequence):
        problems.append(value.problem("goes into a list; give the whole list as [...] instead"))
        return node
    if not isinstance(node, Mapping):
        # The file has something else where a mapping must be; that is reported where it stands.
        return node
    first, *rest = keys
    entries: list[tuple[Node, Node]] = []
    found = False
    for key, inner in node.entries:
        if isinstance(key, Scalar) and key.text == first:
            found = True
            entries.append((key, _placed(inner, rest, value, problems)))
        else:
            entries.append((key, inner))
    if not found:
        key = Scalar(value.source, value.line, value.column, first, plain=False)
        inner = Mapping(value.source, value.line, value.column, ()) if rest else value
        entries.append((key, _placed(inner, rest, value, problems)))
    return Mapping(node.source, node.line, node.column, tuple(entries))
