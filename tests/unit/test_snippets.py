"""The code in the pages is right as far as can be seen without running it: it parses, and settings are settings."""

import ast
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from proxy.settings import Proxy
from sidecar.settings import Sidecar
from tests.fakes import cookbook
from tests.fakes.snippets import PAGES, Block, blocks, printed

BLOCKS = [block for page in PAGES for block in blocks(page)]
# The programs that a page's commands may begin with, for tests/e2e/test_docs_snippets.py to run them.
RUNNABLE = {
    *("tollhouse", "./tollhouse", "curl", "export"),
    *("for", "done", "cat", "cp", "mkdir", "install", "sleep", "df"),
}
# What a fragment of settings leaves out, because it stands in the shipped file.
REQUIRED: dict[Any, dict[str, Any]] = {
    Proxy: {"upstreams": [{"name": "local", "socket": "run/sidecar.sock"}]},
    Sidecar: {"model": {"id": "m", "source": "m"}},
}


def of(language: str) -> Any:
    chosen = [block for block in BLOCKS if block.language == language]
    return pytest.mark.parametrize("block", chosen, ids=[block.place for block in chosen])


def test_every_fence_is_read() -> None:
    fences = sum(line.startswith("```") for page in PAGES for line in page.read_text().splitlines())
    assert fences == 2 * len(BLOCKS)


def test_every_block_says_what_it_is() -> None:
    known = {"", "sh", "python", "js", "yaml", "json", "text", "ini", "http", "promql"}
    assert [block.place for block in BLOCKS if block.language not in known] == []


@of("json")
def test_json_is_json(block: Block) -> None:
    for line in block.code.strip().split("\n\n"):
        json.loads(line)


@of("python")
def test_python_parses(block: Block) -> None:
    ast.parse(block.code)


@of("sh")
def test_shell_parses(block: Block) -> None:
    subprocess.run(["/bin/bash", "-n", "-c", block.code], check=True, timeout=20)


def test_what_will_be_run_can_be_run_in_a_house() -> None:
    """Of a block that wants more its page says `<!-- not run: WHY -->` on the line above it."""
    for block in BLOCKS:
        if block.language == "sh" and not block.not_run and not block.by_clients:
            plain = re.sub(r"<<'EOF'\n.*?^EOF$", "", block.code, flags=re.DOTALL | re.MULTILINE)
            programs = set(re.findall(r"^([\w./-]+)", plain, re.MULTILINE))
            assert programs <= RUNNABLE, block.place


@of("yaml")
def test_yaml_parses_and_settings_are_settings(block: Block) -> None:
    found = yaml.safe_load(block.code)
    if block.page == cookbook.PAGE:
        # Lines of policies/examples, which tests/unit/policies compares.
        return
    for kind, required in REQUIRED.items():
        if found.keys() <= set(kind.__struct_fields__):
            msgspec.convert(required | found, kind)
            return
    # Another program's file: its page names the one that is shipped, which has tests of its own.
    assert "conf/" in block.page.read_text()


def test_what_is_printed_is_compared_but_for_what_is_left_out() -> None:
    assert printed("429\n… in 5s", "200\n429\nRate limit: try again in 5s\n")
    assert not printed("429\n… in 5s", "429\ntry again in 6s\n")
    assert not printed("a\nb\n", "a b")


def test_a_note_belongs_to_the_block_below_it(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    marked = "<!-- not run: it takes an hour -->\n```sh\na\n```\n\n<!-- prints -->\n```text\nb\n```\n"
    page.write_text(f"{marked}```sh\nc\n```\n")
    first, second, third = blocks(page)
    assert (first.not_run, first.line) == ("it takes an hour", 3)
    assert (second.prints, second.code) == (True, "b\n")
    assert (third.not_run, third.prints) == ("", False)
