"""Scopes, limits, notes and networks of keys; rotation; accounts with quotas of their own; the audit log."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0003"
down_revision: Final = "0002"
branch_labels: Final = None
depends_on: Final = None


def moment(name: str, *, nullable: bool = True) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def upgrade() -> None:
    for column in (moment("disabled"), sa.Column("limits", sa.JSON()), sa.Column("metadata", sa.JSON())):
        op.add_column("account", column)
    for name in ("scopes", "limits", "metadata", "allow_from", "deny_from"):
        op.add_column("api_key", sa.Column(name, sa.JSON()))
    op.add_column("api_key", sa.Column("old_mac", sa.LargeBinary(32)))
    op.add_column("api_key", sa.Column("old_mac_version", sa.Integer()))
    op.add_column("api_key", moment("old_until"))
    op.create_index(op.f("ix_api_key_generation"), "api_key", ["generation"])
    op.create_table(
        "key_generation",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_key_generation_one_row")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_key_generation")),
    )
    # A change must come to have a greater number than any before it.
    op.execute("INSERT INTO key_generation (id, number) SELECT 1, coalesce(max(generation), 1) FROM api_key")
    op.create_table(
        "audit_event",
        sa.Column("id", sa.String(40), nullable=False),
        moment("time", nullable=False),
        sa.Column("actor", sa.String(100), nullable=False),
        sa.Column("action", sa.String(40), nullable=False),
        sa.Column("target", sa.String(40), nullable=False),
        sa.Column("request_id", sa.String(40)),
        sa.Column("address", sa.String(64)),
        sa.Column("changes", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_event")),
    )
    op.create_index(op.f("ix_audit_event_target"), "audit_event", ["target"])
