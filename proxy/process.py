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
# What the collector lets pass before it looks. A running request has some 60, and a connection that ended leaves 20.
YOUNG_OBJECTS: Final = 10_000


def harden(log: JsonLog) -> None:
    """No core dump or debugger that could show keys, and enough files."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        log.warning("dumpable", reason=os.strerror(ctypes.get_errno()))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # A creation time for each series doubles the page and says nothing.
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # the library has no types here


def calm_collector() -> None:
    """What is loaded by now stays, and requests leave no cycles behind: to look for garbage in these is in vain.

    It held everybody up for 60 ms now and then, and for a short time with each dozen requests.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS)
