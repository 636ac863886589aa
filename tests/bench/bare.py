"""The least that an aiohttp reverse proxy can be: one route, kept connections to a Unix socket, pieces as they come.

    python tests/bench/bare.py --socket /tmp/instant.sock --port 9001

It knows no key, no limit and no ledger: what `gate.py` measures ours against.
"""

import argparse
import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Final

import aiohttp
import uvloop
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

ROUTE: Final = "/v1/chat/completions"
SESSION: Final = web.AppKey("session", aiohttp.ClientSession)
# RFC 9110, 7.6.1: what is told from one hop to the next, and no further. The length is the body's, and stays.
HOP: Final = frozenset({"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "host"})


async def relay(request: web.Request) -> web.StreamResponse:
    body = await request.read()
    async with request.app[SESSION].post(ROUTE, data=body, headers=_kept(request.headers)) as upstream:
        response = web.StreamResponse(status=upstream.status, headers=_kept(upstream.headers))
        await response.prepare(request)
        async for piece in upstream.content.iter_any():
            await response.write(piece)
        await response.write_eof()
    return response


def _kept(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in HOP)


def build(socket_path: str) -> web.Application:
    async def session(app: web.Application) -> AsyncIterator[None]:
        unix = aiohttp.UnixConnector(socket_path, limit=0)
        async with aiohttp.ClientSession("http://upstream", connector=unix, auto_decompress=False) as opened:
            app[SESSION] = opened
            yield

    app = web.Application()
    app.router.add_post(ROUTE, relay)
    app.cleanup_ctx.append(session)
    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--socket", required=True)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    asyncio.set_event_loop(loop := uvloop.new_event_loop())
    web.run_app(build(arguments.socket), host="127.0.0.1", port=arguments.port, access_log=None, print=None, loop=loop)


if __name__ == "__main__":
    main()
