"""The check of the GPU: the driver, what CUDA it speaks, whether this user may use it, and whether torch fits it.

Torch is not imported, which takes seconds: its version file is read.
"""

import ctypes
import importlib.util
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from proxy.cli.checks.check import Check, Status, failed, ok, warning

NAME: Final = "gpu"
DRIVER: Final = Path("/proc/driver/nvidia/version")
# The one device that every CUDA program opens, and the first GPU.
DEVICES: Final = (Path("/dev/nvidiactl"), Path("/dev/nvidia0"))
_CUDA_BUILD: Final = re.compile(r"^cuda\b[^=]*= *'(\d+)\.(\d+)'", re.MULTILINE)
_VERSION: Final = re.compile(r"^__version__ *= *'([^']+)'", re.MULTILINE)


class Torch(msgspec.Struct, frozen=True):
    """The torch that is installed. `cuda`: the version it was built for; None for a build without."""

    version: str
    cuda: tuple[int, int] | None


def torch_build(file: Path | None = None) -> Torch | None:
    """What is installed beside us; None if nothing is."""
    if file is None:
        found = importlib.util.find_spec("torch")
        if found is None or found.origin is None:
            return None
        file = Path(found.origin).with_name("version.py")
    try:
        text = file.read_text()
    except OSError:
        return None
    version, cuda = _VERSION.search(text), _CUDA_BUILD.search(text)
    return Torch(version[1] if version else "unknown", (int(cuda[1]), int(cuda[2])) if cuda else None)


def driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA that the driver speaks, asked of its library; None where that is not to be had."""
    number = ctypes.c_int()
    try:
        # CUDA driver API: needs no cuInit, touches no GPU; 1000 * major + 10 * minor.
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number)) != 0:
            return None
    except (OSError, AttributeError):
        return None
    return number.value // 1000, number.value % 1000 // 10


def is_there() -> bool:
    """Whether this machine has an NVIDIA driver."""
    return DRIVER.exists() or driver_cuda() is not None


def is_usable() -> bool:
    """Whether a model of ours could run on one."""
    return is_there() and check_gpu().status is Status.OK


def check_gpu() -> Check:
    """The driver, the devices and the build of torch fit together."""
    return judged(torch_build(), driver_cuda(), there=is_there(), devices=DEVICES)


def judged(torch: Torch | None, speaks: tuple[int, int] | None, *, there: bool, devices: Sequence[Path]) -> Check:
    """What to say of a torch, of the CUDA that the driver speaks, and of the devices."""
    build = "torch is not installed" if torch is None else f"torch {torch.version}"
    if not there:
        return ok(NAME, f"no NVIDIA driver: models run on the CPU; {build}")
    if torch is None or torch.cuda is None:
        return warning(
            NAME,
            f"an NVIDIA driver is there, but {build}" + ("" if torch is None else ", a build without CUDA"),
            "To use the GPU, install the other build, TOLLHOUSE_TORCH=cuda ./tollhouse, and set engine.device: cuda.",
        )
    if speaks is None:
        return failed(
            NAME,
            "an NVIDIA driver is loaded, but its library libcuda.so.1 is not found",
            "Install the driver's user-space part; in a container use the NVIDIA container toolkit.",
        )
    told = f"CUDA {_dotted(speaks)} by the driver, {build} for CUDA {_dotted(torch.cuda)}"
    # Within a major version newer programs run on older drivers (CUDA's minor version compatibility).
    if speaks[0] < torch.cuda[0]:
        return failed(NAME, f"the driver is too old: {told}", "Update the NVIDIA driver, or take a torch for its CUDA.")
    closed = [str(path) for path in devices if path.exists() and not os.access(path, os.R_OK | os.W_OK)]
    if closed:
        return failed(
            NAME,
            f"this user may not use {', '.join(closed)}",
            "Add the user to the device's group, often `video` or `render`, and log in anew.",
        )
    return ok(NAME, told)


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
