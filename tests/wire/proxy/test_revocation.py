"""A key that is revoked at one proxy stops at every other on the same Postgres, its running streams too (A12)."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from proxy.admin.client import AdminClient
from proxy.admin.records import Rotation
from tests.fakes.sidecar import delta
from tests.wire.proxy.conftest import Build
from tests.wire.proxy.house import WAIT_S, House, Wire, chat, request

pytestmark = pytest.mark.parametrize("database", ["postgres"], indirect=True)


@pytest.fixture
async def both(build: Build) -> AsyncIterator[tuple[House, House]]:
    async with build() as one, build(at="2") as two:
        yield one, two


async def streaming(house: House, key: str) -> Wire:
    house.sidecar.script = [delta("a"), asyncio.Event()]
    house.sidecar.always_produced = 1
    wire = await house.ask(key)
    await wire.head()
    assert await wire.chunk()
    return wire


async def status(house: House, key: str) -> int:
    house.sidecar.script = []
    return (await (await house.ask(key, chat(stream=False))).answer()).status


def id_of(secret: str) -> str:
    return secret.removeprefix("sk-th_").partition("_")[0]


async def end(wire: Wire) -> str:
    """The code that a stream ends with, without a proper end."""
    chunk = await wire.chunk()
    assert chunk is not None
    assert await wire.chunk() is None
    code: str = json.loads(chunk.removeprefix(b"data: "))["error"]["code"]
    return code


@pytest.mark.parametrize("how", ["revoked", "disabled"])
async def test_a12_it_stops_at_both(both: tuple[House, House], how: str) -> None:
    one, _ = both
    key, bystander = await one.key(), await one.key()
    assert [await status(house, other) for house in both for other in (key, bystander)] == [200] * 4
    wires = [await streaming(house, key) for house in both]
    async with AdminClient(one.settings.admin.socket) as client:
        if how == "revoked":
            await client.revoke_key(id_of(key))
        else:
            await client.disable_account((await client.show_key(id_of(key))).account)
        assert [await end(wire) for wire in wires] == ["invalid_api_key"] * 2
    assert [await status(house, key) for house in both] == [401, 401]
    assert [await status(house, bystander) for house in both] == [200, 200]


async def test_a12_word_of_it_comes_before_anybody_asks(
    both: tuple[House, House], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.keywatch.EVERY_S", 60.0)
    one, two = both
    # What was begun before is waited for.
    await asyncio.sleep(1.0)
    key = await one.key()
    wire = await streaming(two, key)
    await one.revoke(key)
    assert await end(wire) == "invalid_api_key"


async def test_a12_after_the_database_was_away_word_comes_again(
    both: tuple[House, House], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = both
    assert one.postgres is not None
    await asyncio.to_thread(one.postgres.kill)
    await asyncio.to_thread(one.postgres.start)
    monkeypatch.setattr("proxy.keywatch.EVERY_S", 60.0)
    async with asyncio.timeout(10.0):
        while not await listening(one):
            pass
    key = await one.key()
    wire = await streaming(two, key)
    await one.revoke(key)
    assert await end(wire) == "invalid_api_key"


async def listening(house: House) -> bool:
    """Whether both proxies listen."""
    assert house.postgres is not None
    query = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
    found = await asyncio.to_thread(house.postgres.sql, query)
    return found == [["2"]]


async def test_a12_a_change_at_one_holds_at_the_other(both: tuple[House, House]) -> None:
    one, two = both
    key = await one.key()
    assert await status(two, key) == 200
    async with AdminClient(one.settings.admin.socket) as client:
        made = await client.rotate_key(id_of(key), Rotation(grace_s=0.0))
    async with asyncio.timeout(WAIT_S):
        while await status(two, key) == 200:
            pass
    assert await status(two, made.secret) == 200


async def test_a12_while_the_database_is_away_known_keys_are_good_and_others_a_503(both: tuple[House, House]) -> None:
    one, two = both
    known, unknown = await one.key(), await one.key()
    assert await models(one, known) == 200
    assert one.postgres is not None
    await asyncio.to_thread(one.postgres.kill)
    try:
        assert await models(one, known) == 200
        assert await models(one, unknown) == 503
        await one.line("keys_unwatched")
    finally:
        await asyncio.to_thread(one.postgres.start)
    # What was asked before it is back is asked again.
    async with AdminClient(two.settings.admin.socket) as client:
        await client.revoke_key(id_of(known))
    async with asyncio.timeout(30):
        while await models(one, known) == 200:
            pass


async def models(house: House, key: str) -> int:
    wire = await house.connect()
    await wire.send(request(key, method="GET", path="/v1/models"))
    return (await wire.answer()).status
