"""The console's own files, read once at start. What a browser may do with them is said here, too."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Final

BASE: Final = "/console/"
INDEX: Final = "index.html"
TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class File:
    """One file, and the tag by which a browser knows that it has it already."""

    body: bytes
    content_type: str
    etag: str


def load() -> dict[str, File]:
    """The files by their URLs. Blocks: call it in a thread."""
    found = dict(_files(resources.files("proxy.console") / "static", BASE))
    return found | {BASE: found[BASE + INDEX]}


def _files(folder: Traversable, url: str) -> Iterator[tuple[str, File]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _files(entry, f"{url}{entry.name}/")
        elif (kind := TYPES.get("." + entry.name.rpartition(".")[2])) is not None:
            body = entry.read_bytes()
            yield url + entry.name, File(body, kind, f'"{hashlib.sha256(body).hexdigest()[:16]}"')
