"""The public listener's table of URLs, and the exchanges that run behind it.

The raw path decides, by exact match, before anything is decoded. A client that leaves does not cancel its exchange: it
is told to the exchange, which stops the sidecar and settles what was produced (`proxy.client.Client.leave`).
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Final
from urllib.parse import unquote

import msgspec
from aiohttp import web
from multidict import CIMultiDict, MultiMapping

from proxy import tracing
from proxy.addresses import Addresses
from proxy.admission.refusal import model_not_found
from proxy.client import Client
from proxy.clock import Clock
from proxy.edge import DIRECT, address_of, common_headers
from proxy.exchange import Arrival, Ending, Outcome, Principal, TextEndpoint
from proxy.identity import bearer
from proxy.metrics import OTHER
from proxy.pipeline import Pipeline
from proxy.policy.schema import POLICY_HEADER, Policy
from proxy.record import Ended, Record
from proxy.responses import INPUT_ITEMS, RESPONSE, Responses
from proxy.settings import Limits, Timeouts
from proxy.telemetry import Traces
from proxy.upstream import Upstreams
from sidecar.wire import anthropic
from sidecar.wire.errors import ApiError
from sidecar.wire.internal import Endpoint, ModelState
from sidecar.wire.listing import entries, entry

MODELS: Final = "/v1/models"
MODEL: Final = "/v1/models/{id}"
STORED: Final = frozenset({RESPONSE, INPUT_ITEMS})
TEXT_ENDPOINTS: Final = frozenset(endpoint.value for endpoint in TextEndpoint)
# The allowed methods of each template; OPTIONS is answered everywhere, and says the same.
METHODS: Final = {
    Endpoint.CHAT.value: ("POST",),
    Endpoint.COMPLETIONS.value: ("POST",),
    Endpoint.MESSAGES.value: ("POST",),
    TextEndpoint.TOKENIZE.value: ("POST",),
    TextEndpoint.DETOKENIZE.value: ("POST",),
    Endpoint.RESPONSES.value: ("POST",),
    Endpoint.EMBEDDINGS.value: ("POST",),
    TextEndpoint.COUNT_TOKENS.value: ("POST",),
    MODELS: ("GET", "HEAD"),
    MODEL: ("GET", "HEAD"),
    RESPONSE: ("GET", "HEAD", "DELETE"),
    INPUT_ITEMS: ("GET", "HEAD"),
}
_BELOW_RESPONSES: Final = f"{Endpoint.RESPONSES.value}/"
# What else is below has names of its own, like `input_tokens`.
_A_RESPONSE: Final = f"{_BELOW_RESPONSES}resp_"
_ITEMS: Final = "/input_items"
MAX_CLIENT_REQUEST_ID: Final = 512
# What a key is shown, or ApiError.
Page = Callable[[Principal], Awaitable[bytes]]
# After the drain, an exchange that is told to end still stops its sidecar and settles.
ENDING_S: Final = 10.0


class Front:
    """The public listener. `allows` tells whether a key may use a model.

    Mutable: `_exchanges`, the running ones with their tasks; `_none_runs`, set whenever the last of them has ended;
    `_closing`, once the drain began.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        upstreams: Upstreams,
        allows: Callable[[Principal, str], bool],
        responses: Responses,
        *,
        policy: Callable[[], Policy],
        record: Record,
        clock: Clock,
        limits: Limits,
        timeouts: Timeouts,
        addresses: Addresses = DIRECT,
        traces: Traces | None = None,
    ) -> None:
        """`traces` of None sends no spans."""
        self._traces = traces
        self._pipeline = pipeline
        self._addresses = addresses
        self._upstreams = upstreams
        self._allows = allows
        self._responses = responses
        self._policy = policy
        self._record = record
        self._clock = clock
        self._limits = limits
        self._timeouts = timeouts
        self._exchanges: dict[Client, asyncio.Task[None]] = {}
        self._none_runs = asyncio.Event()
        self._closing = False

    @property
    def in_progress(self) -> int:
        return len(self._exchanges)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Serve one request; aiohttp's handler."""
        path = request.raw_path.partition("?")[0]
        arrival = self._arrival(request.headers, path, address_of(request, self._addresses), request.method)
        client = Client(request, arrival, limits=self._limits, timeouts=self._timeouts, clock=self._clock)
        client.announce({POLICY_HEADER: self._policy().revision})
        if arrival.anthropic:
            # Where Anthropic's SDKs look for it.
            client.announce({"request-id": arrival.request_id})
        if self._closing:
            client.leave(Ending.SHUTTING_DOWN)
        client.outlive()
        self._exchanges[client] = request.task
        self._none_runs.clear()
        try:
            await self._serve(client, request, path)
        finally:
            del self._exchanges[client]
            if not self._exchanges:
                self._none_runs.set()
        return client.response

    def refuse(self, error: ApiError, address: str) -> web.Response:
        """The answer for bytes that are no request."""
        arrival = self._arrival(CIMultiDict(), "", address, "")
        outcome = Outcome(error.status, Ending.REFUSED, None, "", error.code)
        self._record.finish(Ended(arrival, OTHER, outcome, error=error))
        headers = {**error.headers(), **common_headers(arrival.request_id, 0.0), "content-type": "application/json"}
        return web.Response(status=error.status, body=arrival.error_body(error), headers=headers)

    async def drain(self, limit_s: float, hurry: asyncio.Event) -> None:
        """Let what runs end: by itself until the limit or `hurry`, then by telling it to."""
        self._closing = True
        hurried = asyncio.ensure_future(hurry.wait())
        ended = asyncio.ensure_future(self._all_ended())
        try:
            await asyncio.wait({ended, hurried}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            hurried.cancel()
            ended.cancel()
        for client in self._exchanges:
            client.leave(Ending.SHUTTING_DOWN)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ENDING_S):
                await self._all_ended()

    async def _all_ended(self) -> None:
        while self._exchanges:
            await self._none_runs.wait()

    async def _serve(self, client: Client, request: web.BaseRequest, path: str) -> None:
        template = _template(path)
        authorization, differs = _authorization(request.headers, api_key=client.arrival.anthropic)
        if template is None:
            await self._pipeline.refuse(client, OTHER, _unknown_url())
        elif request.method == "OPTIONS":
            await self._pipeline.tell(client, template, 204, {"allow": _allowed(template)})
        elif request.method not in METHODS[template]:
            await self._pipeline.refuse(client, template, _wrong_method(template))
        elif differs:
            await self._pipeline.refuse(client, template, _two_keys())
        elif template == MODELS:
            await self._pipeline.show(client, template, authorization, self._list)
        elif template == MODEL:
            await self._pipeline.show(client, template, authorization, self._one(path))
        elif template in STORED:
            await self._pipeline.show(client, template, authorization, self._stored(request, template, path))
        elif template in TEXT_ENDPOINTS:
            await self._pipeline.ask(client, TextEndpoint(template), authorization, self._usable)
        else:
            await self._pipeline.run(client, Endpoint(template), authorization)

    def _arrival(self, headers: MultiMapping[str], path: str, address: str, method: str) -> Arrival:
        trace = tracing.begin(headers)
        if self._traces is not None:
            trace = self._traces.begun(trace)
        now = self._clock.now()
        return Arrival(
            request_id=tracing.request_id(now),
            client_request_id=_client_request_id(headers.get("x-client-request-id")),
            trace=trace,
            address=address,
            monotonic_s=self._clock.monotonic(),
            utc=now,
            anthropic=path in anthropic.PATHS,
            method=method,
        )

    def _usable(self, principal: Principal) -> list[ModelState]:
        """The models that the key may use. Raises ApiError 503 as long as no sidecar has said what it serves."""
        self._upstreams.check_told()
        return [model for model in self._upstreams.served() if self._allows(principal, model.id)]

    async def _list(self, principal: Principal) -> bytes:
        """Raises ApiError 503 as `_usable` does."""
        return msgspec.json.encode(entries(self._usable(principal)))

    def _one(self, path: str) -> Page:
        name = unquote(path.removeprefix(f"{MODELS}/"))

        async def page(principal: Principal) -> bytes:
            """Raises ApiError 404, or 503 as long as some sidecar has not said what it serves."""
            self._upstreams.check_known(name)
            model = self._upstreams.find(name)
            if model is None or not self._allows(principal, name):
                raise model_not_found(name)
            return msgspec.json.encode(entry(model))

        return page

    def _stored(self, request: web.BaseRequest, template: str, path: str) -> Page:
        response_id = unquote(path.removeprefix(_BELOW_RESPONSES).removesuffix(_ITEMS))
        if request.method == "DELETE":
            return partial(self._responses.delete, response_id)
        shown = self._responses.items if template == INPUT_ITEMS else self._responses.show
        return partial(shown, response_id, request.query)


