"""The way to Valkey, for what proxies share and may lose: its connections, its scripts. Foreign exceptions end here.

No key is known here. Every call is over within its limit: who asks has a way of its own for when there is no answer.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

from proxy.store.failure import StorageError

MOST_CONNECTIONS: Final = 32


class ValkeyAwayError(Exception):
    """Valkey does not answer, not in time, or with an error."""


class ValkeyExtraError(StorageError):
    """The client library is not installed. The message says what to do."""


class Valkey:
    """A pool of connections. Mutable: the library's pool, and `_digests`, of the scripts by their text."""

    def __init__(self, client: Any, errors: Any, timeout_s: float) -> None:
        self._client = client
        self._errors = errors
        self._timeout_s = timeout_s
        self._digests: dict[str, str] = {}

    async def run(self, script: str, keys: Sequence[str], arguments: Sequence[str]) -> Any:
        """Run a Lua script, by its digest if Valkey has it. Raises ValkeyAwayError."""
        digest = self._digests.get(script)
        if digest is None:
            digest = self._digests[script] = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
        try:
            return await self._ask("EVALSHA", digest, str(len(keys)), *keys, *arguments)
        except ValkeyAwayError as exc:
            # It forgets scripts when it is restarted.
            if not isinstance(exc.__cause__, self._errors.NoScriptError):
                raise
        return await self._ask("EVAL", script, str(len(keys)), *keys, *arguments)

    async def put_new(self, key: str, ttl_ms: int) -> bool:
        """Keep a key for a while, and say whether it is new. Raises ValkeyAwayError."""
        return await self._ask("SET", key, "1", "NX", "PX", str(ttl_ms)) is not None

    async def setting(self, name: str) -> str:
        """A setting of the server's. Raises ValkeyAwayError."""
        found = await self._ask("CONFIG", "GET", name)
        pairs = found.items() if isinstance(found, dict) else zip(found[::2], found[1::2], strict=True)
        return next((_text(value) for key, value in pairs if _text(key) == name), "")

    async def _ask(self, *words: str) -> Any:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._client.execute_command(*words)
        except self._errors.ValkeyError as exc:
            # Its words name the address and never the password.
            raise ValkeyAwayError(f"Valkey failed: {exc}") from exc
        except TimeoutError as exc:
            raise ValkeyAwayError("Valkey did not answer in time.") from exc
        except OSError as exc:
            raise ValkeyAwayError(f"Valkey cannot be reached: {exc.strerror or exc}") from exc


@contextlib.asynccontextmanager
async def open_valkey(url: str, *, timeout_s: float) -> AsyncIterator[Valkey]:
    """Connects when it is first asked. Raises ValkeyExtraError."""
    try:
        from valkey import asyncio as library  # noqa: PLC0415  an extra
        from valkey import exceptions  # noqa: PLC0415  an extra
        from valkey.asyncio.retry import Retry  # noqa: PLC0415  an extra
        from valkey.backoff import NoBackoff  # noqa: PLC0415  an extra
    except ImportError as exc:
        raise ValkeyExtraError("Valkey needs the extra `valkey`: pip install 'tollhouse[valkey]'.") from exc
    pool = library.BlockingConnectionPool.from_url(
        url,
        max_connections=MOST_CONNECTIONS,
        timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        # Whoever waits has a limit of its own for the whole of it.
        socket_timeout=None,
        retry=Retry(NoBackoff(), 0),
    )
    client = library.Valkey.from_pool(pool)
    try:
        yield Valkey(client, exceptions, timeout_s)
    finally:
        await client.aclose()


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
