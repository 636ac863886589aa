"""When the root secret is made: by a server that finds none, and by the first key that needs one. What only looks makes
none, and one that is lost is told of: no key from before is good under another.
"""

import asyncio
from pathlib import Path

from proxy.identity import SIGNED_VERSION, Keysmith
from proxy.secrets import RootSecret, SecretFileError, ensure_root_secret, is_made
from proxy.settings import Proxy
from proxy.store.keys import Keys
from sidecar.jsonlog import JsonLog


async def of_server(settings: Proxy, keys: Keys, log: JsonLog) -> RootSecret:
    """A server's: made if it is missing, and told. Raises SecretFileError, StorageError."""
    path = Path(settings.secret_file)
    missing = not await asyncio.to_thread(is_made, path)
    root = await asyncio.to_thread(ensure_root_secret, path)
    if missing and await _is_needed(keys):
        log.warning("root_secret_made", path=str(path), hint="No key from before is good under it: docs/operations.md.")
    elif missing:
        log.info("root_secret_made", path=str(path))
    return root


async def keysmith(settings: Proxy, keys: Keys) -> Keysmith:
    """For who makes a key where no server runs: the root secret is made for the first one alone.

    Raises SecretFileError: also if it is missing and there are keys, which a new one would make worthless unseen.
    """
    path = Path(settings.secret_file)
    if not await asyncio.to_thread(is_made, path) and await _is_needed(keys):
        raise SecretFileError(f"{path}: is not there, and keys are: put it back, or start the proxy to have a new one")
    return Keysmith(await asyncio.to_thread(ensure_root_secret, path))


async def _is_needed(keys: Keys) -> bool:
    """Whether there is a key that only the root secret can check: those that sign are checked by their public half."""
    return any(key.revoked is None and key.mac_version != SIGNED_VERSION for key in await keys.list())
