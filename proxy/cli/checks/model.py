"""Checks of the model: is it here and whole, is there room for it, does this machine do its precision well."""

import json
import shutil
from pathlib import Path
from typing import Any, Final

import msgspec

from proxy.cli import listeners, sidecar_command
from proxy.cli.checks import cpu, gpu
from proxy.cli.checks.check import Case, Check, Status, failed, ok, warning
from proxy.cli.checks.disk import existing
from proxy.cli.checks.machine import GIGABYTE
from proxy.cli.exits import CommandError
from proxy.cli.program import program
from proxy.cli.sidecar_command import SidecarConfig
from sidecar.headroom import left_bytes
from sidecar.yamlfile import ConfigInvalidError

# Of a weight; what the embedding and the small layers keep in fp32 comes on top.
BYTES: Final = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "int8": 1.0, "bnb_int8": 1.0, "nf4": 0.6}
# Of the memory that is free: answers that run want some too.
MOST_SHARE: Final = 0.8
_LENGTH_BYTES: Final = 8
_MOST_HEADER_BYTES: Final = 100_000_000


class Row(msgspec.Struct, frozen=True):
    """What `tollhouse-sidecar list --verify --json` says of a model. `damaged`: files that are not what they were."""

    name: str
    path: str | None
    needed_bytes: int = 0
    damaged: tuple[str, ...] = ()


class Reason(msgspec.Struct, frozen=True):
    """Why a model cannot be used, and what to do."""

    message: str
    hint: str


class Source(msgspec.Struct, frozen=True):
    """What it says of a model that is configured. `path`: its folder; None if it must be made first, or is refused.

    `weights`: the files that are loaded of it.
    """

    source: str
    path: str | None
    weights: list[str]
    error: Reason | None


class Listing(msgspec.Struct, frozen=True):
    """All that it says; of those that are configured, the chat model is the first."""

    rows: list[Row]
    configured: list[Source]


def check_model(case: Case) -> Check:
    """The sidecar is installed, and its models are on this machine: as they were made, or folders that can be used."""
    if case.sidecar is None:
        return warning(
            "model", f"{case.sidecar_config} is not there or not valid", "No sidecar runs on this machine without it."
        )
    try:
        listing = _listing(case.sidecar_config, "--verify")
    except CommandError as exc:
        return failed("model", exc.message, exc.hint)
    except ConfigInvalidError as exc:
        return failed("model", "\n".join(map(str, exc.problems)), f"Repair {case.sidecar_config}.")
    rows = {row.name: row for row in listing.rows}
    checks = [
        _of_catalogue(case.sidecar, rows[found.source], case.sidecar_config) if found.source in rows else _own(found)
        for found in listing.configured
    ]
    wrong = [check for status in (Status.FAILED, Status.WARNING) for check in checks if check.status is status]
    return wrong[0] if wrong else ok("model", "; ".join(check.message for check in checks))


def _listing(config: Path, *options: str) -> Listing:
    """What the sidecar's own command finds. Raises CommandError and ConfigInvalidError."""
    listed = sidecar_command.ask_sidecar_command("list", *options, "--config", str(config), "--json")
    return msgspec.json.decode(listed, type=Listing)


def _makes_it() -> str:
    return f"`{program()} up` does it, or: {program()} model fetch"


def _own(found: Source) -> Check:
    """Of a folder or a GGUF file that the operator brought."""
    if found.error is not None:
        return failed("model", found.error.message, found.error.hint)
    if found.path is None:
        return warning("model", f"{found.source} is not converted yet", _makes_it())
    return ok("model", found.source)


def _of_catalogue(sidecar: SidecarConfig, row: Row, config: Path) -> Check:
    if row.path is None:
        free = shutil.disk_usage(existing(Path(sidecar.cache).expanduser())).free
        if free < row.needed_bytes:
            return failed(
                "model",
                f"{row.name} is not fetched yet, and needs {row.needed_bytes / GIGABYTE:.1f} GB in {sidecar.cache}: "
                f"{free / GIGABYTE:.1f} GB are free",
                f"Free some space, or set `cache` in {config} to a folder on another disk.",
            )
        return warning("model", f"{row.name} is not fetched yet", _makes_it())
    if row.damaged:
        return failed(
            "model",
            f"{', '.join(row.damaged)} in {row.path} is not as it was made",
            f"Make it anew: rm -r {row.path} and {program()} model fetch. If it happens again, check the disk.",
        )
    return ok("model", f"{row.name}, {row.path}")


