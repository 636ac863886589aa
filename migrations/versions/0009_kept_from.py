"""From which month on the ledger is whole: rows of earlier ones may have been deleted."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0009"
down_revision: Final = "0008"
branch_labels: Final = None
depends_on: Final = None


def upgrade() -> None:
    op.create_table(
        "kept_from",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("period", sa.String(7), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_kept_from_one_row")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_kept_from")),
    )
    op.execute("INSERT INTO kept_from (id, period) VALUES (1, '0000-00')")
