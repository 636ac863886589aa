"""Requests that were refused are in the ledger, too, with the rule that refused them."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0006"
down_revision: Final = "0005"
branch_labels: Final = None
depends_on: Final = None

STATES: Final = "state IN ('reserved', 'settled', 'void', 'forced', 'refused')"


def upgrade() -> None:
    # SQLite cannot change a constraint: the table is made anew, with all that is in it.
    with op.batch_alter_table("ledger") as batch:
        batch.add_column(sa.Column("rule", sa.String(40)))
        batch.drop_constraint(op.f("ck_ledger_state"), type_="check")
        batch.create_check_constraint(op.f("ck_ledger_state"), STATES)