def check_device(case: Case) -> Check:
    """No GPU that could be used is left idle."""
    if case.sidecar is None:
        return ok("device", "no sidecar is configured here")
    if case.sidecar.engine.device != "cpu":
        return ok("device", "the model runs on the GPU")
    if gpu.is_usable():
        return warning(
            "device",
            "the model runs on the CPU, and a GPU that it could use is idle",
            f"Set engine.device: cuda in {case.sidecar_config}, and engine.precision: bf16 (docs/models.md); if the "
            "GPU is for others, this is as it should be.",
        )
    return ok("device", "the model runs on the CPU")


def check_precision(case: Case) -> Check:
    """What the engine was asked to compute in is what this machine does well."""
    if case.sidecar is None:
        return ok("precision", "no sidecar is configured here")
    engine = case.sidecar.engine
    if engine.device != "cpu":
        return _on_gpu(engine.precision, gpu.torch_build(), there=gpu.is_there())
    return judged(engine.precision, cpu.features())


def judged(precision: str, found: frozenset[str] | None) -> Check:
    """What a CPU of these features makes of a precision; None where they cannot be told."""
    said = f"{precision} on the CPU"
    if found is None:
        return ok("precision", said)
    if precision in {"bf16", "fp16"} and precision not in found:
        return warning(
            "precision",
            f"{said} runs as fp32: this CPU has no {precision} instructions",
            "Set engine.precision to fp32 or int8; docs/precision.md compares them.",
        )
    if precision in {"bnb_int8", "nf4"}:
        return warning("precision", f"{said} saves memory, not time", "int8 is the fast one: docs/precision.md.")
    if precision == "int8":
        return ok("precision", f"{said}{'' if 'vnni' in found else ', of which 7 bits are used for want of VNNI'}")
    return ok("precision", f"{said}{'; int8 is two to three times as fast' if precision == 'fp32' else ''}")


def _on_gpu(precision: str, torch: gpu.Torch | None, *, there: bool) -> Check:
    if precision == "int8":
        return failed("precision", "int8 is for CPUs", "Set engine.precision to bnb_int8 or bf16.")
    if not there or torch is None or torch.cuda is None:
        lacks = "no NVIDIA driver is there" if not there else "torch is a build without CUDA"
        return failed(
            "precision", f"engine.device is cuda, but {lacks}", "See the check `gpu`, or set engine.device: cpu."
        )
    return ok("precision", f"{precision} on the GPU")


def check_room(case: Case) -> Check:
    """The model's weights fit into the memory that is free."""
    if case.sidecar is None:
        return ok("room", "no sidecar is configured here")
    if listeners.socket_answers(Path(case.sidecar.socket)):
        return ok("room", "the model is loaded")
    weights = _weights(case.sidecar_config)
    if not weights:
        return ok("room", "to be seen once the model is here")
    parameters = sum(map(_parameters, weights))
    if not parameters:
        return failed(
            "room",
            f"no weights can be read from {weights[0]}",
            "Copy the files again from where the model comes from: they are empty or damaged, or pointers of Git LFS.",
        )
    wanted = parameters * BYTES.get(case.sidecar.engine.precision, 4.0)
    said = f"{parameters / 1e6:,.0f} million weights in {case.sidecar.engine.precision} take {wanted / GIGABYTE:.1f} GB"
    if case.sidecar.engine.device != "cpu":
        return ok("room", f"{said}; nvidia-smi shows what the GPU has free")
    return _room_for(wanted, said)


def _room_for(wanted: float, said: str) -> Check:
    try:
        free = left_bytes()
    except (OSError, ValueError):
        return ok("room", f"{said}; what is free cannot be told on this system")
    said = f"{said}, {free / GIGABYTE:.1f} GB are free"
    if wanted > free:
        return failed("room", said, "Take a smaller model or precision (docs/precision.md), or end other programs.")
    if wanted > free * MOST_SHARE:
        return warning("room", said, "Little is left for running answers: fewer will run at once.")
    return ok("room", said)


def _weights(config: Path) -> list[Path]:
    """The files of the chat model; empty if there are none yet: why, the check `model` says."""
    try:
        return [Path(path) for path in _listing(config).configured[0].weights]
    except (CommandError, ConfigInvalidError):
        return []


def _parameters(file: Path) -> int:
    """How many numbers a file of safetensors holds: 8 bytes of length, then a JSON header (its format's README)."""
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(_LENGTH_BYTES), "little")
            header: dict[str, Any] = json.loads(opened.read(min(length, _MOST_HEADER_BYTES)))
        return sum(_product(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 0


def _product(shape: list[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
