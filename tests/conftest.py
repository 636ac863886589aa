"""What every test gets: the floor under the number of tests, and a guard against blocking the event loop."""

from collections.abc import Iterator

import pytest
from blockbuster import BlockBuster, blockbuster_ctx

from tests.fakes import postgres as postgres_server

# A full run that collects fewer tests than this has lost some, by a typo in a name or a broken import hook.
FEWEST_TESTS = 1700
# They have an environment of their own: `tollhouse test clients`.
collect_ignore = ["clients"]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Fail a full run that finds too few tests; a run of chosen files or names is nobody's full run."""
    option = session.config.option
    chosen = session.config.args_source is not pytest.Config.ArgsSource.TESTPATHS
    if chosen or option.keyword or option.markexpr or option.collectonly or option.lf:
        return
    if len(session.items) < FEWEST_TESTS:
        pytest.exit(f"{len(session.items)} tests collected, expected at least {FEWEST_TESTS}", returncode=1)


@pytest.fixture(autouse=True)
def blockbuster(request: pytest.FixtureRequest) -> Iterator[BlockBuster | None]:
    """Make a blocking call on the event loop an error, wherever our own code makes it."""
    if "e2e" in request.keywords or "bench" in str(request.path):
        yield None
        return
    with blockbuster_ctx(["proxy", "sidecar"]) as guard:
        yield guard


@pytest.fixture(scope="session")
def postgres() -> Iterator[postgres_server.Postgres]:
    """A Postgres for the whole session, started when the first test asks for it."""
    with postgres_server.running() as server:
        yield server
