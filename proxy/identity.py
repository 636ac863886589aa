"""Who asks: API keys, made and recognised. Keys at rest are an id and a MAC; the secret is shown once and kept nowhere.

Every wrong key gets the same answer, whatever is wrong with it, and every well-formed one takes the same path to it:
one look-up by id, then one comparison in constant time. What a key may do is not decided here.
"""

import datetime as dt
import hashlib
import hmac
import math
import re
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

import msgspec

from proxy.addresses import neighbourhood
from proxy.clock import Clock
from proxy.exchange import Principal
from proxy.policy.schema import Policy
from proxy.secrets import API_KEY_MAC, RootSecret
from proxy.signing import (
    ALPHABET,
    CHECK_CHARS,
    ID_CHARS,
    PUBLIC_PREFIX,
    SECRET_CHARS,
    checksum,
    make_secret,
    public_key,
)
from proxy.store.database import StorageError
from proxy.store.keys import KeyRecord
from proxy.verdict import RefusedError
from sidecar.jsonlog import JsonLog
from sidecar.wire.errors import ApiError, unavailable

PREFIX: Final = "sk-th_"
_KEY: Final = re.compile(rf"{PREFIX}([0-9A-Za-z]{{{ID_CHARS}}})_[0-9A-Za-z]{{{SECRET_CHARS + CHECK_CHARS}}}")
_PUBLIC: Final = re.compile(rf"{PUBLIC_PREFIX}([0-9A-Za-z]{{{ID_CHARS}}})")
MAC_VERSION: Final = 1
# What stands in the place of a MAC is an Ed25519 public key: the key signs its requests.
SIGNED_VERSION: Final = 2
# A known key is looked up again after this long, and served for as long while the database is away (GUARDS A12).
KNOWN_KEY_S: Final = 60.0
MOST_KNOWN_KEYS: Final = 10_000


@dataclass(frozen=True, slots=True)
class MintedKey:
    """A new key. `secret` is the whole of it, for its owner alone; the rest is for the database. `mac` is the public
    key of one that signs.
    """

    secret: str = field(repr=False)
    key_id: str
    mac: bytes = field(repr=False)
    mac_version: int


class Keysmith:
    """Makes keys and their MACs. Stateless."""

    def __init__(self, root: RootSecret) -> None:
        # Copied for each key: to set the pepper up takes longer than the rest of it.
        self._keyed = hmac.new(root.derive(API_KEY_MAC), digestmod=hashlib.sha256)

    def mint(self, key_id: str | None = None, *, signed: bool = False) -> MintedKey:
        """A new key; or a new secret for the key of an id. `signed`: one that signs requests, and is sent in none."""
        key_id, secret = key_id or _random(ID_CHARS), _random(SECRET_CHARS)
        if signed:
            signing = make_secret(key_id)
            return MintedKey(signing, key_id, public_key(signing), SIGNED_VERSION)
        body = f"{PREFIX}{key_id}_{secret}"
        key = body + checksum(body)
        return MintedKey(key, key_id, self.mac(key), MAC_VERSION)

    def mac(self, key: str) -> bytes:
        """32 bytes over the whole key."""
        made = self._keyed.copy()
        made.update(key.encode())
        return made.digest()


def key_id_of(key: str) -> str | None:
    """The public id in a key; None for what was never one: another shape, or a checksum that a typing error broke."""
    matched = _KEY.fullmatch(key)
    if matched is None or key[-CHECK_CHARS:] != checksum(key[:-CHECK_CHARS]):
        return None
    return matched[1]


class KeyStore(Protocol):
    """Where keys are kept; see `proxy.store.keys.Keys`."""

    async def lookup(self, key_id: str) -> KeyRecord | None:
        """Raises StorageError."""

    def touch(self, key_id: str, moment: dt.datetime) -> Awaitable[None]:
        """Note when a key was last used. What it gives may be dropped."""


