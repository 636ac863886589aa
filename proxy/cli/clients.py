"""The environment of `tollhouse test clients`: the clients that conf/requirements/clients.txt pins, beside .venv.

Apart from it, since their pins may clash with ours. A stamp says what a finished one was made from; one without it, or
with another, is made anew. Torch, for the stock model that lm-eval runs, is the launcher's, always built for the CPU.
"""

import fcntl
import hashlib
import platform
import re
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
PIP_INSTALL: Final = ("-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check", "--no-deps")


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
            screen.step(f"installing {_torch(root)}", "for the CPU, about 200 MB")
            _install_torch(str(python), root)
            stamp.write_text(_wanted(root))
    return python


def _wanted(root: Path) -> str:
    # A virtual environment holds its own path, and packages built for its Python.
    made_of = [root.as_posix(), sys.version, _torch(root)]
    parts = [*(part.encode() for part in made_of), *((root / PINS / name).read_bytes() for name in LOCKS)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _install(lock: Path) -> tuple[str, ...]:
    return (*PIP_INSTALL, "--require-hashes", "--no-build-isolation", "-r", str(lock))


def _install_torch(python: str, root: Path) -> None:
    install = (python, *PIP_INSTALL, _torch(root))
    try:
        _run(*install)
    except CommandError:
        # As the launcher: what is configured is asked first.
        _run(*install, "--extra-index-url", _launcher(root)["CPU_INDEX"], "--retries", "1", "--timeout", "20")


def _torch(root: Path) -> str:
    # Only for Linux does a label tell the build for the CPU.
    label = "+cpu" if platform.system() == "Linux" else ""
    return f"torch=={_launcher(root)['TORCH']}{label}"


def _launcher(root: Path) -> dict[str, str]:
    """What the launcher assigns at its head."""
    return dict(re.findall(r"^([A-Z_]+)=(\S+)$", (root / "tollhouse").read_text(), re.MULTILINE))


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603 - ours
    if done.returncode:
        raise CommandError(done.stderr.strip() or f"{command[0]} failed.", hint="Is the package index in reach?")
