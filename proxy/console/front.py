"""The console's URLs on an admin listener: its files, which are no secret, and what its pages ask for with a key.

What the pages change, they change through the admin API like everyone else. A chat of the playground goes the way of
every other request, through the public listener's own front, with the key that was pasted.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec
from aiohttp import web
from yarl import URL

from proxy.admin.browsers import PROTECTION, check_host, check_origin
from proxy.admin.callers import Callers, allowed, unknown_url
from proxy.admin.pages import Page
from proxy.client import Client
from proxy.console.feed import Feed
from proxy.console.files import BASE, File
from proxy.console.samples import Samples
from proxy.console.trials import Trials, WantedTrial
from proxy.edge import common_headers
from proxy.policy.load import listing
from proxy.policy.schema import Policy
from proxy.scopes import ADMIN_READ
from proxy.settings import Admin
from proxy.sockets import is_loopback
from sidecar.wire.errors import ApiError, bad_request

DATA: Final = f"{BASE}data/"
# Whether a key is to be asked for at all.
ACCESS: Final = f"{DATA}access"
# Where the playground's requests go.
PASSED_ON: Final = {
    f"{BASE}v1/chat/completions": ("POST", "/v1/chat/completions"),
    f"{BASE}v1/models": ("GET", "/v1/models"),
}
ENTRANCES: Final = frozenset({"/", BASE.rstrip("/")})
LOOKS: Final = ("GET", "HEAD")


def is_on(admin: Admin) -> bool:
    """Whether there is a console, by the settings."""
    return is_loopback(admin.host) if admin.console is None else admin.console


class PolicyText(msgspec.Struct, frozen=True):
    """A policy file as it is on the disk now."""

    name: str
    text: str


class ShownPolicy(msgspec.Struct, frozen=True):
    """The policy in force, and its files."""

    revision: str
    tiers: list[dict[str, Any]]
    files: list[PolicyText]


@dataclass(frozen=True, slots=True)
class Rooms:
    """What the console shows. `public` is the public listener's handler; `names` are the server's own."""

    files: Mapping[str, File]
    samples: Samples
    feed: Feed
    trials: Trials
    policy: Callable[[], Policy]
    policies: Path
    public: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
    names: frozenset[str]
    write_s: float


class Console:
    """The console; see `proxy.admin.listener.Extra`. Stateless."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        self._data: dict[str, tuple[str, Callable[[Client, web.BaseRequest], Awaitable[Page | web.StreamResponse]]]] = {
            f"{DATA}live": ("GET", self._live),
            f"{DATA}policy": ("GET", self._policy),
            f"{DATA}samples": ("GET", self._samples),
            f"{DATA}simulate": ("POST", self._simulate),
        }

    async def answer(
        self, client: Client, request: web.BaseRequest, callers: Callers
    ) -> Page | web.StreamResponse | None:
        """None if the URL is none of the console's. Raises ApiError."""
        path = request.raw_path.partition("?")[0]
        if path not in ENTRANCES and not path.startswith(BASE):
            return None
        callers.check_near(client.arrival)
        check_host(request.headers.get("host", ""), self._rooms.names)
        if path in ENTRANCES:
            return Page(b"", 302, headers={"location": BASE})
        if path not in self._rooms.files:
            check_origin(request.headers)
        if path in PASSED_ON:
            method, there = PASSED_ON[path]
            _check_method(request, method)
            return await self._rooms.public(request.clone(rel_url=URL(there)))
        if path == ACCESS:
            _check_method(request, "GET")
            return Page(msgspec.json.encode({"key_needed": callers.needs_key}))
        if path in self._data:
            method, give = self._data[path]
            _check_method(request, method)
            allowed(await callers.caller(request, client.arrival), ADMIN_READ)
            return await give(client, request)
        return self._file(request, path)

    def _file(self, request: web.BaseRequest, path: str) -> Page:
        file = self._rooms.files.get(path)
        if file is None:
            raise unknown_url()
        _check_method(request, *LOOKS)
        headers = {"etag": file.etag, "cache-control": "no-cache"}
        if request.headers.get("if-none-match") == file.etag:
            return Page(b"", 304, file.content_type, headers)
        return Page(file.body, 200, file.content_type, headers)

    async def _samples(self, _client: Client, request: web.BaseRequest) -> Page:
        after = dict(parse_qsl(request.raw_path.partition("?")[2])).get("after", "0")
        try:
            since = float(after)
        except ValueError:
            raise bad_request("'after' is a time in seconds.", param="after", code="invalid_value") from None
        return Page(msgspec.json.encode(self._rooms.samples.since(since)))

    async def _live(self, client: Client, request: web.BaseRequest) -> web.StreamResponse:
        headers = {**PROTECTION, **common_headers(client.arrival.request_id, 0.0)}
        # aiohttp-sse says itself what may be kept of it.
        del headers["cache-control"]
        return await self._rooms.feed.show(request, headers, self._rooms.write_s)

    async def _policy(self, _client: Client, _request: web.BaseRequest) -> Page:
        policy = self._rooms.policy()
        files = await asyncio.to_thread(_texts, self._rooms.policies)
        tiers = [msgspec.to_builtins(tier) for _, tier in sorted(policy.tiers.items())]
        return Page(msgspec.json.encode(ShownPolicy(policy.revision, tiers, files)))

    async def _simulate(self, client: Client, _request: web.BaseRequest) -> Page:
        try:
            wanted = msgspec.json.decode(await client.body(), type=WantedTrial)
        except msgspec.MsgspecError as exc:
            raise bad_request(str(exc)) from exc
        return Page(await self._rooms.trials.run(wanted))


def _check_method(request: web.BaseRequest, *methods: str) -> None:
    if request.method not in methods:
        raise ApiError(405, "Wrong method.", code="method_not_supported", headers={"allow": ", ".join(methods)})


def _texts(folder: Path) -> list[PolicyText]:
    """The files as far as they can be read: what is wrong with them is told elsewhere."""
    found = []
    for path in listing(folder)[0]:
        try:
            found.append(PolicyText(path.name, path.read_text()))
        except (OSError, UnicodeDecodeError):
            continue
    return found
