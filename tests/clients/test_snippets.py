"""What docs/clients.md shows of each client runs as it stands."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.test_node import FOLDER, installed
from tests.fakes.snippets import PAGES, Block, blocks

BLOCKS = [block for page in PAGES for block in blocks(page) if block.by_clients]

__all__ = ["installed"]


def of(language: str) -> pytest.MarkDecorator:
    chosen = [block for block in BLOCKS if block.language == language]
    return pytest.mark.parametrize("block", chosen, ids=[block.place for block in chosen])


def test_all_of_them_are_run() -> None:
    assert {block.language for block in BLOCKS} == {"python", "js"}
    assert len(BLOCKS) >= 8


@of("python")
def test_python(block: Block) -> None:
    done = subprocess.run([sys.executable, "-c", block.code], capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@of("js")
def test_node(block: Block, installed: str) -> None:
    # Where it stands decides which packages it finds.
    program = FOLDER / f"snippet-{block.line}.mjs"
    program.write_text(block.code)
    try:
        done = subprocess.run(
            [installed, program], cwd=FOLDER, capture_output=True, text=True, timeout=110, check=False
        )
    finally:
        Path(program).unlink()
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
