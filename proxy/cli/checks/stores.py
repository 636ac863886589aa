"""Checks of what is shared with others: Valkey, and the clock, by which all that expires is judged."""

import asyncio
import ctypes
import datetime as dt
import sys
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from proxy.cli.checks.check import Case, Check, failed, ok, warning
from proxy.nonces import NO_EVICTION, POLICY
from proxy.policy.load import load_policy
from proxy.store import address
from proxy.store.database import StorageError
from proxy.store.valkey import ValkeyAwayError, open_valkey
from sidecar.yamlfile import ConfigInvalidError

# No clock can be right that is behind this release.
RELEASED: Final = dt.datetime(2026, 11, 1, tzinfo=dt.UTC)
_TIMEX_BYTES: Final = 512  # more than struct timex of any Linux (adjtimex(2)); zeros only ask
_TIME_ERROR: Final = 5  # adjtimex(2): the clock is not synchronised
VALKEY: Final = "valkey"
CLOCK: Final = "clock"


def check_valkey(case: Case) -> Check:
    """The Valkey that several proxies share answers, and forgets nothing that it must keep."""
    settings = case.settings
    nonces = settings.replay.store == "valkey"
    url = (settings.replay.valkey_url if nonces else None) or settings.valkey.url
    if url is None:
        if nonces:
            return failed(VALKEY, "replay.store is valkey, and no address is set", f"Set valkey.url in {case.config}.")
        return ok(VALKEY, "none is configured: this proxy counts for itself")
    where = urlsplit(url).hostname or urlsplit(url).path
    try:
        policy = asyncio.run(_eviction(url, settings.timeouts.connect_s))
    except StorageError as exc:
        return failed(VALKEY, str(exc), "Or take `valkey` out of the configuration.")
    except ValkeyAwayError as exc:
        words, hint = (
            f"{where}: {exc}",
            "Start it, or see valkey.url and the way there (name, port, password, firewall).",
        )
        # Limits go on by shares without it; what must come once only is refused.
        return failed(VALKEY, words, hint) if nonces else warning(VALKEY, words, hint)
    if nonces and policy != NO_EVICTION:
        return failed(
            VALKEY,
            f"{where} has the {POLICY} {policy}: used nonces would get lost",
            f"Set it: valkey-cli config set {POLICY} {NO_EVICTION}",
        )
    return ok(VALKEY, f"{where} answers")


async def _eviction(url: str, timeout_s: float) -> str:
    async with open_valkey(url, timeout_s=timeout_s) as valkey:
        return await valkey.setting(POLICY)


def check_clock(case: Case, now: dt.datetime | None = None, *, kept: bool | None = None) -> Check:
    """The clock is not far off, and is kept right where others' clocks must agree with it."""
    now = dt.datetime.now(dt.UTC) if now is None else now
    kept = _is_kept() if kept is None else kept
    said = f"{now:%Y-%m-%d %H:%M:%S} UTC"
    if now < RELEASED:
        return failed(
            CLOCK,
            f"it is {said} by this machine's clock, before this release was made",
            "Set it right: keys expire and quotas begin anew by it. `timedatectl set-ntp true` keeps it so.",
        )
    if kept:
        return ok(CLOCK, f"{said}, synchronised")
    if why := _who_compares(case):
        return warning(
            CLOCK,
            f"{said}, not synchronised, and {why}",
            "Run a time service: `timedatectl set-ntp true`, or chrony. In a container the host's clock counts.",
        )
    return ok(CLOCK, f"{said}; the kernel does not know it to be synchronised")


def _who_compares(case: Case) -> str:
    """Whose clock must agree with ours; empty if nobody's."""
    try:
        if not address.is_file(case.settings.database) or case.settings.valkey.url is not None:
            return "several proxies share what they count"
        tiers = load_policy(Path(case.settings.policies)).tiers.values()
    except (ConfigInvalidError, StorageError):
        return ""
    return "clients sign requests with the time" if any(tier.replay == "signed" for tier in tiers) else ""


def _is_kept() -> bool:
    """Whether the kernel was told lately how late it is."""
    if sys.platform != "linux":
        return False
    state: int = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    return 0 <= state < _TIME_ERROR