def _authorization(headers: Mapping[str, str], *, api_key: bool) -> tuple[str | None, bool]:
    """The key as an Authorization header has it, and whether that holds another one than Anthropic's header.

    `api_key`: that header counts.
    """
    given = headers.get("authorization")
    key = headers.get("x-api-key", "").strip() if api_key else ""
    if not key:
        return given, False
    return f"Bearer {key}", given is not None and bearer(given) != key


def _two_keys() -> ApiError:
    return ApiError(
        401,
        "The headers 'x-api-key' and 'Authorization' hold different keys; send one.",
        code="invalid_api_key",
        headers={"www-authenticate": "Bearer"},
    )


def _template(path: str) -> str | None:
    """The route template of a raw path. A model's id may hold slashes, as they are or as %2F."""
    if path in METHODS:
        return path
    if path.startswith(_A_RESPONSE):
        _, slash, rest = path.removeprefix(_A_RESPONSE).partition("/")
        return {"": RESPONSE, _ITEMS: INPUT_ITEMS}.get(slash + rest)
    return MODEL if path.startswith(f"{MODELS}/") and len(path) > len(MODELS) + 1 else None


def _allowed(template: str) -> str:
    return ", ".join((*METHODS[template], "OPTIONS"))


def _unknown_url() -> ApiError:
    # The URL itself is not repeated: it is a stranger's.
    return ApiError(404, "Unknown request URL. Please check it for typos.", code="unknown_url")


def _wrong_method(template: str) -> ApiError:
    return ApiError(
        405,
        f"This URL takes {' or '.join(METHODS[template])}.",
        code="method_not_supported",
        headers={"allow": _allowed(template)},
    )


def _client_request_id(given: str | None) -> str | None:
    """The client's own id of a request (WIRE 1.1): ASCII of 512 characters at most, or none of our business."""
    fits = given is not None and given.isascii() and given.isprintable() and len(given) <= MAX_CLIENT_REQUEST_ID
    return given if fits else None
