"""Runs a command that must not outlive the process that started it: `python -m proxy.cli.leash PARENT COMMAND…`.

Started between `tollhouse up` and its servers, it asks the kernel for a SIGTERM at the parent's death and becomes the
command. Standard library only. Where there is no prctl the command runs without the leash.
"""

import ctypes
import os
import signal
import sys
from typing import Final

# <linux/prctl.h>; survives execve (prctl(2)).
_PR_SET_PDEATHSIG: Final = 1


def main(parent: int, command: list[str]) -> None:
    """Become `command`; does not return."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        # The parent may have died before the kernel was asked.
        if os.getppid() != parent:
            sys.exit(1)
    # The command is the one that `up` gave, not a stranger's.
    os.execv(command[0], command)  # noqa: S606


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
