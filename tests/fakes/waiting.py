"""Waits for what another process does."""

import time
from collections.abc import Callable
from typing import Any, Final

# For what is not to come too late: longer than a busy machine keeps it.
LIMIT_S: Final = 30.0


def until(what: Callable[[], Any], timeout_s: float = LIMIT_S) -> Any:
    """What `what` gives, once that is true."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.02)
    raise AssertionError("timed out")
