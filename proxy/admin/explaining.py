"""`policy explain`: which rules a key meets, where each comes from, and what they say of a request now."""

import datetime as dt
from typing import Any, Literal

import msgspec

from proxy.admin.desk import Desk, Order, explained
from proxy.admission.explain import Explained
from proxy.exchange import Principal
from proxy.store.keys import KeyRecord
from sidecar.wire.errors import ApiError, bad_request
from sidecar.wire.internal import Endpoint

State = Literal["active", "expired", "revoked", "account disabled"]


class WantedExplanation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`key`: its public id. `request`: a body, as a client would send it to `endpoint`."""

    key: str
    model: str | None = None
    endpoint: str = Endpoint.CHAT.value
    request: dict[str, Any] | None = None


class Explanation(msgspec.Struct, frozen=True):
    """The key, and what the policy says of it. A key that is not active is refused before any rule."""

    key_id: str
    name: str
    account_id: str
    state: State
    explained: Explained


async def explain(desk: Desk, order: Order[WantedExplanation]) -> Explanation:
    """Takes nothing. Raises ApiError: 404 for an unknown key, 400 for a body that would be, 403, 503."""
    wanted = order.given
    with explained():
        key = await desk.keys.lookup(wanted.key)
        if key is None:
            raise ApiError(404, f"There is no key {wanted.key[:40]}.", code="key_not_found")
        call = None
        if wanted.request is not None:
            call = desk.explain.knows.read(_endpoint(wanted.endpoint), msgspec.json.encode(wanted.request))
        model = wanted.model or (None if call is None else call.model)
        if call is not None and call.model != model:
            raise bad_request(f"The request names the model '{call.model}'.", param="model", code="invalid_value")
        found = await desk.explain.explain(_principal(key), model, call)
    return Explanation(key.key_id, key.name, key.account_id, _state(key, desk.clock.now()), found)


def _endpoint(path: str) -> Endpoint:
    try:
        return Endpoint(path)
    except ValueError as exc:
        raise bad_request("'endpoint' is no URL that a model answers.", param="endpoint", code="invalid_value") from exc


def _principal(key: KeyRecord) -> Principal:
    return Principal(
        account_id=key.account_id,
        key_id=key.key_id,
        tier=key.tier,
        models=key.models,
        scopes=key.scopes,
        limits=key.limits,
        account_limits=key.account_limits,
    )


def _state(key: KeyRecord, now: dt.datetime) -> State:
    if key.revoked is not None:
        return "revoked"
    if key.account_disabled is not None:
        return "account disabled"
    return "expired" if key.expires is not None and key.expires <= now else "active"
