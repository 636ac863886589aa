"""Checks of a house: its policies, its files' permissions, its addresses, its open files, its books."""

import os
import resource
import stat
from pathlib import Path
from typing import Final

from proxy.cli import desk, listeners
from proxy.cli.checks.check import Case, Check, failed, ok, warning
from proxy.cli.exits import CommandError
from proxy.cli.listeners import Wrong
from proxy.cli.program import program
from proxy.cli.screen import counted
from proxy.connections import FILE_RESERVE, FILES_EACH, fitting
from proxy.policy.load import load_policy
from proxy.secrets import SecretFileError, is_made, read_root_secret
from proxy.store import migrate
from proxy.store.address import described, private_files, unwritable
from proxy.store.failure import SchemaError, StorageError
from sidecar.wire.errors import ApiError
from sidecar.yamlfile import ConfigInvalidError

_OTHERS: Final = 0o077
_CAUSES: Final = "The checks `disk`, `permissions` and `database` look for causes, and the server's log may say why."

_OTHER_ADDRESS: Final = {
    Wrong.HOST: "Set {section}.host in {config} to one of this machine's: `ip address` lists them.",
    Wrong.PORT: "Set {section}.port in {config} to another one.",
    Wrong.TAKEN: "Set {section}.port in {config} to a free one, or end that process.",
}


def check_policy(case: Case) -> Check:
    """The policy files are valid, as the server would read them."""
    folder = Path(case.settings.policies)
    try:
        policy = load_policy(folder)
    except ConfigInvalidError as exc:
        first, more = exc.problems[0], len(exc.problems) - 1
        return failed("policy", str(first) + (f" (and {more} more)" if more else ""), f"Run: {program()} policy check")
    signed = sorted(tier.name for tier in policy.tiers.values() if tier.replay == "signed")
    if signed and not case.settings.public_authorities:
        return warning(
            "policy",
            f"requests of the tier {signed[0]} are signed for a server's name, and none is configured",
            "List the names by which clients reach this server: public_authorities.",
        )
    return ok("policy", f"{folder}: {counted(len(policy.tiers), 'tier')}, revision {policy.revision}")


def check_permissions(case: Case) -> Check:
    """Secret, database and sockets are this user's alone; nobody else may change policies or configuration."""
    secret = Path(case.settings.secret_file)
    try:
        if is_made(secret):
            read_root_secret(secret)
    except SecretFileError as exc:
        return failed("permissions", str(exc), "Without it no key can be checked.")
    theirs = sorted(path for path in _ours(case) if path.exists() and _owner(path) != os.geteuid())
    if theirs and os.geteuid() != 0:
        return failed(
            "permissions",
            f"another user owns {', '.join(map(str, theirs))}",
            f"Run Tollhouse as {_name(theirs[0])}, or: sudo chown -R $(id -un) {' '.join(map(str, theirs))}",
        )
    if closed := unwritable(case.settings.database):
        named = " ".join(map(str, closed))
        return failed(
            "permissions",
            f"this user may not write {', '.join(map(str, closed))}",
            f"Run: chmod u+rwX {named}; where a disk is mounted read-only, mount it for writing.",
        )
    laid_open = sorted(path for path in _rules(case) if _all_may_write(path))
    if laid_open:
        return failed(
            "permissions",
            f"everybody on this machine may change {', '.join(map(str, laid_open))}",
            f"Run: chmod o-w {' '.join(map(str, laid_open))}",
        )
    open_to_others = sorted(path for path in _ours(case) if path.exists() and _mode(path) & _OTHERS)
    if open_to_others:
        named = ", ".join(f"{path} ({_mode(path):04o})" for path in open_to_others)
        return failed(
            "permissions",
            f"others on this machine have access to {named}",
            f"Run: chmod go-rwx {' '.join(map(str, open_to_others))}",
        )
    return ok("permissions", "secret, database and sockets are this user's alone")


def _ours(case: Case) -> set[Path]:
    """What is to be the server's alone: its secret, its database, the sockets, and the folders it made for them."""
    sockets = [Path(case.settings.admin.socket)]
    if case.sidecar is not None:
        sockets.append(Path(case.sidecar.socket))
    files = [Path(case.settings.secret_file), *private_files(case.settings.database), *sockets]
    return {*files, *(path.parent for path in files if not _is_given(path.parent))}


def _is_given(folder: Path) -> bool:
    """Whether a folder is root's, made for the server's group as a volume's root is: then the files are what counts.

    A kubelet leaves some volumes open to all; nobody outside of the pod comes there.
    """
    if os.geteuid() == 0 or not folder.exists() or _owner(folder) != 0:
        return False
    return bool(_mode(folder) & stat.S_IWGRP) and (not _mode(folder) & stat.S_IWOTH or folder.is_mount())


