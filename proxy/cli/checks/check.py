"""One finding of the doctor, and what the checks of a house are given."""

import enum
from pathlib import Path

import msgspec

from proxy.cli.sidecar_command import SidecarConfig
from proxy.settings import Proxy


class Status(enum.StrEnum):
    """How a check came out: nothing to do; works, but look at it; does not work."""

    OK = "ok"
    WARNING = "warn"
    FAILED = "fail"


class Check(msgspec.Struct, frozen=True):
    """A finding: what was seen, and what to do about it."""

    name: str
    status: Status
    message: str
    hint: str = ""


class Case(msgspec.Struct, frozen=True):
    """What a house is configured to be. `sidecar` is None where its file cannot be used, or is not on this machine."""

    config: Path
    settings: Proxy
    sidecar_config: Path
    sidecar: SidecarConfig | None


def ok(name: str, message: str) -> Check:
    return Check(name, Status.OK, message)


def warning(name: str, message: str, hint: str) -> Check:
    return Check(name, Status.WARNING, message, hint)


def failed(name: str, message: str, hint: str) -> Check:
    return Check(name, Status.FAILED, message, hint)
