"""Who asks at the admin port: only a key that was proved, only from near, and with no more than its scopes."""

from typing import Any

import msgspec
import pytest
from aiohttp.test_utils import make_mocked_request

from proxy.admin.callers import KeyCallers
from proxy.exchange import Arrival, Principal
from proxy.settings import Admin
from sidecar.wire.errors import ApiError
from tests.fakes.proxy import ARRIVAL, principal


class FakeIdentify:
    def __init__(self, found: Principal) -> None:
        self.found = found
        self.asked: list[tuple[str | None, str]] = []

    async def authenticate(self, authorization: str | None, address: str) -> Principal:
        self.asked.append((authorization, address))
        return self.found


def arrival(address: str) -> Arrival:
    return Arrival("req_9", None, ARRIVAL.trace, address, 0.0, ARRIVAL.utc)


REQUEST = make_mocked_request("GET", "/", {"authorization": "Bearer k"})


async def asked(found: Principal, address: str, networks: tuple[str, ...] = Admin().api_from) -> Any:
    return await KeyCallers(FakeIdentify(found), lambda *_: None, networks).caller(REQUEST, arrival(address))


async def test_a7_a_key_is_its_id_and_its_scopes() -> None:
    caller = await asked(principal(scopes=frozenset({"admin", "chat"})), "127.0.0.1")
    assert (caller.actor.name, caller.actor.request_id, caller.actor.address) == ("key1", "req_9", "127.0.0.1")
    assert caller.scopes == {"admin", "admin:read", "chat"}


@pytest.mark.parametrize("address", ["192.0.2.1", "::2", "::ffff:192.0.2.1", "local", "", "127.0.0.1.example"])
async def test_a7_who_comes_from_elsewhere_is_not_even_asked_for_a_key(address: str) -> None:
    identify = FakeIdentify(principal())
    with pytest.raises(ApiError) as refused:
        await KeyCallers(identify, lambda *_: None, Admin().api_from).caller(REQUEST, arrival(address))
    assert (refused.value.status, refused.value.code) == (404, "unknown_url")
    assert identify.asked == []


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"])
async def test_loopback_is_near(address: str) -> None:
    assert (await asked(principal(), address)).actor.address == address


async def test_a7_no_network_is_nowhere() -> None:
    with pytest.raises(ApiError):
        await asked(principal(), "127.0.0.1", ())


async def test_a7_a_public_id_proves_nothing() -> None:
    with pytest.raises(ApiError) as refused:
        await asked(principal(scopes=frozenset({"admin"}), public_keys=(b"p" * 32,)), "127.0.0.1")
    assert (refused.value.status, refused.value.code) == (401, "invalid_api_key")


async def test_a7_a_key_that_may_not_come_from_there_is_refused() -> None:
    def barred(_principal: Principal, _address: str) -> None:
        raise ApiError(403, "no", code="address_not_allowed")

    with pytest.raises(ApiError, match="no"):
        await KeyCallers(FakeIdentify(principal()), barred, Admin().api_from).caller(REQUEST, arrival("127.0.0.1"))


@pytest.mark.parametrize("wrong", ["here", "10.0.0.0/33", "10.0.0.1/8", ""])
def test_a_network_that_is_none_is_told_with_its_setting(wrong: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=r"admin\.api_from"):
        msgspec.convert({"api_from": [wrong]}, Admin)
