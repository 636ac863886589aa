"""What the pages show is run: their commands and programs, one after the other, against a real house.

Each page has a proxy of its own with the shipped policies, so that its accounts are its own; the model is shared. What
stands for something of the reader's is filled in: addresses, keys, ids. What a page makes, its next block may use.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from tests.fakes.snippets import PAGES, ROOT, Block, blocks, printed

BIN: Final = Path(sys.executable).parent
RUN: Final = ("sh", "python")
RUN_TIMEOUT_S: Final = 120
# What the pages call the reader's own, and what a command prints of it.
KEY: Final = re.compile(r"sk-th_\w{40,}")
SIGNING_KEY: Final = re.compile(r"ths_\w{40,}")
# What a reader has at home, by docs/cli.md.
FOLDERS: Final = (".local/share/bash-completion/completions", ".zfunc", ".config/fish/completions")
# In docs/clients.md and docs/replay.md the served model has an id of the reader's.
QUESTION: Final = {"model": "smollm2-135m-instruct", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}


@dataclass
class Reader:
    """Somebody who follows one page. `shown`: the last key that a command printed; `environment`: what was exported."""

    house: Any
    shown: str
    signing: str
    environment: dict[str, str]
    programs: list[str] = field(default_factory=list)

    def follow(self, block: Block) -> str:
        """Run a block; what it printed."""
        code = self._filled_in(block.code)
        command = self._shell(code) if block.language == "sh" else self._python(code)
        done = subprocess.run(
            command,
            cwd=self.house.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=RUN_TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, f"{block.place}\n{code}\n{done.stdout}\n{done.stderr}"
        if block.language == "sh":
            self._remember(done.stdout)
        return done.stdout

    @contextlib.contextmanager
    def in_state(self, *, stopped: bool) -> Iterator[None]:
        """The server runs, or does not while this lasts."""
        if stopped:
            self.house.proxy.stop()
        yield
        if stopped:
            self.house.start_proxy()

    def _shell(self, code: str) -> list[str]:
        return ["bash", "-euo", "pipefail", "-c", f"{code}\nenv -0 >env"]

    def _python(self, code: str) -> list[str]:
        # What imports nothing goes on from the program before it.
        self.programs = [code] if "import" in code else [*self.programs, code]
        return [str(BIN / "python"), "-W", "error", "-c", "\n".join(self.programs)]

    def _filled_in(self, code: str) -> str:
        for port, real in ((8000, self.house.port), (8001, self.house.admin_port)):
            code = re.sub(rf"(127\.0\.0\.1|localhost):{port}\b", rf"\1:{real}", code)
        # A busy machine takes its time, and a day may end between two blocks.
        code = code.replace("sleep 3", "sleep 6").replace("$(date +%F)", "2026-11-30")
        code = code.replace("sk-th_…", self.shown).replace("ths_…", self.signing)
        return code.replace("KEY_ID", self.shown.split("_")[1][:10])

    def _remember(self, output: str) -> None:
        self.shown = (KEY.findall(output) or [self.shown])[-1]
        self.signing = (SIGNING_KEY.findall(output) or [self.signing])[-1]
        exported = (self.house.folder / "env").read_text().split("\0")
        self.environment = dict(pair.split("=", 1) for pair in exported if "=" in pair)


@pytest.fixture
def reader(build_house: Callable[..., Any], sidecars: Callable[[str], Any]) -> Iterator[Reader]:
    house = build_house(beside=sidecars("int8"))
    shutil.rmtree(house.folder / "policies")
    shutil.copytree(ROOT / "policies", house.folder / "policies")
    (house.folder / "tollhouse").symlink_to(BIN / "tollhouse")
    (house.folder / "question.json").write_text(json.dumps(QUESTION))
    for place in FOLDERS:
        (house.folder / place).mkdir(parents=True)
    house.start_proxy()
    house.command("accounts", "create", "owner")
    made = [
        house.command("keys", "create", "--account", "owner", "--tier", "unlimited", "--name", name, *options)["secret"]
        for name, *options in (("first",), ("admin", "--scope", "admin"), ("signing", "--signed"))
    ]
    environment = {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "HOME": str(house.folder),
        "LANG": "C.UTF-8",
        "NO_COLOR": "1",
        # The proxy's own modules, as an installation has them.
        "PYTHONPATH": str(ROOT),
        "OPENAI_BASE_URL": house.base_url,
        "OPENAI_API_KEY": made[0],
        "ADMIN_KEY": made[1],
        "TOLLHOUSE_KEY": made[2],
    }
    yield Reader(house, made[0], made[2], environment)
    house.stop()


def wanted(page: Path) -> list[Block]:
    ours = [block for block in blocks(page) if not block.not_run and not block.by_clients]
    return [block for block in ours if block.language in RUN or block.prints]


@pytest.mark.parametrize("page", [page for page in PAGES if wanted(page)], ids=lambda page: page.name)
def test_what_a_page_shows_runs(page: Path, reader: Reader) -> None:
    there = [found for block in wanted(page) for found in re.findall(r"--account (\w+)", block.code)]
    made = [found for block in wanted(page) for found in re.findall(r"accounts create (\w+)", block.code)]
    for name in sorted(set(there) - set(made)):
        reader.house.command("accounts", "create", name)
    output = ""
    for block in wanted(page):
        if block.prints:
            assert printed(block.code, output), f"{block.place} is not what is printed:\n{output}"
        else:
            with reader.in_state(stopped=block.stopped):
                output = reader.follow(block)
