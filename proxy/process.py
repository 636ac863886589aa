"""What the process itself wants, before it serves anybody."""

import ctypes
import gc
import os
import resource
from typing import Final

import prometheus_client

from sidecar.jsonlog import JsonLog

# The option's number in linux/prctl.h.
_PR_SET_DUMPABLE: Final = 4


def harden(log: JsonLog) -> None:
    """No core dump or debugger that could show keys, and enough files."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        log.warning("dumpable", reason=os.strerror(ctypes.get_errno()))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # A creation time for each series doubles the page and says nothing.
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # the library has no types here


def keep_loaded() -> None:
    """What is loaded by now stays: to look for garbage in it would hold everybody up for 60 ms now and then."""
    gc.collect()
    gc.freeze()
