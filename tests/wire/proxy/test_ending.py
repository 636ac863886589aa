"""How the server ends: what runs may finish, nothing new begins, and a second signal hurries it."""

import asyncio
import io
import json

import msgspec
import pytest

from proxy import app
from proxy.admin.client import AdminClient
from proxy.settings import Admin, Timeouts
from proxy.sockets import ListenError
from sidecar.jsonlog import JsonLog
from sidecar.notify import Notifier
from tests.fakes.sidecar import DONE, FINISH, WHOLE, delta, usage_comment
from tests.wire.proxy.conftest import Build
from tests.wire.proxy.house import House, chat, request


async def streaming(house: House) -> tuple[asyncio.Event, str]:
    """Have the sidecar send one event and wait for ours before the rest."""
    more = asyncio.Event()
    house.sidecar.script = [delta("a"), more, usage_comment(1), FINISH + DONE]
    house.sidecar.always_produced = 1
    return more, await house.key()


async def test_f11_a_running_stream_ends_properly_and_the_idle_connection_at_once(house: House) -> None:
    more, key = await streaming(house)
    idle = await house.connect()
    await idle.send(request(key, method="GET", path="/v1/models"))
    assert (await idle.answer()).status == 200
    wire = await house.ask(key)
    await wire.head()
    await wire.chunk()
    house.stop.tell()
    assert await idle.closed()
    more.set()
    assert (await wire.chunk(), await wire.chunk()) == (FINISH + DONE, b"")
    assert await wire.closed()
    await house.task
    assert house.rows()[0]["state"] == "settled"


async def test_while_it_drains_it_is_alive_and_not_ready(house: House) -> None:
    more, key = await streaming(house)
    wire = await house.ask(key)
    await wire.head()
    house.stop.tell()
    await house.line("draining")
    probe = await house.connect(admin=True)
    await probe.send(request(None, method="GET", path="/readyz"))
    answer = await probe.answer()
    assert (answer.status, json.loads(answer.body)["reason"]) == (503, "draining")
    more.set()
    await house.task


async def test_f11_what_outlasts_the_drain_is_told_and_settled(build: Build) -> None:
    async with build(timeouts=Timeouts(drain_s=0.2)) as house:
        _, key = await streaming(house)
        wire = await house.ask(key)
        await wire.head()
        await wire.chunk()
        house.stop.tell()
        told = await wire.chunk()
        assert told is not None
        assert b'"code":"server_shutting_down"' in told
        assert await wire.chunk() is None
        await house.task
        row = house.rows()[0]
        assert (row["state"], row["reason"], row["completion_tokens"]) == ("settled", "shutting_down", 1)


async def test_f11_a_second_signal_ends_the_drain(build: Build) -> None:
    async with build(timeouts=Timeouts(drain_s=3600.0)) as house:
        _, key = await streaming(house)
        wire = await house.ask(key, chat(stream=False))
        await house.until(lambda: house.sidecar.received)
        house.stop.tell()
        await house.line("draining")
        house.stop.tell()
        answer = await wire.answer()
        assert (answer.status, answer.error["code"]) == (503, "server_shutting_down")
        await house.task


async def test_a_request_whose_body_arrives_during_the_drain_is_served(house: House) -> None:
    _, key = await streaming(house)
    house.sidecar.script = []
    body = json.dumps(chat(stream=False)).encode()
    late = await house.connect()
    await late.send(request(key, body)[:-5])
    async with AdminClient(house.settings.admin.socket) as client:
        while (await client.state()).requests_in_progress < 1:
            pass
    house.stop.tell()
    await house.line("draining")
    await late.send(body[-5:])
    assert (await late.answer()).body == WHOLE
    assert await late.closed()
    await house.task


async def test_an_address_in_use_is_told_before_anything_is_opened(house: House) -> None:
    taken = house.settings.admin.socket
    other = msgspec.structs.replace(house.settings, admin=Admin(port=0, socket=taken))
    log = io.StringIO()
    with pytest.raises(ListenError, match="another process listens there"):
        await app.live(other, JsonLog(log), app.Stop(), Notifier({}, JsonLog(log)))
    assert log.getvalue() == ""
