"""Who asks at an admin listener, and with what rights: the user behind the Unix socket, or a key over TCP.

Whoever can open the socket (0600, in a 0700 folder, of the same user) is the operator: there is no further key. Over
TCP the API is there for the networks of the settings alone, and for keys that have an administrative scope.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from aiohttp import web

from proxy.addresses import network, within
from proxy.edge import peer_uid
from proxy.exchange import Arrival, Principal
from proxy.identity import wrong_key
from proxy.scopes import granted, insufficient
from proxy.store.events import Actor
from sidecar.wire.errors import ApiError

SOCKET: Final = "local"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who it is for the audit log, and what it may do; `scopes` of None is all."""

    actor: Actor
    scopes: frozenset[str] | None


class Callers(Protocol):
    """How callers are told from each other at one listener. `needs_key`: by their keys."""

    @property
    def needs_key(self) -> bool: ...

    async def caller(self, request: web.BaseRequest, arrival: Arrival) -> Caller:
        """Raises ApiError 401, 404, 429 or 503."""

    def check_near(self, arrival: Arrival) -> None:
        """Raises ApiError 404 if it comes from where there is nothing but health and metrics."""


class Identifies(Protocol):
    """See `proxy.identity.Identify`."""

    async def authenticate(self, authorization: str | None, address: str) -> Principal: ...


class SocketCallers:
    """Those of a Unix socket that serves its own user alone. Stateless."""

    needs_key: Final = False

    async def caller(self, request: web.BaseRequest, arrival: Arrival) -> Caller:
        transport = request.transport
        peer = None if transport is None else transport.get_extra_info("socket")
        user = "gone" if peer is None else str(peer_uid(peer))
        return Caller(Actor(f"socket:{user}", arrival.request_id, SOCKET), None)

    def check_near(self, arrival: Arrival) -> None:
        """Whoever is here may be."""


class KeyCallers:
    """Those of a TCP listener: by their key, and only from some networks. Stateless.

    `came` is told of each key's request, and raises ApiError 403 if the key may not come from there.
    """

    needs_key: Final = True

    def __init__(self, identify: Identifies, came: Callable[[Principal, str], None], networks: Sequence[str]) -> None:
        self._identify = identify
        self._came = came
        self._networks = tuple(network(text) for text in networks)

    async def caller(self, request: web.BaseRequest, arrival: Arrival) -> Caller:
        self.check_near(arrival)
        # A key whose tier is gone administers on: with it the tier is put right.
        principal = await self._identify.authenticate(request.headers.get("authorization"), arrival.address)
        if principal.public_keys:
            # It showed its public id, which proves nothing, and nobody looks at signatures here.
            raise wrong_key()
        self._came(principal, arrival.address)
        return Caller(Actor(principal.key_id, arrival.request_id, arrival.address), granted(principal.scopes))

    def check_near(self, arrival: Arrival) -> None:
        if not within(arrival.address, self._networks):
            # To anybody else there is no such API.
            raise unknown_url()


def allowed(caller: Caller, scope: str) -> None:
    """Raises ApiError 403."""
    if caller.scopes is not None and scope not in caller.scopes:
        raise insufficient(scope)


def unknown_url() -> ApiError:
    return ApiError(404, "Unknown request URL.", code="unknown_url")
