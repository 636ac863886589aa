"""What `tollhouse up` lays before the first start: configuration files, private folders, the database's schema.

Only what is missing is made; nothing that lies there is changed.
"""

import contextlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from proxy.cli.exits import CommandError
from proxy.cli.program import program
from proxy.policy import json_schema
from proxy.settings import Proxy
from proxy.store import migrate
from proxy.store.address import described

PRIVATE: Final = 0o700
LOGS: Final = Path("run")
# A folder of another name that is not there is a slip of the pen, and must not come to hold the default's tiers.
DEFAULT_POLICIES: Final = Path("policies")
# Where an installed wheel keeps the files that a checkout has at its root; see data-files in pyproject.toml.
_SHARE: Final = "share/tollhouse"
_ROOT: Final = Path(__file__).parents[2]


def defaults_folder() -> Path:
    """The folder with `conf/` and `policies/` as they come. Raises CommandError."""
    for folder in (_ROOT, Path(sysconfig.get_path("data")) / _SHARE):
        if (folder / "conf/proxy.yaml").is_file():
            return folder
    raise CommandError(
        "There is no configuration here, and this installation brings no default one.",
        hint=f"Run `{program()} up` in a checkout, or copy conf/ and policies/ from one.",
    )


def write_missing(wanted: dict[Path, str]) -> list[Path]:
    """Copy a default, a path below the defaults folder, to each place where a file is missing; the places that were.

    Raises CommandError.
    """
    written = []
    for path, default in wanted.items():
        if not path.exists():
            content = (defaults_folder() / default).read_bytes()
            with _made(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            written.append(path)
    return written


@contextlib.contextmanager
def _made(path: Path) -> Iterator[None]:
    """Raises CommandError for what the system refuses."""
    try:
        yield
    except OSError as exc:
        raise CommandError(
            f"{path} cannot be made in {Path.cwd()}: {exc.strerror or exc}.",
            hint="Start in a folder that this user may write to, on a disk with room: a first start needs about 1 GB.",
        ) from exc


def missing_policies(folder: Path) -> dict[Path, str]:
    """The default policy and the schema that it names for editors, if the folder has no policy at all."""
    if folder != DEFAULT_POLICIES or any(folder.glob("*.yaml")):
        return {}
    return {folder / name: f"policies/{name}" for name in ("default.yaml", json_schema.FILE)}


def make_private_folders(settings: Proxy, sidecar_socket: str) -> None:
    """The folders of secrets, sockets and logs, for this user alone. Raises CommandError."""
    folders = {Path(path).parent for path in (settings.secret_file, settings.admin.socket, sidecar_socket)}
    for folder in sorted({*folders, LOGS}):
        with _made(folder):
            folder.mkdir(mode=PRIVATE, parents=True, exist_ok=True)


def upgrade_database(settings: Proxy) -> str:
    """Bring the schema up to date; what was done, for people."""
    where, before = described(settings.database), migrate.current(settings.database)
    if before == migrate.head():
        return where
    migrate.upgrade(settings.database)
    return f"{where}, created" if before is None else f"{where}, schema upgraded from {before} to {migrate.head()}"
