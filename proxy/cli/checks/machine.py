"""Checks of the machine and the environment: no configuration is needed for them."""

import importlib.metadata
import os
import platform
import shutil
import sqlite3
import sys
from pathlib import Path
from typing import Final

from proxy.cli.checks.check import Check, failed, ok, warning
from proxy.store.sqlite import WAL_RESET_BUG

DISTRIBUTION: Final = "tollhouse"
# The import names that are the user's, and that other packages on the index install too.
OUR_NAMES: Final = ("proxy", "sidecar", "migrations")
LOW_MEMORY_BYTES: Final = 2_000_000_000
LOW_DISK_BYTES: Final = 1_000_000_000
# What the engine's arithmetic is made for, as Linux names it in /proc/cpuinfo.
FAST_INT8: Final = ("amx_int8", "avx512_vnni", "avx_vnni")
_GIGABYTE: Final = 1_000_000_000


def check_python() -> Check:
    """The interpreter, and whether it is one of our own."""
    version = f"{platform.python_implementation()} {platform.python_version()}, {sys.executable}"
    if sys.prefix == sys.base_prefix:
        return warning(
            "python",
            f"{version}: not a virtual environment",
            "Other programs' packages may get in the way. ./tollhouse makes an environment of its own.",
        )
    return ok("python", version)


def check_packages() -> Check:
    """Nobody else has installed packages of our names over ours."""
    owners = importlib.metadata.packages_distributions()
    for name in OUR_NAMES:
        others = sorted(set(owners.get(name, ())) - {DISTRIBUTION})
        if others:
            return failed(
                "packages",
                f"the package '{name}' is also installed by {', '.join(others)}",
                f"Use an environment of its own, or: pip uninstall {' '.join(others)}; then install Tollhouse again.",
            )
    version = importlib.metadata.version(DISTRIBUTION)
    return ok("packages", f"{DISTRIBUTION} {version} owns {', '.join(OUR_NAMES)}")


def check_sqlite() -> Check:
    """The library that keeps the books. Its known bug is no danger here; that we know it is said."""
    first, last = WAL_RESET_BUG
    if first <= sqlite3.sqlite_version_info <= last:
        return ok(
            "sqlite", f"{sqlite3.sqlite_version}; its WAL-reset bug needs two connections, and Tollhouse opens one"
        )
    return ok("sqlite", sqlite3.sqlite_version)


def check_cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> Check:
    """The instructions that decide how fast a model runs on this CPU."""
    cores = f"{os.cpu_count() or 1} cores"
    try:
        flags = _flags(cpuinfo.read_text())
    except OSError:
        return ok("cpu", f"{platform.machine()}, {cores}")
    if platform.machine() not in {"x86_64", "AMD64"}:
        return ok("cpu", f"{platform.machine()}, {cores}")
    if "avx2" not in flags:
        return warning("cpu", f"{cores}, no AVX2", "Models will run slowly. Use a CPU from after 2015, or a GPU.")
    fast = [name for name in FAST_INT8 if name in flags]
    return ok("cpu", f"{cores}, AVX2, {fast[0] if fast else 'no VNNI: int8 weights keep 7 of their 8 bits'}")


def _flags(cpuinfo: str) -> set[str]:
    lines = [line for line in cpuinfo.splitlines() if line.startswith("flags")]
    return set(lines[0].partition(":")[2].split()) if lines else set()


def check_gpu(driver: Path = Path("/proc/driver/nvidia/version")) -> Check:
    """An NVIDIA driver, which decides what build of torch is installed."""
    if driver.exists() or shutil.which("nvidia-smi"):
        return ok("gpu", "an NVIDIA driver is there")
    return ok("gpu", "no NVIDIA driver: models run on the CPU")


def check_memory(meminfo: Path = Path("/proc/meminfo")) -> Check:
    """Memory that is free for a model."""
    try:
        available = _available_bytes(meminfo.read_text())
    except OSError:
        return ok("memory", "cannot be told on this system")
    said = f"{available / _GIGABYTE:.1f} GB available"
    if available < LOW_MEMORY_BYTES:
        return warning("memory", said, "The default model needs about 2 GB while it is converted, 1 GB afterwards.")
    return ok("memory", said)


def _available_bytes(meminfo: str) -> int:
    lines = [line.split() for line in meminfo.splitlines() if line.startswith("MemAvailable:")]
    return int(lines[0][1]) * 1024 if lines else 0


def check_disk(folder: Path = Path()) -> Check:
    """Room for the database and the logs."""
    free = shutil.disk_usage(folder).free
    said = f"{free / _GIGABYTE:.1f} GB free in {folder.resolve()}"
    if free < LOW_DISK_BYTES:
        return warning("disk", said, "A full disk refuses every request: nothing is answered that cannot be booked.")
    return ok("disk", said)
