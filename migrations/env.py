"""Alembic's entry: runs the versions on the connection that `proxy.store.migrate` hands over, in its transaction."""

from alembic import context
from sqlalchemy import Connection

from proxy.store.tables import metadata


def run() -> None:
    connection: Connection = context.config.attributes["connection"]
    context.configure(connection=connection, target_metadata=metadata)
    with context.begin_transaction():
        context.run_migrations()


run()
