"""The disks that a house writes to: its database's, and that of the folder it runs in, where the logs of `up` are."""

import shutil
from pathlib import Path
from typing import Final

from proxy.cli.checks.check import Case, Check, failed, ok, warning
from proxy.cli.checks.machine import GIGABYTE
from proxy.settings import Database
from proxy.store.address import private_files
from proxy.store.failure import StorageError

LOW_BYTES: Final = 1_000_000_000
# With less nothing starts.
LEAST_BYTES: Final = 50_000_000


def check_disk(case: Case) -> Check:
    """There is room for the database and the logs."""
    folder, free = fullest(case.settings.database)
    said = f"{free / GIGABYTE:.1f} GB free in {folder.resolve()}"
    hint = "Free some space: on a full disk every request is refused, since nothing is answered that cannot be booked."
    if free < LEAST_BYTES:
        return failed("disk", said, hint)
    if free < LOW_BYTES:
        return warning("disk", said, hint)
    return ok("disk", said)


def fullest(settings: Database) -> tuple[Path, int]:
    """The one with the least room, and how many bytes are free there."""
    try:
        files = private_files(settings)
    except StorageError:
        # That the URL cannot be read is for another check to say.
        files = []
    folders = [*(existing(file.parent) for file in files), Path()]
    rooms = [(folder, shutil.disk_usage(folder).free) for folder in folders]
    return min(rooms, key=lambda room: room[1])


def existing(folder: Path) -> Path:
    """Where a folder is, or would be made."""
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())
