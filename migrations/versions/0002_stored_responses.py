"""Stored responses."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0002"
down_revision: Final = "0001"
branch_labels: Final = None
depends_on: Final = None


def upgrade() -> None:
    op.create_table(
        "stored_response",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("account_id", sa.String(40), nullable=False),
        sa.Column("previous_id", sa.String(40)),
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires", sa.DateTime(timezone=True), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("input", sa.Text(), nullable=False),
        sa.Column("response", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_stored_response")),
        sa.ForeignKeyConstraint(["account_id"], ["account.id"], name=op.f("fk_stored_response_account_id")),
    )
    op.create_index("ix_stored_response_account", "stored_response", ["account_id", "created", "id", "bytes"])
    op.create_index("ix_stored_response_expires", "stored_response", ["expires"])