class Failures(Protocol):
    """How often an address may fail; see `proxy.admission.rate.Allowance`."""

    def take(self, subject: str) -> float:
        """Count a failure and give 0; or, if there were too many, give the seconds until one more is free."""


@dataclass(frozen=True, slots=True)
class _Known:
    """A key that was recognised, and until when it need not be looked up again, in monotonic seconds."""

    record: KeyRecord
    fresh_until_s: float


class Identify:
    """The room. Mutable: `_known`, recognised keys by their MAC; `_forgotten`, how often something was forgotten."""

    def __init__(
        self,
        keys: KeyStore,
        smith: Keysmith,
        policy: Callable[[], Policy],
        failures: Failures,
        *,
        clock: Clock,
        log: JsonLog,
    ) -> None:
        self._keys = keys
        self._smith = smith
        self._policy = policy
        self._failures = failures
        self._clock = clock
        self._log = log
        # Compared with when there is no such key, so that an unknown id takes as long as a wrong secret.
        self._nobody = secrets.token_bytes(32)
        self._known: dict[bytes, _Known] = {}
        self._forgotten = 0

    async def identify(self, authorization: str | None, address: str) -> Principal:
        """Who would be served. Raises what `authenticate` does, and ApiError 403 if the key's tier is gone."""
        principal = await self.authenticate(authorization, address)
        try:
            tier = self._policy().tier(principal.tier)
        except ApiError:
            self._log.error("key_without_tier", key_id=principal.key_id, tier=principal.tier)
            raise
        if not tier.response_headers:
            return principal
        return msgspec.structs.replace(principal, response_headers=tuple(tier.response_headers.items()))

    async def authenticate(self, authorization: str | None, address: str) -> Principal:
        """Whose key it is, whatever became of its tier: for what no tier has a say in.

        Raises ApiError: 401; 429 after too many failures from the address, which only failures meet; 503.
        """
        key = bearer(authorization)
        if key is None:
            raise self.failed(address, _missing())
        key_id = key_id_of(key)
        mac = b"" if key_id is None else self._smith.mac(key)
        if key_id is not None:
            record = await self._recognise(key_id, mac)
        else:
            record = await self._recognise_public(key)
        if record is None or not good(record, mac, self._clock.now()):
            raise self.failed(address, wrong_key())
        return _principal(record, mac, public_keys(record, self._clock.now()) if key_id is None else ())

    def forget(self, *key_ids: str) -> None:
        """Look keys up again when they next come: they were changed. What is being read now is read again."""
        if key_ids:
            self._forgotten += 1
            changed = set(key_ids)
            self._known = {mac: known for mac, known in self._known.items() if known.record.key_id not in changed}

    def forget_all(self) -> None:
        """Look every key up again."""
        self._forgotten += 1
        self._known.clear()

    async def _recognise(self, key_id: str, mac: bytes) -> KeyRecord | None:
        """The key's record, if there is one and the MAC is its own.

        Known keys are found by the whole MAC: a wrong secret for a known id finds nothing and goes to the store as an
        unknown id does, so that neither is quicker.
        """
        now_s = self._clock.monotonic()
        known = self._known.get(mac)
        if known is not None and now_s < known.fresh_until_s:
            return known.record
        record = await self._look_up(key_id)
        # Both comparisons are always made, so that it cannot be told which ids are keys or were rotated.
        right = hmac.compare_digest(mac, self._nobody if record is None else record.mac)
        was_right = hmac.compare_digest(mac, (record and record.old_mac) or self._nobody)
        if record is None or not (right or was_right):
            return None
        if (record.mac_version if right else record.old_mac_version) != MAC_VERSION:
            return None
        self._keep(mac, _Known(record, now_s + KNOWN_KEY_S))
        # Known keys come here once in KNOWN_KEY_S: often enough to say when a key was last used.
        if good(record, mac, self._clock.now()):
            _ = self._keys.touch(key_id, self._clock.now())
        return record

    async def _recognise_public(self, key: str) -> KeyRecord | None:
        """The record of a key by its public id. Whoever shows that has proved nothing yet."""
        matched, now_s = _PUBLIC.fullmatch(key), self._clock.monotonic()
        if matched is None:
            return None
        known = self._known.get(key.encode())
        if known is not None and now_s < known.fresh_until_s:
            return known.record
        record = await self._look_up(matched[1])
        if record is None or not public_keys(record, self._clock.now()):
            return None
        self._keep(key.encode(), _Known(record, now_s + KNOWN_KEY_S))
        return record

    async def _look_up(self, key_id: str) -> KeyRecord | None:
        """Read until nothing was forgotten meanwhile: a revocation that passes by is not undone by what we read."""
        while True:
            forgotten = self._forgotten
            try:
                record = await self._keys.lookup(key_id)
            except StorageError as exc:
                raise unavailable("Keys cannot be checked now.", code="storage_unavailable", retry_after_s=2) from exc
            if self._forgotten == forgotten:
                return record

    def _keep(self, mac: bytes, known: _Known) -> None:
        self._known.pop(mac, None)
        if len(self._known) >= MOST_KNOWN_KEYS:
            # The one that was looked up the longest ago.
            del self._known[next(iter(self._known))]
        self._known[mac] = known

    def failed(self, address: str, error: ApiError) -> ApiError:
        """What a failure is told: `error`, or to wait."""
        wait_s = self._failures.take(neighbourhood(address))
        if wait_s == 0:
            return error
        return RefusedError(
            "auth_failures",
            429,
            "Too many requests without a valid API key came from your address. "
            f"Please try again in {math.ceil(wait_s)}s.",
            type="requests",
            code="rate_limit_exceeded",
            retry_after_s=wait_s,
        )


