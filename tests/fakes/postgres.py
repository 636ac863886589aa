"""A real Postgres for tests, from the wheel `pgserver`: in a folder of its own, reachable by a Unix socket alone.

Its programs are started here, and not by the wheel's own Python, so that a test can kill it and start it again.
"""

import contextlib
import importlib.util
import itertools
import json
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tests.fakes.waiting import until

SUPERUSER: Final = "postgres"
# Postgres will not run as root, so root starts it as this one.
UNPRIVILEGED: Final = "nobody"
# The databases live as long as a test session. What a crash of the machine would lose is no loss.
FAST: Final = {"fsync": "off", "full_page_writes": "off", "max_connections": "200"}
# Ends the server when this process is gone, whatever became of it: then the pipe that it reads is closed.
LEASH: Final = '"$@" & read -r _; kill -INT "$!" 2>/dev/null; wait "$!"'
# The states of a process that runs no more.
GONE: Final = frozenset({"", "Z", "X"})
# What makes a used database as good as new, which takes a twentieth of the time that a new one takes.
EMPTY: Final = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid();
SET session_replication_role = replica;
DO $$ DECLARE found text; BEGIN
FOR found IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'alembic_version'
LOOP EXECUTE format('DELETE FROM %I', found); END LOOP; END $$;
"""


class Postgres:
    """One server. Mutable: `_leash`, the process that holds the running server, `_names`, and by template `_spare`,
    databases that are as good as new, and `_dumped`, the rows that they begin with.
    """

    def __init__(self) -> None:
        found = importlib.util.find_spec("pgserver")
        assert found is not None
        assert found.origin is not None
        self._programs = Path(found.origin).parent / "pginstall/bin"
        # Not below pytest's folder: that one is closed to other users, and too long for the name of a socket.
        self.folder = Path(tempfile.mkdtemp(prefix="tollhouse-postgres-"))
        self._leash: subprocess.Popen[bytes] | None = None
        self._names = itertools.count()
        self._spare: dict[str, list[str]] = {}
        self._dumped: dict[str, str] = {}

    def make(self) -> None:
        """Make an empty cluster, and start it."""
        self.folder.chmod(0o755)
        if os.geteuid() == 0:
            owner = pwd.getpwnam(UNPRIVILEGED)
            os.chown(self.folder, owner.pw_uid, owner.pw_gid)
        options = ("--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync", f"--username={SUPERUSER}")
        self._run("initdb", "--pgdata", str(self._data), *options)
        self.start()

    def start(self) -> None:
        """Returns when it takes connections."""
        settings = FAST | {"listen_addresses": "", "unix_socket_directories": str(self.folder)}
        given = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        server = [str(self._programs / "postgres"), "-D", str(self._data), *given]
        with (self.folder / "log").open("ab") as log:
            self._leash = subprocess.Popen(
                ["/bin/sh", "-c", LEASH, "sh", *server],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                **_user(),
            )
        until(self.ready)

    def stop(self) -> None:
        """An orderly end: connections are cut, what is committed is on disk."""
        leash, self._leash = self._leash, None
        if leash is not None:
            leash.communicate()

    def kill(self) -> None:
        """Kill -9 of the server and of all its processes, in the middle of whatever they do."""
        postmaster = self.pid
        # It is to make no more of them.
        os.kill(postmaster, signal.SIGSTOP)
        until(lambda: _state(postmaster) == "T")
        children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
        # The first one, lest it clean up after the others.
        killed = (postmaster, *map(int, children))
        for pid in killed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.stop()
        # A server does not start while one of these still has the memory that they share.
        until(lambda: all(_state(pid) in GONE for pid in killed))

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder)

    @property
    def pid(self) -> int:
        return int((self._data / "postmaster.pid").read_text().split("\n", 1)[0])

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    @staticmethod
    def name_in(url: str) -> str:
        """The database's name in such a URL."""
        return url.partition("?")[0].rpartition("/")[2]

    def ready(self) -> bool:
        asked = [str(self._programs / "pg_isready"), "--quiet", "--host", str(self.folder), "--username", SUPERUSER]
        return subprocess.run(asked, check=False).returncode == 0

    def url(self, database: str) -> str:
        """For `database.url`."""
        return f"postgresql+asyncpg://{SUPERUSER}@/{database}?host={self.folder}"

    def sql(self, statement: str, database: str = "postgres") -> list[list[str]]:
        """Run it as the superuser, in a process of its own; the rows, each value as text and NULL as ''."""
        at = ("--host", str(self.folder), "--username", SUPERUSER, "--dbname", database)
        plain = ("--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--field-separator", "\t")
        said = self._run("psql", *at, *plain, "--set", "ON_ERROR_STOP=1", "--command", statement)
        return [line.split("\t") for line in said.splitlines()]

    def rows(self, query: str, database: str) -> list[dict[str, Any]]:
        """What a query finds, with its values as JSON has them."""
        found = self.sql(f"SELECT row_to_json(found) FROM ({query}) AS found", database)  # noqa: S608  a test's words
        return [json.loads(row) for (row,) in found]

    def dump(self, database: str) -> Path:
        """All of a database, in a file."""
        path = self.folder / f"{database}.dump"
        at = ("--host", str(self.folder), "--username", SUPERUSER, "--dbname", database)
        self._run("pg_dump", *at, "--format", "custom", "--file", str(path))
        return path

    def restore(self, database: str, dump: Path) -> None:
        """Put what was dumped in the place of what is there, as docs/operations.md says."""
        at = ("--host", str(self.folder), "--username", SUPERUSER, "--dbname", database)
        self.sql(f"ALTER DATABASE {database} RENAME TO {database}_before")
        self.sql(f"CREATE DATABASE {database}")
        self._run("pg_restore", *at, "--no-owner", "--single-transaction", str(dump))
        self.sql(f"DROP DATABASE {database}_before")

    @contextlib.contextmanager
    def database(self, template: str = "template1") -> Iterator[str]:
        """A database of its own, like the template; its name. It is dropped at the end, whoever is connected."""
        name = self.new_database(template)
        try:
            yield name
        finally:
            self.sql(f"DROP DATABASE {name} WITH (FORCE)")

    @contextlib.contextmanager
    def lent(self, template: str) -> Iterator[str]:
        """The same, but perhaps used before: it has the rows of its template again, whatever else it has by now."""
        spare = self._spare.setdefault(template, [])
        name = spare.pop() if spare else self.new_database(template)
        yield name
        self.sql(EMPTY + self._rows(template), name)
        spare.append(name)

    def _rows(self, template: str) -> str:
        """The statements that bring back the rows that a template has."""
        if template not in self._dumped:
            at = ("--host", str(self.folder), "--username", SUPERUSER, "--dbname", template)
            what = ("--data-only", "--inserts", "--exclude-table", "alembic_version")
            dumped = self._run("pg_dump", *at, *what)
            self._dumped[template] = "".join(line + "\n" for line in dumped.splitlines() if line.startswith("INSERT"))
        return self._dumped[template]

    def new_database(self, template: str = "template1") -> str:
        name = f"test_{next(self._names)}"
        self.sql(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def _run(self, program: str, *arguments: str) -> str:
        command = [str(self._programs / program), *arguments]
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=self.folder, **_user())
        assert done.returncode == 0, f"{program}: {done.stderr}"
        return done.stdout


def _state(pid: int) -> str:
    """The letter of a process' state (proc_pid_stat(5)); empty if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return stat.rpartition(")")[2].split()[0]


def _user() -> dict[str, Any]:
    """The arguments for `subprocess` that make a root start it as somebody else."""
    if os.geteuid() != 0:
        return {}
    return {"user": UNPRIVILEGED, "group": pwd.getpwnam(UNPRIVILEGED).pw_gid, "extra_groups": []}


@contextlib.contextmanager
def running() -> Iterator[Postgres]:
    server = Postgres()
    try:
        server.make()
        yield server
    finally:
        server.remove()
