"""Keeps one engine process running, and gives each request what the engine says about it.

No HTTP and no text here: requests are token ids on the way in, deltas on the way out.
"""

from sidecar.supervisor.front import Supervisor
from sidecar.supervisor.sequences import EngineLostError, Sequences

__all__ = ["EngineLostError", "Sequences", "Supervisor"]
