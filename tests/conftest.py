"""What every test gets: the floor under the number of tests, and a guard against blocking the event loop."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from blockbuster import BlockBuster, blockbuster_ctx
from hypothesis import HealthCheck, settings

from proxy.settings import Database as DatabaseSettings
from proxy.store import migrate
from tests.fakes import postgres as postgres_server

# A full run that collects fewer tests than this has lost some, by a typo in a name or a broken import hook.
FEWEST_TESTS = 1700
# These files are one process's, but for two that have houses of their own: the other one takes them at its end.
HOUSES = "tests/e2e/"
APART = ("tests/e2e/test_kills.py", "tests/e2e/test_leaving_and_crashing.py")
# Files and functions: the driver of Postgres looks for a password file and certificates once for each connection, and
# migrations run on a loop of their own, on which nobody waits.
MAY_BLOCK = (("asyncpg/connect_utils.py", "_parse_connect_arguments"), ("proxy/store/migrate.py", "_upgrade"))
# On a machine that others use too, the time of an example says nothing of what it tries.
settings.register_profile("steady", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")
# Targets of their own: `tollhouse test clients` and `tollhouse test images`.
collect_ignore = ["clients", "images"]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any, ids: Sequence[str]) -> None:
    """Of a run whose tests several processes share: asked in the one that started them."""
    _check_number(node.config, len(ids))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand out a file at a time, the ones with most tests first, but most of tests/e2e to one process.

    Two houses at once take twice as long.
    """
    from xdist.scheduler import LoadFileScheduling  # noqa: PLC0415  only where tests are shared

    class HousesTogether(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            together = nodeid.startswith(HOUSES) and not nodeid.startswith(APART)
            return HOUSES if together else super()._split_scope(nodeid)

    return HousesTogether(config, log)


def pytest_collection_finish(session: pytest.Session) -> None:
    _check_number(session.config, len(session.items))


def _check_number(config: pytest.Config, found: int) -> None:
    """Fail a full run that finds too few tests; a run of chosen files or names is nobody's full run."""
    option = config.option
    chosen = config.args_source is not pytest.Config.ArgsSource.TESTPATHS
    if chosen or option.keyword or option.markexpr or option.collectonly or option.lf:
        return
    if found < FEWEST_TESTS:
        pytest.exit(f"{found} tests collected, expected at least {FEWEST_TESTS}", returncode=1)


@pytest.fixture(autouse=True)
def blockbuster(request: pytest.FixtureRequest) -> Iterator[BlockBuster | None]:
    """Make a blocking call on the event loop an error, wherever our own code makes it."""
    if "e2e" in request.keywords or "bench" in str(request.path):
        yield None
        return
    with blockbuster_ctx(["proxy", "sidecar"]) as guard:
        for blocking in guard.functions.values():
            for place in MAY_BLOCK:
                blocking.can_block_in(*place)
        yield guard


@pytest.fixture(scope="session")
def postgres() -> Iterator[postgres_server.Postgres]:
    """A Postgres for the whole session, started when the first test asks for it."""
    with postgres_server.running() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_template(postgres: postgres_server.Postgres) -> Iterator[str]:
    """The name of a migrated, empty database, to be copied: that is quicker than migrating."""
    with postgres.database() as name:
        migrate.upgrade(DatabaseSettings(url=postgres.url(name)))
        yield name


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, as a file of SQLite's."""
    path = tmp_path_factory.mktemp("template") / "empty.db"
    migrate.upgrade(DatabaseSettings(url=f"sqlite+aiosqlite:///{path}"))
    return path


@pytest.fixture
def on_sqlite(tmp_path: Path, sqlite_template: Path) -> DatabaseSettings:
    """A migrated database that nobody has open."""
    path = tmp_path / "tollhouse.db"
    shutil.copy(sqlite_template, path)
    return DatabaseSettings(url=f"sqlite+aiosqlite:///{path}", synchronous="NORMAL", busy_timeout_s=0.05)


@pytest.fixture
def on_postgres(postgres: postgres_server.Postgres, postgres_template: str) -> Iterator[DatabaseSettings]:
    """The same on Postgres."""
    with postgres.lent(postgres_template) as name:
        yield DatabaseSettings(url=postgres.url(name), busy_timeout_s=5.0)


@pytest.fixture(params=["sqlite", "postgres"])
def on_either(request: pytest.FixtureRequest) -> DatabaseSettings:
    """The same on both, one after the other: what takes this runs twice."""
    found: DatabaseSettings = request.getfixturevalue(f"on_{request.param}")
    return found
