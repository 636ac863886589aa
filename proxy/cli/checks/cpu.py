"""The check of the CPU: the instructions that decide in which precision a model runs well, and how fast."""

import os
import platform
from pathlib import Path
from typing import Final

from proxy.cli.checks.check import Check, ok, warning

NAME: Final = "cpu"
CPUINFO: Final = Path("/proc/cpuinfo")
# What the engine's arithmetic is made for: a name of ours, and the flags of /proc/cpuinfo of which one is enough.
FEATURES: Final = {
    "avx2": ("avx2",),
    "avx512": ("avx512f",),
    "vnni": ("amx_int8", "avx512_vnni", "avx_vnni"),
    "amx": ("amx_tile",),
    "bf16": ("amx_bf16", "avx512_bf16"),
    "fp16": ("amx_fp16", "avx512_fp16"),
}
SHOWN: Final = {"avx2": "AVX2", "avx512": "AVX-512", "vnni": "VNNI", "amx": "AMX", "bf16": "BF16", "fp16": "FP16"}


def features(cpuinfo: Path = CPUINFO) -> frozenset[str] | None:
    """Those of FEATURES that this CPU has; None where that cannot be told."""
    if platform.machine() not in {"x86_64", "AMD64"}:
        return None
    try:
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")]
    except OSError:
        return None
    flags = set(lines[0].partition(":")[2].split()) if lines else set()
    return frozenset(name for name, wanted in FEATURES.items() if flags & set(wanted))


def check_cpu(cpuinfo: Path = CPUINFO) -> Check:
    """The instructions that models want are there; what they mean for the precision."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = f"{count} core" if count == 1 else f"{count} cores"
    found = features(cpuinfo)
    if found is None:
        return ok(NAME, f"{platform.machine()}, {cores}")
    if "avx2" not in found:
        return warning(NAME, f"{cores}, no AVX2", "Models will run slowly. Use a CPU from after 2015, or a GPU.")
    shown = ", ".join(SHOWN[name] for name in FEATURES if name in found)
    return ok(NAME, f"{cores}, {shown}: {_meaning(found)}")


def _meaning(found: frozenset[str]) -> str:
    integers = "int8 is fast" if "vnni" in found else "int8 keeps 7 of its 8 bits (no VNNI)"
    halves = [name for name in ("bf16", "fp16") if name in found]
    return f"{integers}, {' and '.join(halves) + ' too' if halves else 'bf16 and fp16 run as fp32'}"
