"""The clients for Node, each file of tests/clients/node by Node's own test runner."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.clients.conftest import EMBEDDER
from tests.e2e.house import MODEL

FOLDER = Path(__file__).parent / "node"
NODE, NPM = shutil.which("node"), shutil.which("npm")
TESTS = sorted(path.name for path in FOLDER.glob("*.test.js"))


def missing() -> str:
    """Why nothing can run here; empty if it can."""
    if NODE is None or NPM is None:
        return "Node and npm are not installed"
    version = subprocess.run([NODE, "--version"], capture_output=True, text=True, check=True).stdout
    return "" if int(version.removeprefix("v").split(".")[0]) >= 20 else f"Node {version.strip()} is older than 20"


@pytest.fixture(scope="module")
def installed() -> str:
    """What the lock pins, once; the path of Node."""
    if why := missing():
        pytest.skip(why)
    lock, stamp = FOLDER / "package-lock.json", FOLDER / "node_modules/tollhouse.stamp"
    if not stamp.is_file() or stamp.read_bytes() != lock.read_bytes():
        subprocess.run([str(NPM), "ci", "--ignore-scripts"], cwd=FOLDER, check=True, timeout=110)
        shutil.copyfile(lock, stamp)
    return str(NODE)


@pytest.mark.parametrize("name", TESTS)
def test_with_node(installed: str, name: str) -> None:
    environment = {**os.environ, "TOLLHOUSE_MODEL": MODEL, "TOLLHOUSE_EMBEDDER": EMBEDDER}
    done = subprocess.run(
        [installed, "--test", "--test-timeout=60000", name],
        cwd=FOLDER,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
