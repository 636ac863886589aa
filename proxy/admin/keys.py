"""What an operator does with keys. A key that administers makes, changes and rotates none that may more than itself."""

import datetime as dt
import ipaddress
from collections.abc import Sequence

from msgspec import UNSET

from proxy.admin.accounts import given, named
from proxy.admin.desk import Desk, Order, explained, part
from proxy.admin.records import (
    CreatedKey,
    Key,
    KeyChanges,
    KeyQuery,
    KeyState,
    Listing,
    NewKey,
    Nothing,
    Rotation,
)
from proxy.identity import SIGNED_VERSION
from proxy.store.keys import KeyRecord, NewSecret, UnknownKeyError
from proxy.store.patches import Patch
from sidecar.wire.errors import bad_request


async def create_key(desk: Desk, order: Order[NewKey]) -> CreatedKey:
    """Raises ApiError 404 for an unknown account, 400 for what cannot be, 403 for more than the asking key may."""
    wanted, now = order.given, desk.clock.now()
    scopes = None if wanted.scopes is None else frozenset[str](wanted.scopes)
    order.check_weaker(scopes)
    _check_tier(desk, wanted.tier)
    _check_future(wanted.expires, now)
    account = await named(desk, wanted.account)
    minted = (await desk.smith()).mint(signed=wanted.signed)
    made = KeyRecord(
        key_id=minted.key_id,
        account_id=account.id,
        name=wanted.name,
        tier=wanted.tier,
        models=None if wanted.models is None else frozenset(wanted.models),
        mac=minted.mac,
        mac_version=minted.mac_version,
        created=now,
        expires=wanted.expires,
        scopes=scopes,
        limits=wanted.limits,
        metadata=wanted.metadata,
        allow_from=tuple(_networks(wanted.allow_from, "allow_from")),
        deny_from=tuple(_networks(wanted.deny_from, "deny_from")),
    )
    with explained():
        await desk.keys.create(made, order.by)
    return CreatedKey(minted.secret, minted.key_id, wanted.name, account.name, wanted.tier)


async def list_keys(desk: Desk, order: Order[KeyQuery]) -> Listing[Key]:
    """By id. Raises ApiError 404 for an unknown account."""
    query, now = order.given, desk.clock.now()
    account_id = None if query.account is None else (await named(desk, query.account)).id
    with explained():
        found = await desk.keys.list(account_id, after=query.after, limit=query.limit + 1)
    shown, last = part(found, query.limit)
    return Listing([_shown(record, now) for record in shown], None if last is None else last.key_id)


async def show_key(desk: Desk, order: Order[Nothing]) -> Key:
    """Raises ApiError 404."""
    return _shown(await _found(desk, order.id), desk.clock.now())


async def update_key(desk: Desk, order: Order[KeyChanges]) -> Key:
    """Raises ApiError 404, 409 if it is revoked, 400 for what cannot be, 403 for more than the asking key may."""
    wanted, now = order.given, desk.clock.now()
    order.check_weaker((await _found(desk, order.id)).scopes)
    put: dict[str, object] = {
        name: value for name in ("name", "tier", "expires") if (value := getattr(wanted, name)) is not UNSET
    }
    if wanted.tier is not UNSET:
        _check_tier(desk, wanted.tier)
    if wanted.expires is not UNSET:
        _check_future(wanted.expires, now)
    if wanted.models is not UNSET:
        put["models"] = None if wanted.models is None else sorted(set(wanted.models))
    if wanted.scopes is not UNSET:
        scopes = None if wanted.scopes is None else frozenset[str](wanted.scopes)
        order.check_weaker(scopes)
        put["scopes"] = None if scopes is None else sorted(scopes)
    if wanted.allow_from is not UNSET:
        put["allow_from"] = _networks(wanted.allow_from, "allow_from") or None
    if wanted.deny_from is not UNSET:
        put["deny_from"] = _networks(wanted.deny_from, "deny_from") or None
    patch = Patch(put, {"limits": given(wanted.limits), "metadata": wanted.metadata})
    with explained():
        await desk.keys.patch(order.id, patch, now, order.by)
        await desk.changed()
    return _shown(await _found(desk, order.id), now)


async def rotate_key(desk: Desk, order: Order[Rotation]) -> CreatedKey:
    """Raises ApiError 404, 409 if it is revoked, 403 if it may more than the asking key."""
    found, now = await _found(desk, order.id), desk.clock.now()
    order.check_weaker(found.scopes)
    minted = (await desk.smith()).mint(found.key_id, signed=found.mac_version == SIGNED_VERSION)
    until = now + dt.timedelta(seconds=order.given.grace_s)
    with explained():
        await desk.keys.rotate(found.key_id, NewSecret(minted.mac, minted.mac_version, until), now, order.by)
        await desk.changed()
    return CreatedKey(minted.secret, found.key_id, found.name, found.account_name, found.tier, until)


async def revoke_key(desk: Desk, order: Order[Nothing]) -> Key:
    """Raises ApiError 404. Revoking twice is no error."""
    now = desk.clock.now()
    with explained():
        await desk.keys.revoke(order.id, now, order.by)
        # On disk first: who looks the key up from now on finds it revoked.
        await desk.changed()
    return _shown(await _found(desk, order.id), now)


async def _found(desk: Desk, key_id: str) -> KeyRecord:
    with explained():
        record = await desk.keys.lookup(key_id)
        if record is None:
            raise UnknownKeyError(f"There is no key {key_id}.")
    return record


def _check_tier(desk: Desk, tier: str) -> None:
    if tier not in desk.policy.tiers:
        known = ", ".join(sorted(desk.policy.tiers))
        raise bad_request(f"There is no tier '{tier}'; there are: {known}.", param="tier", code="invalid_value")


def _check_future(expires: dt.datetime | None, now: dt.datetime) -> None:
    if expires is not None and (expires.tzinfo is None or expires <= now):
        raise bad_request("'expires' must be in the future, with its time zone.", param="expires", code="invalid_value")


def _networks(given_: Sequence[str], param: str) -> list[str]:
    """As Python writes them. Raises ApiError 400."""
    try:
        return [str(ipaddress.ip_network(network)) for network in given_]
    except ValueError as exc:
        raise bad_request(
            f"'{param}' takes networks like 192.0.2.0/24 or 2001:db8::/32, and addresses: {exc}.",
            param=param,
            code="invalid_value",
        ) from exc


def _shown(record: KeyRecord, now: dt.datetime) -> Key:
    return Key(
        key_id=record.key_id,
        name=record.name,
        account=record.account_name,
        tier=record.tier,
        models=None if record.models is None else sorted(record.models),
        created=record.created,
        expires=record.expires,
        last_used=record.last_used,
        revoked=record.revoked is not None,
        state=_state(record, now),
        scopes=None if record.scopes is None else sorted(record.scopes),
        limits=record.limits,
        metadata=dict(record.metadata),
        allow_from=list(record.allow_from),
        deny_from=list(record.deny_from),
        old_until=record.old_until if record.old_until is not None and record.old_until > now else None,
        signed=record.mac_version == SIGNED_VERSION,
    )


def _state(record: KeyRecord, now: dt.datetime) -> KeyState:
    if record.revoked is not None:
        return "revoked"
    if record.expires is not None and record.expires <= now:
        return "expired"
    return "active" if record.account_disabled is None else "disabled"
