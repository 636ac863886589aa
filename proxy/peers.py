"""Connecting to a Unix socket of our own: what listens there runs as this user, or as root, or is not spoken to."""

import errno
import os

import aiohttp
from aiohttp.client_exceptions import UnixClientConnectorError
from aiohttp.client_proto import ResponseHandler
from aiohttp.tracing import Trace
from typing_extensions import override

from proxy.edge import peer_uid


class OwnConnector(aiohttp.UnixConnector):
    """aiohttp's, with an eye on who is at the other end. A stranger there is a connection that cannot be made."""

    @override
    async def _create_connection(
        self, req: aiohttp.ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> ResponseHandler:
        protocol = await super()._create_connection(req, traces, timeout)
        transport = protocol.transport
        # A transport that is gone already has no other end.
        if transport is None or peer_uid(transport.get_extra_info("socket")) in {os.geteuid(), 0}:
            return protocol
        protocol.close()
        stranger = PermissionError(errno.EPERM, "another user listens there")
        raise UnixClientConnectorError(self.path, req.connection_key, stranger)