def good(record: KeyRecord, mac: bytes, now: dt.datetime) -> bool:
    """Whether the key, shown with the secret of this MAC, may be used. No MAC: it was shown without a secret."""
    if record.revoked is not None or record.account_disabled is not None:
        return False
    if mac and mac not in (record.mac, record.old_mac):
        return False
    until = ends(record, mac)
    return until is None or now < until


def ends(record: KeyRecord, mac: bytes) -> dt.datetime | None:
    """Until when the key, shown with the secret of this MAC, which is one of its own, is good. No MAC: see `good`."""
    if not mac or mac == record.mac or record.old_until is None:
        return record.expires
    return record.old_until if record.expires is None else min(record.old_until, record.expires)


def public_keys(record: KeyRecord, now: dt.datetime) -> tuple[bytes, ...]:
    """The keys that a signature may be of; none of a key that has a secret."""
    current = (record.mac,) if record.mac_version == SIGNED_VERSION else ()
    if record.old_mac is None or record.old_mac_version != SIGNED_VERSION:
        return current
    return (*current, record.old_mac) if record.old_until is not None and now < record.old_until else current


def _principal(record: KeyRecord, mac: bytes, public: tuple[bytes, ...]) -> Principal:
    return Principal(
        account_id=record.account_id,
        key_id=record.key_id,
        tier=record.tier,
        models=record.models,
        scopes=record.scopes,
        limits=record.limits,
        account_limits=record.account_limits,
        allow_from=record.allow_from,
        deny_from=record.deny_from,
        expires=ends(record, mac),
        mac=mac,
        public_keys=public,
    )


def bearer(authorization: str | None) -> str | None:
    """The key in an Authorization header; None if there is none."""
    scheme, _, key = (authorization or "").strip().partition(" ")
    key = key.strip()
    return key if scheme.lower() == "bearer" and key else None


def _missing() -> ApiError:
    return ApiError(
        401,
        "You didn't provide an API key. Send it in an Authorization header: 'Authorization: Bearer YOUR_KEY'.",
        headers={"www-authenticate": "Bearer"},
    )


def wrong_key() -> ApiError:
    """One for all causes, and without the key or any part of it."""
    return ApiError(401, "Incorrect API key provided.", code="invalid_api_key", headers={"www-authenticate": "Bearer"})


def _random(chars: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(chars))
