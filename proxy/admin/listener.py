"""The admin listeners' table of URLs. Health and metrics on loopback TCP; the Unix socket has the admin API too.

Whoever can open the socket (0600, in a 0700 folder, of the same user) is the operator: there is no further key.
"""

import secrets
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar
from urllib.parse import parse_qs, unquote

import msgspec
from aiohttp import web

from proxy import tracing
from proxy.admin import actions
from proxy.admin.actions import Desk, Listing, NewAccount, NewKey
from proxy.admin.pages import Page, Pages, Place
from proxy.admin.recording import WantedRecording, recording
from proxy.client import Client, LeftError
from proxy.clock import Clock
from proxy.edge import common_headers, peer_of
from proxy.exchange import Arrival
from proxy.settings import Limits, Timeouts
from sidecar.jsonlog import JsonLog
from sidecar.wire.errors import ApiError, bad_request, internal_error

T = TypeVar("T", bound=msgspec.Struct)
Handler = Callable[[Client, web.BaseRequest], Awaitable[Page]]

SIDECAR_METRICS: Final = "/metrics/sidecar/"
KEYS: Final = "/admin/v1/keys"
REVOKE: Final = "/revoke"


class AdminFront:
    """One admin listener. `with_api` tells whether it may change things. Stateless."""

    def __init__(
        self,
        pages: Pages,
        desk: Desk,
        place: Place,
        clock: Clock,
        log: JsonLog,
        *,
        limits: Limits,
        timeouts: Timeouts,
        with_api: bool,
    ) -> None:
        self._pages = pages
        self._desk = desk
        self._place = place
        self._clock = clock
        self._log = log
        self._limits = limits
        self._timeouts = timeouts
        self._api = self._api_routes() if with_api else {}
        self._health: dict[str, Handler] = {
            "/livez": self._livez,
            "/readyz": self._readyz,
            "/healthz": self._healthz,
            "/metrics": self._metrics,
            "/openapi.json": self._openapi,
        }

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Serve one request; aiohttp's handler."""
        arrival = self._arrival(peer_of(request))
        client = Client(request, arrival, limits=self._limits, timeouts=self._timeouts, clock=self._clock)
        try:
            page = await self._page(client, request)
        except LeftError:
            return client.response
        except ApiError as error:
            return _response(arrival, Page(error.body(), error.status), error.headers())
        except Exception as exc:  # noqa: BLE001 - the boundary, as in `proxy.pipeline`
            self._log.exception("admin_request_failed", exc, request_id=arrival.request_id)
            failure = internal_error()
            return _response(arrival, Page(failure.body(), failure.status), failure.headers())
        return _response(arrival, page, {})

    def refuse(self, error: ApiError, address: str) -> web.Response:
        """The answer for bytes that are no request."""
        return _response(self._arrival(address), Page(error.body(), error.status), error.headers())

    async def _page(self, client: Client, request: web.BaseRequest) -> Page:
        path = request.raw_path.partition("?")[0]
        if request.method in {"GET", "HEAD"}:
            if path in self._health:
                return await self._health[path](client, request)
            if path.startswith(SIDECAR_METRICS):
                return await self._pages.sidecar_metrics(path.removeprefix(SIDECAR_METRICS))
        if not self._api:
            raise _unknown_url()
        if path.startswith(f"{KEYS}/") and path.endswith(REVOKE):
            path = f"{KEYS}/{{id}}{REVOKE}"
        methods = self._api.get(path)
        if methods is None:
            raise _unknown_url()
        handler = methods.get(request.method)
        if handler is None:
            raise ApiError(405, "Wrong method.", code="method_not_supported", headers={"allow": ", ".join(methods)})
        return await handler(client, request)

    def _api_routes(self) -> dict[str, dict[str, Handler]]:
        return {
            "/admin/v1/accounts": {"GET": self._list_accounts, "POST": self._create_account},
            KEYS: {"GET": self._list_keys, "POST": self._create_key},
            f"{KEYS}/{{id}}{REVOKE}": {"POST": self._revoke_key},
            "/admin/v1/usage": {"GET": self._usage},
            "/admin/v1/ledger/check": {"GET": self._check_ledger},
            "/admin/v1/recording": {"POST": self._recording},
            "/admin/v1/state": {"GET": self._state},
        }

    async def _livez(self, _client: Client, _request: web.BaseRequest) -> Page:
        return self._pages.livez()

    async def _readyz(self, _client: Client, _request: web.BaseRequest) -> Page:
        return self._pages.readyz()

    async def _healthz(self, _client: Client, _request: web.BaseRequest) -> Page:
        return self._pages.healthz(self._place)

    async def _metrics(self, _client: Client, _request: web.BaseRequest) -> Page:
        return await self._pages.metrics()

    async def _openapi(self, _client: Client, _request: web.BaseRequest) -> Page:
        return await self._pages.openapi(self._place)

    async def _state(self, _client: Client, _request: web.BaseRequest) -> Page:
        return _json(self._pages.state(self._place))

    async def _list_accounts(self, _client: Client, _request: web.BaseRequest) -> Page:
        return _json(Listing(await actions.list_accounts(self._desk)))

    async def _create_account(self, client: Client, _request: web.BaseRequest) -> Page:
        return _json(await actions.create_account(self._desk, await _read(client, NewAccount)))

    async def _list_keys(self, _client: Client, _request: web.BaseRequest) -> Page:
        return _json(Listing(await actions.list_keys(self._desk)))

    async def _create_key(self, client: Client, _request: web.BaseRequest) -> Page:
        return _json(await actions.create_key(self._desk, await _read(client, NewKey)))

    async def _revoke_key(self, _client: Client, request: web.BaseRequest) -> Page:
        path = request.raw_path.partition("?")[0]
        return _json(await actions.revoke_key(self._desk, unquote(path.removeprefix(f"{KEYS}/").removesuffix(REVOKE))))

    async def _usage(self, _client: Client, request: web.BaseRequest) -> Page:
        periods = parse_qs(request.raw_path.partition("?")[2]).get("period", [])
        return _json(await actions.usage(self._desk, periods[0] if periods else None))

    async def _recording(self, client: Client, _request: web.BaseRequest) -> Page:
        return _json(await recording(self._desk, await _read(client, WantedRecording)))

    async def _check_ledger(self, _client: Client, _request: web.BaseRequest) -> Page:
        return _json(Listing(await actions.check_ledger(self._desk)))

    def _arrival(self, address: str) -> Arrival:
        return Arrival(
            request_id=f"req_{secrets.token_hex(12)}",
            client_request_id=None,
            trace=tracing.begin(None, None),
            address=address,
            monotonic_s=self._clock.monotonic(),
            utc=self._clock.now(),
        )


async def _read(client: Client, type_: type[T]) -> T:
    """The body as a record. Raises ApiError 400 that says what is wrong with it, and what `Client.body` raises."""
    body = await client.body()
    try:
        return msgspec.json.decode(body, type=type_)
    except msgspec.MsgspecError as exc:
        # msgspec names fields and types, never values.
        raise bad_request(str(exc)) from exc


def _json(answer: object) -> Page:
    return Page(msgspec.json.encode(answer))


def _unknown_url() -> ApiError:
    return ApiError(404, "Unknown request URL.", code="unknown_url")


def _response(arrival: Arrival, page: Page, headers: dict[str, str]) -> web.Response:
    told = {**headers, **common_headers(arrival.request_id, 0.0), "content-type": page.content_type}
    return web.Response(status=page.status, body=page.body, headers=told)
