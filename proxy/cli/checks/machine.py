"""Checks of the machine and the environment: no configuration is needed for them."""

import importlib.metadata
import importlib.util
import platform
import sqlite3
import sys
from pathlib import Path
from typing import Final

from proxy.cli.checks.check import Check, failed, ok, warning
from proxy.store.sqlite import WAL_RESET_BUG
from sidecar.headroom import left_bytes

DISTRIBUTION: Final = "tollhouse"
# The import names that are the user's, and that other packages on the index install too.
OUR_NAMES: Final = ("proxy", "sidecar", "migrations")
LOW_MEMORY_BYTES: Final = 2_000_000_000
GIGABYTE: Final = 1_000_000_000


def check_python() -> Check:
    """The interpreter is one of our own, in a virtual environment."""
    version = f"{platform.python_implementation()} {platform.python_version()}, {sys.executable}"
    if sys.prefix == sys.base_prefix:
        return warning(
            "python",
            f"{version}: not a virtual environment",
            "Other programs' packages may get in the way. ./tollhouse makes an environment of its own.",
        )
    return ok("python", version)


def check_packages() -> Check:
    """Nobody else has installed packages of our names (proxy, sidecar, migrations) over ours."""
    owners = importlib.metadata.packages_distributions()
    for name in OUR_NAMES:
        others = sorted(set(owners.get(name, ())) - {DISTRIBUTION})
        if others:
            return failed(
                "packages",
                f"the package '{name}' is also installed by {', '.join(others)}",
                f"Use an environment of its own, or: pip uninstall {' '.join(others)}; then install Tollhouse again.",
            )
    places = {name: _home(name) for name in OUR_NAMES}
    if astray := sorted(name for name, place in places.items() if place != places[OUR_NAMES[0]]):
        told = ", ".join(f"'{name}' from {places[name] or 'nowhere'}" for name in (OUR_NAMES[0], *astray))
        return failed(
            "packages",
            f"our packages come from different places: {told}",
            "Unset PYTHONPATH, and look for what lies there under our names; then install Tollhouse again.",
        )
    version = importlib.metadata.version(DISTRIBUTION)
    return ok("packages", f"{DISTRIBUTION} {version} owns {', '.join(OUR_NAMES)}")


def _home(name: str) -> str:
    """The folder that a package lies in; empty for what is no package, or not there."""
    found = importlib.util.find_spec(name)
    places = [] if found is None else list(found.submodule_search_locations or ())
    return str(Path(places[0]).parent) if places else ""


def check_sqlite() -> Check:
    """The library that keeps the books is there. Its known bug is no danger here; that we know it is said."""
    first, last = WAL_RESET_BUG
    if first <= sqlite3.sqlite_version_info <= last:
        return ok(
            "sqlite", f"{sqlite3.sqlite_version}; its WAL-reset bug needs two connections, and Tollhouse opens one"
        )
    return ok("sqlite", sqlite3.sqlite_version)


def check_memory() -> Check:
    """Memory is free for a model; in a container, of its own limit."""
    try:
        available = left_bytes()
    except (OSError, ValueError):
        return ok("memory", "cannot be told on this system")
    said = f"{available / GIGABYTE:.1f} GB available"
    if available < LOW_MEMORY_BYTES:
        return warning("memory", said, "The default model needs about 2 GB while it is converted, 1 GB afterwards.")
    return ok("memory", said)
