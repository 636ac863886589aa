"""How much memory a model may still take on a device."""

from pathlib import Path
from typing import Final

from sidecar.headroom import CGROUPS, PROC, left_bytes

# Where the system does not say.
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


def free_bytes(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """What Linux says is left to this process; the file cache of weights that were just read is in nobody's way."""
    try:
        return left_bytes(proc, cgroups)
    except (OSError, ValueError):
        return _ASSUMED_BYTES