def _rules(case: Case) -> list[Path]:
    """Who writes these decides who may ask for what."""
    folder = Path(case.settings.policies)
    return [path for path in (case.config, folder, *folder.glob("*.yaml")) if path.exists()]


def _all_may_write(path: Path) -> bool:
    """Nobody may where the mount is read-only, whatever the mode: a kubelet leaves a ConfigMap's folder open to all."""
    return bool(_mode(path) & stat.S_IWOTH) and not os.statvfs(path).f_flag & os.ST_RDONLY


def _owner(path: Path) -> int:
    return path.stat().st_uid


def _name(path: Path) -> str:
    try:
        return path.owner()
    except KeyError:
        return f"the user {path.stat().st_uid}"


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def check_ports(case: Case) -> Check:
    """The listeners are ours already, or could be opened."""
    if desk.server_runs(case.settings):
        return ok("ports", f"a server runs here and answers on {case.settings.admin.socket}")
    for section, listener in (("listen", case.settings.listen), ("admin", case.settings.admin)):
        if obstacle := listeners.why_not_bound(listener.host, listener.port):
            return failed(
                "ports",
                f"{section}: {listener.host}:{listener.port}: {obstacle.reason}",
                _OTHER_ADDRESS[obstacle.wrong].format(section=section, config=case.config),
            )
    return ok("ports", f"{case.settings.listen.port} and {case.settings.admin.port} are free")


def check_files(case: Case, hard: int | None = None) -> Check:
    """There may be as many open files as connections want. The server takes all that it may."""
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[1] if hard is None else hard
    most = case.settings.limits.max_connections
    wanted = most * FILES_EACH + FILE_RESERVE
    if allowed == resource.RLIM_INFINITY or allowed >= wanted:
        return ok("files", f"{wanted} open files for {most} connections may be had")
    return warning(
        "files",
        f"{most} connections take {wanted} open files, and there may be {allowed}, enough for {fitting(most, allowed)}",
        f"Raise the limit (LimitNOFILE={wanted} in a unit, ulimit -Hn), or lower limits.max_connections.",
    )


def _makes_tables() -> str:
    return f"`{program()} up` makes them, or: {program()} db upgrade"


def check_database(case: Case) -> Check:
    """The database can be reached, and its tables are ours and those of this version."""
    try:
        where, revision = described(case.settings.database), migrate.current(case.settings.database)
    except SchemaError as exc:
        return failed("database", str(exc), f"See database.url in {case.config}.")
    except StorageError as exc:
        return failed("database", str(exc), f"See database.url in {case.config}, and whether this user may use it.")
    if revision is None:
        return warning("database", f"{where} has no tables yet", _makes_tables())
    if not migrate.is_known(revision):
        return failed(
            "database",
            f"{where} is at schema {revision}, which this version does not know: {migrate.NEWER}",
            migrate.INSTEAD,
        )
    if revision != migrate.head():
        return failed(
            "database",
            f"{where} is at schema {revision}, this version needs {migrate.head()}",
            f"Run: {program()} db upgrade",
        )
    return ok("database", f"{where}, schema {revision}")


def check_secret(case: Case) -> Check:
    """The root secret is there, or there are no keys yet that only it can check."""
    path = Path(case.settings.secret_file)
    try:
        if is_made(path):
            return ok("secret", str(path))
        tables = migrate.current(case.settings.database) is not None
        keys = desk.at_the_desk(case.settings, lambda opened: opened.list_keys()) if tables else []
    except (ApiError, CommandError, ConfigInvalidError, SchemaError, SecretFileError, StorageError) as exc:
        return failed("secret", f"whether keys need one cannot be told: {exc}", _CAUSES)
    if lost := [key for key in keys if not (key.revoked or key.signed)]:
        return failed(
            "secret",
            f"{path} is not there, and without it {counted(len(lost), 'key')} cannot be checked",
            "Put the file from before back. A start makes a new one: docs/operations.md says what that means for keys.",
        )
    return ok("secret", f"{path} is made at the first start")


def check_ledger(case: Case) -> Check:
    """The books agree with themselves: the conservation laws, over every row."""
    try:
        if migrate.current(case.settings.database) is None:
            return warning("ledger", "there are no books yet", _makes_tables())
        broken = desk.at_the_desk(case.settings, lambda opened: opened.check_ledger())
    except CommandError as exc:
        # Of a database that cannot be used the desk says to ask the doctor.
        asks_us = exc.hint and isinstance(exc.__cause__, StorageError)
        return failed("ledger", exc.message, _CAUSES if asks_us else exc.hint)
    except ConfigInvalidError as exc:
        return failed("ledger", str(exc.problems[0]), f"Run: {program()} policy check")
    except (ApiError, SchemaError, StorageError) as exc:
        return failed("ledger", str(exc), _CAUSES)
    if broken:
        more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
        return failed("ledger", broken[0] + more, "Keep a copy of the database, and report it: this must not happen.")
    return ok("ledger", "the books agree with themselves")
