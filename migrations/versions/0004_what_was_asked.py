"""What a request asked for, in numbers: enough to try another policy on it."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0004"
down_revision: Final = "0003"
branch_labels: Final = None
depends_on: Final = None


def upgrade() -> None:
    for name in ("asked_output_tokens", "bound_prompt_tokens", "max_context", "prompts"):
        op.add_column("ledger", sa.Column(name, sa.BigInteger()))
