"""The `tollhouse-sidecar` command, run beside this one: the proxy's package must not import the sidecar's.

Also the little that `up` and `doctor` need to know from the sidecar's own configuration.
"""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

import click
import msgspec

from proxy.cli.exits import CommandError, Exit
from sidecar import yamlfile

DEFAULT_CONFIG: Final = Path("conf/sidecar.yaml")
INSTALL: Final = "pip install 'tollhouse[sidecar]'"
ENV_PREFIX: Final = "TOLLHOUSE_SIDECAR__"
# What the extra brings; looked for, not imported.
_EXTRA: Final = ("torch", "transformers")

CONFIG_VARIABLE: Final = "TOLLHOUSE_SIDECAR_CONFIG"
config_option: Final = click.option(
    "--sidecar-config",
    type=click.Path(dir_okay=False, path_type=Path),
    default=DEFAULT_CONFIG,
    envvar=CONFIG_VARIABLE,
    metavar="FILE",
    help=f"The sidecar's configuration; if not given, what {CONFIG_VARIABLE} names, or {DEFAULT_CONFIG}.",
)


class SidecarModel(msgspec.Struct, frozen=True):
    """The model's names: for clients, and in the catalogue or on disk."""

    id: str
    source: str


class SidecarEngine(msgspec.Struct, frozen=True):
    """What the model runs on, and how precisely: the same names as in the sidecar's own settings."""

    precision: Literal["fp32", "bf16", "fp16", "int8", "bnb_int8", "nf4"] = "fp32"
    device: Literal["cpu", "cuda"] = "cpu"


class SidecarConfig(msgspec.Struct, frozen=True):
    """What others need of `conf/sidecar.yaml`; the rest of it is the sidecar's to judge."""

    model: SidecarModel
    socket: str = "run/sidecar.sock"
    cache: str = "~/.cache/tollhouse"
    engine: SidecarEngine = SidecarEngine()


# The variables that override those; others are the sidecar's, and would be unknown here.
_VARIABLES: Final = frozenset(
    f"{ENV_PREFIX}{name}"
    for name in ("MODEL__ID", "MODEL__SOURCE", "SOCKET", "CACHE", "ENGINE__PRECISION", "ENGINE__DEVICE")
)


def load_sidecar_config(path: Path, environ: Mapping[str, str]) -> SidecarConfig:
    """Raises ConfigInvalidError."""
    ours = {name: value for name, value in environ.items() if name in _VARIABLES}
    return yamlfile.load(path, SidecarConfig, environ=ours, env_prefix=ENV_PREFIX)


def executable() -> Path:
    """The command installed beside this interpreter. Raises CommandError."""
    path = Path(sys.executable).parent / "tollhouse-sidecar"
    absent = [name for name in _EXTRA if importlib.util.find_spec(name) is None]
    if not os.access(path, os.X_OK):
        absent.append(str(path))
    if absent:
        raise CommandError(f"The sidecar is not installed: {', '.join(absent)} missing.", hint=f"Install it: {INSTALL}")
    return path


def leashed(command: Sequence[str]) -> list[str]:
    """The command, so that it ends when this process does, however that ends."""
    return [sys.executable, "-P", "-m", "proxy.cli.leash", str(os.getpid()), *command]


def run_sidecar_command(*arguments: str) -> int:
    """Run `tollhouse-sidecar …` on this terminal, and give its exit code. Raises CommandError."""
    done = subprocess.run([executable(), *arguments], check=False)  # noqa: S603 - our own command
    return _code(done.returncode)


def ask_sidecar_command(*arguments: str) -> bytes:
    """Run `tollhouse-sidecar … --json` for its document; the rest is shown.

    Raises CommandError and ConfigInvalidError, with the words that its document has.
    """
    done = subprocess.run(leashed([str(executable()), *arguments]), check=False, stdout=subprocess.PIPE)  # noqa: S603 - as above
    if code := _code(done.returncode):
        _raise_told(done.stdout, code)
        words = f"`tollhouse-sidecar {arguments[0]}` ended with exit code {code}, for the reason it gave above."
        raise CommandError(words, code=Exit(code) if code in {*Exit} else Exit.FAILED)
    return done.stdout


class _Told(msgspec.Struct, frozen=True):
    message: str
    hint: str = ""


class _Refusal(msgspec.Struct, frozen=True):
    """How a command that failed ends its `--json`: with one of the two."""

    error: _Told | None = None
    problems: list[yamlfile.Problem] = []


def _raise_told(document: bytes, code: int) -> None:
    """Raise what the document says; a command that was killed has left none."""
    try:
        refusal = msgspec.json.decode(document, type=_Refusal)
    except msgspec.MsgspecError:
        return
    if refusal.problems:
        raise yamlfile.ConfigInvalidError(refusal.problems)
    if refusal.error is not None:
        known = Exit(code) if code in {*Exit} else Exit.FAILED
        raise CommandError(refusal.error.message, hint=refusal.error.hint, code=known)


def _code(returncode: int) -> int:
    # A negative one is the signal that ended it; shells say 128 + signal.
    return returncode if returncode >= 0 else 128 - returncode
