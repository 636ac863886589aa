"""The code in README and docs, as its tests read it: each fenced block with its place, its language and its note.

`<!-- not run: REASON -->` on the line above a block keeps it from being run, and
`<!-- not run on this page: REASON -->` all of a page. `<!-- prints -->` above a block of text
says that it is what the block before it prints; there `…` stands for anything. `<!-- with the server stopped -->`
is what it says, and so is `<!-- run by: ./tollhouse test clients -->`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE: Final = re.compile(
    r"^(?P<note><!-- .*? -->\n)?```(?P<language>\w*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)
NOT_RUN: Final = re.compile(r"<!-- not run: (.{10,}) -->")
NONE_RUN: Final = re.compile(r"^<!-- not run on this page: (.{10,}) -->$", re.MULTILINE)
PRINTS: Final = "<!-- prints -->"
BY_CLIENTS: Final = "<!-- run by: ./tollhouse test clients -->"
STOPPED: Final = "<!-- with the server stopped -->"


@dataclass(frozen=True)
class Block:
    """`line` is that of its first line. `not_run`: why it is not run; `prints`: the block before it prints it."""

    page: Path
    line: int
    language: str
    code: str
    not_run: str = ""
    prints: bool = False
    stopped: bool = False
    by_clients: bool = False

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text()
    none_run = NONE_RUN.search(text)
    for found in FENCE.finditer(text):
        note = (found["note"] or "").strip()
        why = NOT_RUN.fullmatch(note) or none_run
        yield Block(
            page,
            text.count("\n", 0, found.start("code")) + 1,
            found["language"],
            found["code"],
            not_run=why[1] if why else "",
            prints=note == PRINTS,
            stopped=note == STOPPED,
            by_clients=note == BY_CLIENTS,
        )


def printed(expected: str, output: str) -> bool:
    """Whether the output has what the page shows, `…` being anything."""
    pattern = ".*?".join(re.escape(part) for part in expected.strip().split("…"))
    return re.search(pattern, output, re.DOTALL) is not None
