"""The environment of `tollhouse test clients`: the clients that conf/requirements/clients.txt pins, beside .venv.

Apart from it, since their pins may clash with ours. A stamp says what a finished one was made from; one without it, or
with another, is made anew.
"""

import fcntl
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from proxy.cli.exits import CommandError
from proxy.cli.screen import Screen

TARGET: Final = "clients"
TESTS: Final = "tests/clients"
PYTEST: Final = "tests/clients/pytest.ini"
FOLDER: Final = ".venv-clients"
PINS: Final = Path("conf/requirements")
LOCKS: Final = ("build.txt", "clients.txt")


def prepare(root: Path, screen: Screen) -> Path:
    """The interpreter that has the clients; the first time, they are installed. Raises CommandError."""
    folder = root / FOLDER
    python, stamp = folder / "bin/python", folder / "tollhouse.stamp"
    with (root / PINS / LOCKS[-1]).open() as lock:
        # Two that begin at once install once.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.is_file() or stamp.read_text() != _wanted(root):
            shutil.rmtree(folder, ignore_errors=True)
            screen.step(f"making {FOLDER}", "the first time and after a change of its pins")
            _run(sys.executable, "-m", "venv", str(folder))
            for name in LOCKS:
                screen.step(f"installing {name}", "each package checked by its hash")
                _run(str(python), *_install(root / PINS / name))
            stamp.write_text(_wanted(root))
    return python


def _wanted(root: Path) -> str:
    # A virtual environment holds its own path, and packages built for its Python.
    parts = [root.as_posix().encode(), sys.version.encode(), *((root / PINS / name).read_bytes() for name in LOCKS)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _install(lock: Path) -> tuple[str, ...]:
    options = ("--quiet", "--no-input", "--disable-pip-version-check", "--require-hashes", "--no-deps")
    return ("-m", "pip", "install", *options, "--no-build-isolation", "-r", str(lock))


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603 - ours
    if done.returncode:
        raise CommandError(done.stderr.strip() or f"{command[0]} failed.", hint="Is the package index in reach?")
