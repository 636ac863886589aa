"""Scopes: each public route asks for one, and nothing is allowed by accident."""

import pytest

from proxy import scopes
from proxy.routes import METHODS
from sidecar.wire.errors import ApiError
from tests.fakes.proxy import PRINCIPAL, principal


def test_each_route_has_a_scope() -> None:
    assert scopes.ROUTES.keys() == METHODS.keys()
    assert set(scopes.ROUTES.values()) == scopes.DEFAULT


def test_a_key_without_scopes_has_all_but_the_administrative_ones() -> None:
    for scope in scopes.DEFAULT:
        scopes.check(PRINCIPAL, scope)
    for scope in ("admin", "admin:read"):
        with pytest.raises(ApiError) as refused:
            scopes.check(PRINCIPAL, scope)
        assert (refused.value.status, refused.value.code) == (403, "insufficient_scope")
        assert f"'{scope}'" in refused.value.message


def test_a_key_has_its_scopes_and_no_others() -> None:
    scopes.check(principal(scopes=frozenset({"chat"})), "chat")
    for other in scopes.EVERY:
        for mine in (frozenset({"chat"}) - {other}, frozenset[str]()):
            with pytest.raises(ApiError):
                scopes.check(principal(scopes=mine - {other}), other)


def test_who_may_change_may_look_but_not_chat() -> None:
    admin = principal(scopes=frozenset({"admin"}))
    scopes.check(admin, "admin:read")
    with pytest.raises(ApiError):
        scopes.check(admin, "chat")
    with pytest.raises(ApiError):
        scopes.check(principal(scopes=frozenset({"admin:read"})), "admin")
