"""The admin API from the other side: the same actions as `proxy.admin.actions`, asked of a running server.

Used by the command line. Errors come back as the `ApiError` that was raised there; a server that is not there, or goes
away, is `NotReachableError`.
"""

from typing import Any, Final, Self, TypeVar

import aiohttp
import msgspec

from proxy.admin.actions import Account, CreatedKey, Key, Listing, NewAccount, NewKey, ServerState, Usage
from proxy.admin.recording import Recording, WantedRecording
from proxy.peers import OwnConnector
from sidecar.wire.errors import parse_error

ANSWER_S: Final = 30.0

T = TypeVar("T")


class NotReachableError(Exception):
    """No server listens on the admin socket, or it broke off."""


class AdminClient:
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
        return await self._ask("GET", "/admin/v1/state", ServerState)

    async def create_account(self, wanted: NewAccount) -> Account:
        return await self._ask("POST", "/admin/v1/accounts", Account, wanted)

    async def list_accounts(self) -> list[Account]:
        return (await self._ask("GET", "/admin/v1/accounts", Listing[Account])).data

    async def create_key(self, wanted: NewKey) -> CreatedKey:
        return await self._ask("POST", "/admin/v1/keys", CreatedKey, wanted)

    async def list_keys(self) -> list[Key]:
        return (await self._ask("GET", "/admin/v1/keys", Listing[Key])).data

    async def revoke_key(self, key_id: str) -> Key:
        return await self._ask("POST", f"/admin/v1/keys/{key_id}/revoke", Key)

    async def usage(self, period: str | None = None) -> Usage:
        return await self._ask("GET", "/admin/v1/usage", Usage, query={} if period is None else {"period": period})

    async def recording(self, wanted: WantedRecording) -> Recording:
        return await self._ask("POST", "/admin/v1/recording", Recording, wanted)

    async def check_ledger(self) -> list[str]:
        return (await self._ask("GET", "/admin/v1/ledger/check", Listing[str])).data

    async def _ask(
        self, method: str, path: str, answer: type[T], body: msgspec.Struct | None = None, query: Any = None
    ) -> T:
        if self._session is None:
            raise RuntimeError("an admin client is used inside its `async with`")
        raw = None if body is None else msgspec.json.encode(body)
        try:
            async with self._session.request(method, path, data=raw, params=query) as response:
                content = await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as exc:
            raise NotReachableError(f"no server answers on {self._socket}") from exc
        if response.status != 200:
            raise parse_error(response.status, content)
        return msgspec.json.decode(content, type=answer)
