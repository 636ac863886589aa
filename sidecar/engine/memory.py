"""How much memory this process may still take: the machine's, or less in a container."""

from pathlib import Path
from typing import Final

_MEMINFO: Final = Path("/proc/meminfo")
_CGROUP: Final = Path("/sys/fs/cgroup")
# Where the system does not say (macOS).
_ASSUMED_BYTES: Final = 8 << 30


def available_bytes(device: str = "cpu") -> int:
    """What a device has free."""
    if device == "cpu":
        return free_bytes()
    import torch  # noqa: PLC0415  # only where there is a GPU to ask

    # What PyTorch keeps for later is free, too.
    torch.cuda.empty_cache()
    free: int = torch.cuda.mem_get_info()[0]
    return free


def free_bytes(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int:
    """Linux's MemAvailable, capped by what the control group (version 2) has left."""
    if not meminfo.is_file():
        return _ASSUMED_BYTES
    fields = dict(line.split(":", 1) for line in meminfo.read_text("ascii").splitlines() if ":" in line)
    available = int(fields["MemAvailable"].split()[0]) * 1024
    limit = cgroup / "memory.max"
    if limit.is_file() and (text := limit.read_text("ascii").strip()) != "max":
        available = min(available, int(text) - int((cgroup / "memory.current").read_text("ascii")))
    return max(available, 0)
