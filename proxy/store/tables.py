"""Every table, in SQLAlchemy Core: what `migrations/` makes. No query lives here.

`quota` holds the running totals of the `ledger`, per key and month: it moves by exactly what a ledger row did, in the
same transaction, so that neither admission nor `usage` ever sums the ledger. `doctor` does, and compares.
"""

import datetime as dt
from typing import Any, Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    text,
)
from sqlalchemy.types import TypeEngine
from typing_extensions import override

# Names that do not depend on the database: a later migration finds a constraint by its name.
NAMING: Final = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}
OPEN: Final = "state = 'reserved'"


class Utc(TypeDecorator[dt.datetime]):
    """A moment. SQLite keeps no time zone, so it is taken off on the way in and put on again on the way out."""

    impl: TypeEngine[Any] | type[TypeEngine[Any]] = DateTime(timezone=True)
    cache_ok: bool | None = True

    @override
    def process_bind_param(self, value: dt.datetime | None, dialect: Dialect) -> dt.datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a moment needs its time zone")
        utc = value.astimezone(dt.UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    @override
    def process_result_value(self, value: Any, dialect: Dialect) -> dt.datetime | None:
        if value is None:
            return None
        moment: dt.datetime = value
        return moment.replace(tzinfo=dt.UTC) if dialect.name == "sqlite" else moment


metadata: Final = MetaData(naming_convention=NAMING)

account: Final = Table(
    "account",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("name", String(200), nullable=False, unique=True),
    Column("created", Utc, nullable=False),
    Column("disabled", Utc),
    Column("limits", JSON(none_as_null=True)),
    Column("metadata", JSON(none_as_null=True)),
)

# Only the MAC of a key is kept: GUARDS A3. Keys are revoked, never deleted, because the quota names them. `mac_version`
# 2 is a key that signs its requests: in the place of a MAC stands its public key. `generation`: the number of the last
# change of it or of its account; see `key_generation`. `old_mac`: of the secret before the last rotation, good until
# `old_until`.
api_key: Final = Table(
    "api_key",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("account_id", String(40), ForeignKey("account.id"), nullable=False, index=True),
    Column("name", String(200), nullable=False),
    Column("tier", String(100), nullable=False),
    Column("models", JSON(none_as_null=True)),
    Column("mac", LargeBinary(32), nullable=False),
    Column("mac_version", Integer, nullable=False),
    Column("created", Utc, nullable=False),
    Column("expires", Utc),
    Column("last_used", Utc),
    Column("generation", Integer, nullable=False, index=True),
    Column("revoked", Utc),
    Column("scopes", JSON(none_as_null=True)),
    Column("limits", JSON(none_as_null=True)),
    Column("metadata", JSON(none_as_null=True)),
    Column("allow_from", JSON(none_as_null=True)),
    Column("deny_from", JSON(none_as_null=True)),
    Column("old_mac", LargeBinary(32)),
    Column("old_mac_version", Integer),
    Column("old_until", Utc),
)

# One row, whose number grows with each change of a key or an account, in the same transaction: what each process asks
# for every second, to learn which of the keys it knows it must look up again.
key_generation: Final = Table(
    "key_generation",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("number", Integer, nullable=False),
    CheckConstraint("id = 1", name="one_row"),
)

# What was done to accounts and keys, by whom and from where. Rows are written in the transaction of what they tell of,
# and never deleted. An id begins with its time, so that ids are in the order of events. No foreign keys, no secrets.
audit_event: Final = Table(
    "audit_event",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("time", Utc, nullable=False),
    Column("actor", String(100), nullable=False),
    Column("action", String(40), nullable=False),
    Column("target", String(40), nullable=False, index=True),
    Column("request_id", String(40)),
    Column("address", String(64)),
    Column("changes", JSON, nullable=False),
)

# `settled_tokens` is prompt plus completion; `settled_prompt_tokens` and `settled_cached_tokens` are parts of it.
quota: Final = Table(
    "quota",
    metadata,
    Column("key_id", String(40), ForeignKey("api_key.id"), primary_key=True),
    Column("period", String(7), primary_key=True),
    Column("settled_tokens", BigInteger, nullable=False),
    Column("reserved_tokens", BigInteger, nullable=False),
    Column("settled_requests", BigInteger, nullable=False),
    Column("reserved_requests", BigInteger, nullable=False),
    Column("settled_prompt_tokens", BigInteger, nullable=False),
    Column("settled_cached_tokens", BigInteger, nullable=False),
    CheckConstraint("settled_tokens >= 0 AND settled_requests >= 0", name="settled_not_negative"),
    CheckConstraint("reserved_tokens >= 0 AND reserved_requests >= 0", name="reserved_not_negative"),
)

# One row per request that was let in: the books and the request log in one. Of those that were refused as many as the
# log can bear, with the `rule` that refused; they move nothing. `est_tokens` is the estimate that is, or was last,
# reserved, or would have been. No foreign keys: the hot path pays for no look-up that `quota` has already made.
ledger: Final = Table(
    "ledger",
    metadata,
    Column("request_id", String(40), primary_key=True),
    Column("state", String(8), nullable=False),
    Column("key_id", String(40), nullable=False),
    Column("account_id", String(40), nullable=False),
    Column("tier", String(100), nullable=False),
    Column("period", String(7), nullable=False),
    Column("endpoint", String(40), nullable=False),
    Column("model", String(200), nullable=False),
    Column("upstream", String(63)),
    Column("stream", Boolean, nullable=False),
    Column("choices", Integer, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("boot_id", String(40), nullable=False),
    Column("est_tokens", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("created", Utc, nullable=False),
    Column("ended", Utc),
    Column("duration_ms", BigInteger),
    Column("ttft_ms", BigInteger),
    Column("status", Integer),
    Column("reason", String(40)),
    Column("finish_reason", String(40)),
    Column("error_code", String(100)),
    Column("client_request_id", String(512)),
    Column("trace_id", String(32)),
    # What was asked, in numbers, for trying other policies; empty in rows of earlier versions.
    Column("asked_output_tokens", BigInteger),
    Column("bound_prompt_tokens", BigInteger),
    Column("max_context", BigInteger),
    Column("prompts", BigInteger),
    Column("rule", String(40)),
    CheckConstraint("state IN ('reserved', 'settled', 'void', 'forced', 'refused')", name="state"),
    # Recovery looks for open rows; there are as many as requests run, however long the log is.
    Index("ix_ledger_open", "boot_id", sqlite_where=text(OPEN), postgresql_where=text(OPEN)),
    Index("ix_ledger_created", "created"),
)

# One row: the first month of which the ledger is whole. Rows of earlier ones may have been deleted, see `retention`.
kept_from: Final = Table(
    "kept_from",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("period", String(7), nullable=False),
    CheckConstraint("id = 1", name="one_row"),
)

# One row per life of a proxy process: whose open rows are orphans. `seen` is set by the database's clock; `keeper` is
# the process that took a dead one's rows over.
boot: Final = Table(
    "boot",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("pid", Integer, nullable=False),
    Column("started", Utc, nullable=False),
    Column("ended", Utc),
    Column("place", String(80)),
    Column("seen", Utc),
    Column("keeper", String(40)),
)

# The nonces that keys have used, each with the request that it was used for: `signed` ones for good, others for as long
# as something came of it. `expires` of the row `floor` is that of the latest one that was forgotten. No foreign keys:
# a nonce may be used for what is in no ledger.
nonce: Final = Table(
    "nonce",
    metadata,
    Column("id", String(100), primary_key=True),
    Column("request_id", String(40), nullable=False),
    Column("expires", Utc, nullable=False),
    Column("signed", Boolean, nullable=False),
    Index("ix_nonce_expires", "expires"),
)

# Idempotency keys, each by a digest of it and its scope, with the request that has it. How that ended is for the ledger
# to tell. `answer` is what it was answered, where its tier keeps that: content, until `expires`.
idempotency: Final = Table(
    "idempotency",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("request_id", String(40), nullable=False),
    Column("fingerprint", LargeBinary(32), nullable=False),
    Column("expires", Utc, nullable=False),
    Column("answer", LargeBinary),
    Index("ix_idempotency_expires", "expires"),
)

# Answers of /v1/responses that may be asked for again and gone on from, each with the items of its own request: the
# only table that holds content. `input` is a JSON array, `response` the whole object. No foreign key to the previous
# one: it may be deleted first. The index by account has all that it takes to find what an account holds too much.
stored_response: Final = Table(
    "stored_response",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("account_id", String(40), ForeignKey("account.id"), nullable=False),
    Column("previous_id", String(40)),
    Column("model", String(200), nullable=False),
    Column("created", Utc, nullable=False),
    Column("expires", Utc, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("input", Text, nullable=False),
    Column("response", Text, nullable=False),
    Index("ix_stored_response_account", "account_id", "created", "id", "bytes"),
    Index("ix_stored_response_expires", "expires"),
)
