"""docs/policies.md as its tests read it: a section for each file of policies/examples, with what is then answered."""

import re
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
EXAMPLES: Final = ROOT / "policies/examples"
PAGE: Final = ROOT / "docs/policies.md"


def files() -> list[str]:
    """The names of the examples, without their ending."""
    return sorted(path.stem for path in EXAMPLES.glob("*.yaml"))


def section(name: str) -> str:
    """What the page says of one example: from the heading before its link to the next heading."""
    found = [
        text for text in re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE) if f"examples/{name}.yaml)" in text
    ]
    assert len(found) == 1, f"docs/policies.md has {len(found)} sections of policies/examples/{name}.yaml"
    return found[0]


def answers(name: str) -> list[str]:
    """The rows of its table, below the head."""
    return re.findall(r"^\| .+ \|$", section(name), re.MULTILINE)[1:]


def row(request: str, cells: tuple[str, str, str]) -> str:
    return f"| {' | '.join((request, *cells))} |".replace("|  |", "| |").replace("|  |", "| |")
