"""A boot's lease: when it was last seen alive and where it runs, and who keeps the books of a dead one."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0008"
down_revision: Final = "0007"
branch_labels: Final = None
depends_on: Final = None


def upgrade() -> None:
    op.add_column("boot", sa.Column("place", sa.String(80)))
    op.add_column("boot", sa.Column("seen", sa.DateTime(timezone=True)))
    op.add_column("boot", sa.Column("keeper", sa.String(40)))
