"""The admin listeners' table of URLs: health and metrics, and the admin API for those whom `callers` knows."""

from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol
from urllib.parse import parse_qsl, unquote

import msgspec
from aiohttp import web
from multidict import CIMultiDict

from proxy import tracing
from proxy.admin import document, table
from proxy.admin.browsers import PROTECTION, check_host, check_origin
from proxy.admin.callers import Caller, Callers, allowed, unknown_url
from proxy.admin.desk import Desk, Order
from proxy.admin.pages import Page, Pages, Place
from proxy.admin.table import ACTIONS, BASE, ID, Action
from proxy.client import Client, LeftError
from proxy.clock import Clock
from proxy.edge import common_headers, peer_of
from proxy.exchange import Arrival
from proxy.scopes import ADMIN_READ
from proxy.settings import Limits, Timeouts
from sidecar.jsonlog import JsonLog
from sidecar.wire.errors import ApiError, bad_request, internal_error

METRICS: Final = "/metrics"
SIDECAR_METRICS: Final = "/metrics/sidecar/"
URLS: Final = frozenset(action.url for action in ACTIONS)


class Extra(Protocol):
    """What else is on an admin listener; see `proxy.console.front.Console`."""

    async def answer(
        self, client: Client, request: web.BaseRequest, callers: Callers
    ) -> Page | web.StreamResponse | None:
        """None if the URL is not its own. Raises ApiError."""


class AdminFront:
    """One admin listener. Stateless."""

    def __init__(
        self,
        pages: Pages,
        desk: Desk,
        place: Place,
        callers: Callers,
        *,
        clock: Clock,
        log: JsonLog,
        limits: Limits,
        timeouts: Timeouts,
        extra: Extra | None = None,
    ) -> None:
        self._pages = pages
        self._desk = desk
        self._place = place
        self._callers = callers
        self._clock = clock
        self._log = log
        self._limits = limits
        self._timeouts = timeouts
        self._extra = extra
        self._health: dict[str, Callable[[], Awaitable[Page]]] = {
            "/livez": self._livez,
            "/readyz": self._readyz,
            "/healthz": self._healthz,
            "/openapi.json": self._openapi,
        }

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Serve one request; aiohttp's handler."""
        arrival = self._arrival(peer_of(request), request)
        client = Client(request, arrival, limits=self._limits, timeouts=self._timeouts, clock=self._clock)
        try:
            page = await self._answer(client, request)
        except LeftError:
            return client.response
        except ApiError as error:
            return _response(arrival, Page(error.body(), error.status), error.headers())
        except Exception as exc:  # noqa: BLE001 - the boundary, as in `proxy.pipeline`
            self._log.exception("admin_request_failed", exc, **arrival.named())
            failure = internal_error()
            return _response(arrival, Page(failure.body(), failure.status), failure.headers())
        return page if isinstance(page, web.StreamResponse) else _response(arrival, page, {})

    def refuse(self, error: ApiError, address: str) -> web.Response:
        """The answer for bytes that are no request."""
        return _response(self._arrival(address, None), Page(error.body(), error.status), error.headers())

    async def _answer(self, client: Client, request: web.BaseRequest) -> Page | web.StreamResponse:
        found = None if self._extra is None else await self._extra.answer(client, request, self._callers)
        return await self._page(client, request) if found is None else found

    async def _page(self, client: Client, request: web.BaseRequest) -> Page:
        path = request.raw_path.partition("?")[0]
        if request.method in {"GET", "HEAD"}:
            if path in self._health:
                return await self._health[path]()
            if path == METRICS:
                return await self._pages.metrics(request.headers.get("accept", ""))
            if path.startswith(SIDECAR_METRICS):
                return await self._pages.sidecar_metrics(path.removeprefix(SIDECAR_METRICS))
        if path == table.DOCUMENT:
            allowed(await self._callers.caller(request, client.arrival), ADMIN_READ)
            return Page(document.of_the_admin_api(self._place.release))
        check_origin(request.headers)
        if not self._callers.needs_key:
            # Forwarded to a port, the socket is in a browser's reach.
            check_host(request.headers.get("host", ""))
        url, id_ = _template(path)
        methods = {action.method: action for action in ACTIONS if action.url == url}
        # Nothing has an id that cannot be written.
        if not methods or not id_.isprintable():
            raise unknown_url()
        caller = await self._callers.caller(request, client.arrival)
        action = methods.get(request.method)
        if action is None:
            raise ApiError(405, "Wrong method.", code="method_not_supported", headers={"allow": ", ".join(methods)})
        allowed(caller, action.scope)
        return await self._done(client, request, action, id_, caller)

    async def _done(
        self, client: Client, request: web.BaseRequest, action: Action[Any, Any], id_: str, caller: Caller
    ) -> Page:
        raw = _query(request) if action.method == "GET" else await client.body()
        try:
            given = table.read(action.given, raw)
        except msgspec.MsgspecError as exc:
            # msgspec names fields and types, never values.
            raise bad_request(str(exc)) from exc
        if action.does is None:
            return _json(self._pages.state(self._place))
        return _json(await action.does(self._desk, Order(given, caller.actor, id_, caller.scopes)))

    async def _livez(self) -> Page:
        return self._pages.livez()

    async def _readyz(self) -> Page:
        return self._pages.readyz()

    async def _healthz(self) -> Page:
        return self._pages.healthz(self._place)

    async def _openapi(self) -> Page:
        return await self._pages.openapi(self._place)

    def _arrival(self, address: str, request: web.BaseRequest | None) -> Arrival:
        headers = CIMultiDict() if request is None else request.headers
        now = self._clock.now()
        return Arrival(
            request_id=tracing.request_id(now),
            client_request_id=None,
            trace=tracing.begin(headers),
            address=address,
            monotonic_s=self._clock.monotonic(),
            utc=now,
        )


def _template(path: str) -> tuple[str, str]:
    """The URL of the table that a raw path is one of, and the id in it."""
    if path in URLS:
        return path, ""
    noun, _, rest = path.removeprefix(f"{BASE}/").partition("/")
    id_, slash, verb = rest.partition("/")
    return f"{BASE}/{noun}/{ID}{slash}{verb}" if id_ else path, unquote(id_)


def _query(request: web.BaseRequest) -> dict[str, str]:
    pairs = parse_qsl(request.raw_path.partition("?")[2], keep_blank_values=True)
    found = dict(pairs)
    if len(found) < len(pairs):
        raise bad_request("A parameter of the query is given twice.")
    return found


def _json(answer: object) -> Page:
    return Page(msgspec.json.encode(answer))


def _response(arrival: Arrival, page: Page, headers: dict[str, str]) -> web.Response:
    common = common_headers(arrival.request_id, 0.0)
    told = {**PROTECTION, **page.headers, **headers, **common, "content-type": page.content_type}
    return web.Response(status=page.status, body=page.body, headers=told)
