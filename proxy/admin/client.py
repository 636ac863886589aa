"""The admin API from the other side: the errands, asked of a running server.

Used by the command line. Errors come back as the `ApiError` that was raised there; a server that is not there, or goes
away, is `NotReachableError`.
"""

from typing import Final, Self, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec
from typing_extensions import override

from proxy.admin import table
from proxy.admin.errands import Errands
from proxy.admin.records import Nothing, ServerState
from proxy.admin.table import ID, Action
from proxy.peers import OwnConnector
from sidecar.wire.errors import parse_error

ANSWER_S: Final = 30.0

G = TypeVar("G", bound=msgspec.Struct)
R = TypeVar("R", bound=msgspec.Struct)


class NotReachableError(Exception):
    """No server listens on the admin socket, or it broke off."""


class AdminClient(Errands):
    """One conversation with a running server. Mutable: `_session`."""

    def __init__(self, socket: str) -> None:
        self._socket = socket
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Raises NotReachableError if no server is there."""
        self._session = aiohttp.ClientSession(
            "http://admin",
            connector=OwnConnector(self._socket, force_close=True),
            timeout=aiohttp.ClientTimeout(total=ANSWER_S),
        )
        try:
            await self.state()
        except BaseException:
            await self._session.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def state(self) -> ServerState:
        return await self.do(table.STATE, Nothing())

    @override
    async def do(self, action: Action[G, R], given: G, id_: str = "") -> R:
        if self._session is None:
            raise RuntimeError("an admin client is used inside its `async with`")
        path = action.url.replace(ID, quote(id_, safe=""))
        looks = action.method == "GET"
        body = None if looks else msgspec.json.encode(given)
        query = table.query_of(given) if looks else {}
        try:
            async with self._session.request(action.method, path, data=body, params=query) as response:
                content = await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as exc:
            raise NotReachableError(f"no server answers on {self._socket}") from exc
        if response.status != 200:
            raise parse_error(response.status, content)
        return msgspec.json.decode(content, type=action.answer)
