"""`$ref` within one schema: JSON pointers (RFC 6901) into it, and a name for each place that is referred to."""

import re
from typing import Final
from urllib.parse import unquote

from sidecar.protocol.json_schema.merge import ANNOTATIONS
from sidecar.protocol.json_schema.values import Schema, SchemaError

_INDEX: Final = re.compile(r"0|[1-9][0-9]{0,5}")


class References:
    """Mutable: `_names`, of the places that were asked for."""

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._names: dict[str, str] = {}

    def name(self, place: str) -> str:
        return self._names.setdefault(place, f"r{len(self._names)}")

    def follow(self, pointer: object, path: str) -> tuple[object, str]:
        """What a reference leads to in the end, and where that stands. Raises SchemaError."""
        seen: set[str] = set()
        while True:
            if not isinstance(pointer, str):
                raise SchemaError("'$ref' must be a string", path)
            if pointer in seen:
                raise SchemaError("a '$ref' that leads to itself", path)
            seen.add(pointer)
            target = self._at(pointer, path)
            if not isinstance(target, dict) or set(target) - ANNOTATIONS - {"$defs", "definitions"} != {"$ref"}:
                return target, pointer
            pointer = target["$ref"]

    def _at(self, pointer: str, path: str) -> object:
        if pointer == "#":
            return self._root
        if not pointer.startswith("#/"):
            raise SchemaError(f"'$ref' may only lead into the schema itself ('#/…'), not to '{pointer[:64]}'", path)
        found: object = self._root
        for part in unquote(pointer[2:]).split("/"):
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, dict) and key in found:
                found = found[key]
            elif isinstance(found, list) and _INDEX.fullmatch(key) and int(key) < len(found):
                found = found[int(key)]
            else:
                raise SchemaError(f"'$ref' leads to '{pointer[:64]}', and there is nothing", path)
        return found
