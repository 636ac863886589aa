"""The Postgres of the tests: a real one, that can be killed."""

import asyncpg

from tests.fakes.postgres import Postgres, running


def databases(server: Postgres) -> set[str]:
    return {name for (name,) in server.sql("SELECT datname FROM pg_database")}


async def test_a_database_is_like_its_template_and_gone_afterwards(postgres: Postgres) -> None:
    before = databases(postgres)
    with postgres.database() as template:
        postgres.sql("CREATE TABLE ours (id integer)", template)
        with postgres.database(template) as name:
            connection = await asyncpg.connect(postgres.url(name).replace("+asyncpg", ""))
            assert await connection.fetchval("SELECT count(*) FROM ours") == 0
            await connection.close()
            assert databases(postgres) == before | {template, name}
    assert databases(postgres) == before


def test_a_database_that_is_lent_again_is_as_its_template(postgres: Postgres) -> None:
    with postgres.database() as template:
        postgres.sql("CREATE TABLE ours (id integer PRIMARY KEY)", template)
        postgres.sql("CREATE TABLE theirs (id integer PRIMARY KEY REFERENCES ours)", template)
        postgres.sql("INSERT INTO ours VALUES (0)", template)
        with postgres.lent(template) as first:
            postgres.sql("INSERT INTO ours VALUES (1); INSERT INTO theirs VALUES (1)", first)
        with postgres.lent(template) as second:
            assert second == first
            assert postgres.sql("SELECT id FROM ours UNION SELECT id FROM theirs", second) == [["0"]]


def test_what_is_committed_outlives_a_kill() -> None:
    with running() as server:
        server.sql("CREATE TABLE ours (id integer, name text); INSERT INTO ours VALUES (1, NULL)")
        killed = server.pid
        server.kill()
        assert not server.ready()
        server.start()
        assert server.pid != killed
        assert server.sql("SELECT id, name FROM ours") == [["1", ""]]
