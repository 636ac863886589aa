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


def test_what_is_committed_outlives_a_kill() -> None:
    with running() as server:
        server.sql("CREATE TABLE ours (id integer, name text); INSERT INTO ours VALUES (1, NULL)")
        killed = server.pid
        server.kill()
        assert not server.ready()
        server.start()
        assert server.pid != killed
        assert server.sql("SELECT id, name FROM ours") == [["1", ""]]
