"""Two proxies on one Postgres and one Valkey: limits hold once, whoever is asked, and nobody waits for a Valkey."""

from collections.abc import AsyncIterator, Iterator

import pytest

from proxy.settings import Valkey
from tests.fakes.valkey import ValkeyServer, running
from tests.wire.proxy.conftest import Build
from tests.wire.proxy.house import House, chat

pytestmark = pytest.mark.parametrize("database", ["postgres"], indirect=True)


@pytest.fixture
def valkey() -> Iterator[ValkeyServer]:
    with running() as server:
        yield server


@pytest.fixture
async def two(build: Build, valkey: ValkeyServer) -> AsyncIterator[tuple[House, House]]:
    # Valkey is a neighbour here, and the machine may be busy with other things.
    shared = Valkey(url=valkey.url, timeout_s=5.0)
    async with build(valkey=shared) as one, build(valkey=shared, at="2") as other:
        yield one, other


async def status(house: House, key: str) -> int:
    wire = await house.ask(key, chat(stream=False))
    return (await wire.answer()).status


async def test_f8_one_a_minute_is_one_over_both_proxies(two: tuple[House, House]) -> None:
    one, other = two
    key = await one.key("one")
    assert await status(one, key) == 200
    wire = await other.ask(key, chat(stream=False))
    refused = await wire.answer()
    assert refused.status == 429
    assert refused.error["code"] == "rate_limit_exceeded"
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert 0 < int(refused.headers["retry-after"]) <= 60
    # What was refused there is no row that is open, and no charge.
    assert [row["state"] for row in one.rows()].count("settled") == 1


async def test_f8_requests_go_on_while_valkey_is_away(two: tuple[House, House], valkey: ValkeyServer) -> None:
    one, other = two
    key = await one.key("open")
    tight = await one.key("one")
    valkey.kill()
    assert await status(one, key) == 200
    assert await status(other, key) == 200
    # A share of one is one: nobody is shut out, and nobody gets more from the proxy that he asks.
    assert await status(one, tight) == 200
    assert await status(one, tight) == 429
    lost = await one.line("valkey_lost")
    assert lost["proxies"] in {1, 2}
    valkey.start()
    await one.line("valkey_reached", 2)
    assert await status(one, key) == 200


@pytest.mark.parametrize("url", ["unix:///nowhere/valkey.sock"])
async def test_f8_a_proxy_starts_without_its_valkey(build: Build, url: str) -> None:
    async with build(valkey=Valkey(url=url)) as house:
        assert await status(house, await house.key("one")) == 200
        assert house.lines("valkey_lost")
