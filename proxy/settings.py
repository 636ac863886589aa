"""What `conf/proxy.yaml` may say. Read once at start by `load_settings`; `TOLLHOUSE__SECTION__KEY` overrides a value.

Relative paths are relative to the working directory. Units are in the names.
"""

import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from sidecar import yamlfile

ENV_PREFIX = "TOLLHOUSE__"

Port = Annotated[int, Meta(ge=0, le=65535)]
Seconds = Annotated[float, Meta(gt=0, le=86400)]
# In CIDR: 192.0.2.0/24. An address alone is a network of one.
Network = Annotated[str, Meta(max_length=64)]
Positive = Annotated[int, Meta(ge=1)]
Percent = Annotated[float, Meta(gt=0, le=100)]


class Tls(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A certificate chain and its key, both files in PEM."""

    cert: str
    key: str


def _check_networks(name: str, networks: Sequence[str]) -> None:
    """Raises ValueError, which msgspec tells as what is wrong with the settings."""
    for text in networks:
        try:
            ipaddress.ip_network(text)
        except ValueError as exc:
            raise ValueError(f"{name}: {exc}") from exc


class Listen(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The public listener: `/v1/*`, `/tokenize` and `/detokenize` only. `trusted_proxies` are networks (CIDR)."""

    host: str = "127.0.0.1"
    port: Port = 8000
    tls: Tls | None = None
    trusted_proxies: tuple[Network, ...] = ()

    def __post_init__(self) -> None:
        _check_networks("listen.trusted_proxies", self.trusted_proxies)


class Admin(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The admin listeners: health, metrics and the admin API, on TCP with an administrator's key and from the networks
    `api_from` alone, on a 0600 Unix socket without a key. `console` of None: where `host` is this machine's alone.
    """

    host: str = "127.0.0.1"
    port: Port = 8001
    socket: str = "run/admin.sock"
    api_from: tuple[Network, ...] = ("127.0.0.0/8", "::1/128")
    console: bool | None = None

    def __post_init__(self) -> None:
        _check_networks("admin.api_from", self.api_from)


class Upstream(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One sidecar, by the Unix socket it listens on."""

    name: Annotated[str, Meta(pattern="^[a-z0-9][a-z0-9-]{0,62}$")]
    socket: str


class Database(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where keys and the ledger live: a file of SQLite's, or a Postgres server that several proxies share.

    `synchronous` is SQLite's: FULL loses nothing when the power goes. `busy_timeout_s` is how long to wait for what
    another one holds: a lock, and on Postgres a connection. So many whole months of requests as `retention_months` says
    are kept beside the current one; None: all. The others are Postgres'.
    """

    url: str = "sqlite+aiosqlite:///data/tollhouse.db"
    synchronous: Annotated[str, Meta(pattern="^(FULL|NORMAL)$")] = "FULL"
    busy_timeout_s: Seconds = 2.0
    pool_size: Annotated[int, Meta(ge=2, le=100)] = 5
    connect_timeout_s: Seconds = 5.0
    statement_timeout_s: Seconds = 10.0
    retention_months: Annotated[int, Meta(ge=1, le=1200)] | None = None


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Bounds of the HTTP edge, and of the content that is stored of one account.

    `max_connections_per_address` is for those through which no valid key came yet; the percentages are of the memory
    that the process could have.
    """

    max_body_bytes: Positive = 4 * 1024 * 1024
    max_header_line_bytes: Positive = 8190
    head_timeout_s: Seconds = 10.0
    body_timeout_s: Seconds = 30.0
    body_idle_timeout_s: Seconds = 10.0
    keep_alive_s: Seconds = 75.0
    max_connections: Positive = 4096
    max_connections_per_address: Positive = 64
    memory_for_requests_percent: Percent = 90.0
    memory_for_connections_percent: Percent = 95.0
    auth_failures_per_minute: Positive = 20
    max_choices: Annotated[int, Meta(ge=1, le=128)] = 8
    max_prompts: Annotated[int, Meta(ge=1, le=2048)] = 32
    max_stored_bytes: Positive = 64 * 1024 * 1024


class Valkey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What several proxies count together: limits a minute and at once. Without a `url` this proxy is the only one."""

    url: Annotated[str, Meta(pattern="^(valkeys?|rediss?|unix)://.")] | None = None
    timeout_s: Annotated[float, Meta(gt=0, le=5)] = 0.05


class Replay(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How long it is remembered that a request was here, where a tier asks for that.

    A request may be as old as `window_s`, and `ahead_s` ahead of our clock; a nonce is remembered for both together.
    `store`: where; `max_entries` of them at most in `memory`, which is for one process alone.
    """

    window_s: Annotated[int, Meta(ge=1, le=86400)] = 300
    ahead_s: Annotated[int, Meta(ge=0, le=3600)] = 30
    store: Literal["database", "memory", "valkey"] = "database"
    max_entries: Positive = 200_000
    valkey_url: Annotated[str, Meta(pattern="^(valkeys?|rediss?|unix)://.")] | None = None
    valkey_timeout_s: Seconds = 0.5


class Timeouts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How long the proxy waits for the outside world. Streams time out between bytes, not in total."""

    connect_s: Seconds = 2.0
    state_s: Seconds = 2.0
    count_s: Seconds = 10.0
    first_byte_s: Seconds = 600.0
    between_bytes_s: Seconds = 120.0
    cancel_s: Seconds = 5.0
    client_write_s: Seconds = 30.0
    drain_s: Seconds = 30.0
    storage_s: Seconds = 5.0


class Metrics(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`quota_top`: the metrics page names so many keys, those nearest to a monthly quota, and the share used; of
    keys that are all alike one.
    """

    quota_top: Annotated[int, Meta(ge=0, le=100)] = 0


# As a listener's host: every address of the machine.
_EVERYWHERE: Final = frozenset({"0.0.0.0", "::", ""})  # noqa: S104 - looked for, not bound


class Proxy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole of `conf/proxy.yaml`."""

    upstreams: Annotated[list[Upstream], Meta(min_length=1)]
    listen: Listen = Listen()
    admin: Admin = Admin()
    database: Database = Database()
    policies: str = "policies"
    secret_file: str = "data/root.secret"
    valkey: Valkey = Valkey()
    limits: Limits = Limits()
    replay: Replay = Replay()
    public_authorities: tuple[Annotated[str, Meta(pattern="^[^\\s/]+$", max_length=300)], ...] = ()
    timeouts: Timeouts = Timeouts()
    metrics: Metrics = Metrics()
    log_level: Annotated[str, Meta(pattern="^(debug|info|warning|error)$")] = "info"

    def __post_init__(self) -> None:
        listen, admin = self.listen, self.admin
        overlap = listen.host == admin.host or {listen.host, admin.host} & _EVERYWHERE
        if listen.port and listen.port == admin.port and overlap:
            raise ValueError(f"listen.port and admin.port are both {listen.port}; change one of them")


def load_settings(path: Path, environ: dict[str, str]) -> Proxy:
    """Read the file and the environment. Raises yamlfile.ConfigInvalidError with every problem found."""
    return yamlfile.load(path, Proxy, environ=environ, env_prefix=ENV_PREFIX)
