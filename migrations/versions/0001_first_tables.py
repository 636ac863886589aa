"""The first tables: accounts, keys, quotas, the ledger, boots."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0001"
down_revision: Final = None
branch_labels: Final = None
depends_on: Final = None

OPEN: Final = "state = 'reserved'"


def moment(name: str, *, nullable: bool = True) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def string(name: str, length: int, *, nullable: bool = False) -> sa.Column[object]:
    return sa.Column(name, sa.String(length), nullable=nullable)


def number(name: str, *, nullable: bool = False) -> sa.Column[object]:
    return sa.Column(name, sa.BigInteger(), nullable=nullable)


def upgrade() -> None:
    _keys()
    _quota()
    _ledger()
    op.create_table(
        "boot",
        string("id", 40),
        sa.Column("pid", sa.Integer(), nullable=False),
        moment("started", nullable=False),
        moment("ended"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_boot")),
    )


def _keys() -> None:
    op.create_table(
        "account",
        string("id", 40),
        string("name", 200),
        moment("created", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_account")),
        sa.UniqueConstraint("name", name=op.f("uq_account_name")),
    )
    op.create_table(
        "api_key",
        string("id", 40),
        string("account_id", 40),
        string("name", 200),
        string("tier", 100),
        sa.Column("models", sa.JSON()),
        sa.Column("mac", sa.LargeBinary(32), nullable=False),
        sa.Column("mac_version", sa.Integer(), nullable=False),
        moment("created", nullable=False),
        moment("expires"),
        moment("last_used"),
        sa.Column("generation", sa.Integer(), nullable=False),
        moment("revoked"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_key")),
        sa.ForeignKeyConstraint(["account_id"], ["account.id"], name=op.f("fk_api_key_account_id")),
    )
    op.create_index(op.f("ix_api_key_account_id"), "api_key", ["account_id"])


def _quota() -> None:
    op.create_table(
        "quota",
        string("key_id", 40),
        string("period", 7),
        number("settled_tokens"),
        number("reserved_tokens"),
        number("settled_requests"),
        number("reserved_requests"),
        number("settled_prompt_tokens"),
        number("settled_cached_tokens"),
        sa.CheckConstraint("settled_tokens >= 0 AND settled_requests >= 0", name=op.f("ck_quota_settled_not_negative")),
        sa.CheckConstraint(
            "reserved_tokens >= 0 AND reserved_requests >= 0", name=op.f("ck_quota_reserved_not_negative")
        ),
        sa.PrimaryKeyConstraint("key_id", "period", name=op.f("pk_quota")),
        sa.ForeignKeyConstraint(["key_id"], ["api_key.id"], name=op.f("fk_quota_key_id")),
    )


def _ledger() -> None:
    op.create_table(
        "ledger",
        string("request_id", 40),
        string("state", 8),
        string("key_id", 40),
        string("account_id", 40),
        string("tier", 100),
        string("period", 7),
        string("endpoint", 40),
        string("model", 200),
        string("upstream", 63, nullable=True),
        sa.Column("stream", sa.Boolean(), nullable=False),
        sa.Column("choices", sa.Integer(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        string("boot_id", 40),
        number("est_tokens"),
        number("prompt_tokens"),
        number("cached_tokens"),
        number("completion_tokens"),
        moment("created", nullable=False),
        moment("ended"),
        number("duration_ms", nullable=True),
        number("ttft_ms", nullable=True),
        sa.Column("status", sa.Integer()),
        string("reason", 40, nullable=True),
        string("finish_reason", 40, nullable=True),
        string("error_code", 100, nullable=True),
        string("client_request_id", 512, nullable=True),
        string("trace_id", 32, nullable=True),
        sa.CheckConstraint("state IN ('reserved', 'settled', 'void', 'forced')", name=op.f("ck_ledger_state")),
        sa.PrimaryKeyConstraint("request_id", name=op.f("pk_ledger")),
    )
    op.create_index("ix_ledger_open", "ledger", ["boot_id"], sqlite_where=sa.text(OPEN), postgresql_where=sa.text(OPEN))
    op.create_index("ix_ledger_created", "ledger", ["created"])
