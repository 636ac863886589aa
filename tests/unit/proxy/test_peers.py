"""What listens on a socket of ours is ours."""

from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from proxy.peers import OwnConnector


async def asked(path: Path) -> int:
    connector = OwnConnector(str(path))
    async with aiohttp.ClientSession("http://here", connector=connector) as session, session.get("/") as response:
        return response.status


async def test_f14_a_socket_that_another_user_listens_on_is_not_spoken_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []

    async def hear(request: web.Request) -> web.Response:
        heard.append(request.path)
        return web.Response()

    app = web.Application()
    app.router.add_get("/", hear)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "s.sock")).start()
    assert await asked(tmp_path / "s.sock") == 200
    monkeypatch.setattr("proxy.peers.peer_uid", lambda _: 12345)
    with pytest.raises(aiohttp.ClientConnectorError, match="another user"):
        await asked(tmp_path / "s.sock")
    assert heard == ["/"]
    await runner.cleanup()


async def test_a_socket_that_nobody_listens_on_is_told_as_one(tmp_path: Path) -> None:
    with pytest.raises(aiohttp.ClientConnectorError):
        await asked(tmp_path / "s.sock")
