"""Each row of docs/security.md has tests named after it, and each test that is named after a row has one there."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/security.md"
# The whole list of threats and faults, so that none gets lost from the page.
ROWS = [
    *(f"W{number}" for number in range(1, 12)),
    *(f"A{number}" for number in range(1, 16)),
    *(f"C{number}" for number in range(1, 10)),
    *(f"F{number}" for number in range(1, 17)),
]
NAMED = re.compile(r"test_([wacf]\d+|r)_")
# The attacks on requests that come once have a letter of their own.
REPLAY = {"R": "A13"}


# Attacks, repetitions and rules that are smaller than a row, each with its tests by their whole names.
SMALLER = [
    *(f"R{number}" for number in range(1, 10)),
    *(f"I{number}" for number in range(1, 7)),
    *(f"K{number}" for number in range(1, 5)),
    *(f"L{number}" for number in range(1, 6)),
]


def rows_of_the_page() -> dict[str, list[str]]:
    """The files that each row names."""
    found = re.findall(r"^\| ([A-Z]\d+) \|(?: [^|]+ \|){2} ([^|]*) \|$", PAGE.read_text(), re.MULTILINE)
    assert len({row for row, _ in found}) == len(found)
    return {row: re.findall(r"`([\w/]+)`", files) for row, files in found}


def named_tests() -> dict[str, set[str]]:
    """The files, below `tests` and without their ending, that have tests named after a row."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in ROOT.glob("tests/**/test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (named := NAMED.match(node.name)):
                row = named[1].upper()
                found[REPLAY.get(row, row)].add(str(path.relative_to(ROOT / "tests").with_suffix("")))
    return found


def functions() -> set[str]:
    """The names of all tests."""
    return {
        node.name
        for path in ROOT.glob("tests/**/test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


PAGE_ROWS = rows_of_the_page()
TESTS = named_tests()


def test_every_threat_is_on_the_page() -> None:
    assert sorted(PAGE_ROWS) == sorted(ROWS)


@pytest.mark.parametrize("row", PAGE_ROWS)
def test_a_row_s_tests_are_in_the_files_that_it_names(row: str) -> None:
    assert PAGE_ROWS[row]
    assert set(PAGE_ROWS[row]) - TESTS[row] == set()


def test_every_test_that_is_named_after_a_row_has_one() -> None:
    assert set(TESTS) <= set(ROWS)


def test_every_smaller_row_names_tests_that_are_there() -> None:
    found = re.findall(r"^\| ([RIKL]\d+) [^|]+ \| [^|]+ \| ([^|]*) \|$", PAGE.read_text(), re.MULTILINE)
    assert [row for row, _ in found] == SMALLER
    named = {row: set(re.findall(r"`(test_\w+)`", tests)) for row, tests in found}
    assert [row for row, tests in named.items() if not tests] == []
    assert set().union(*named.values()) - functions() == set()
