"""The way to Valkey, on a real one: scripts, time-outs, and what one that is away or hangs does to callers."""

import builtins
from collections.abc import Iterator
from typing import Any

import pytest

from proxy.store.valkey import Valkey, ValkeyAwayError, ValkeyExtraError, open_valkey
from tests.fakes.valkey import ValkeyServer, running
from tests.fakes.waiting import LIMIT_S

ADD = "return redis.call('INCRBY', KEYS[1], ARGV[1])"


@pytest.fixture
def server() -> Iterator[ValkeyServer]:
    with running() as started:
        yield started


@pytest.fixture
async def valkey(server: ValkeyServer) -> Any:
    async with open_valkey(server.url, timeout_s=LIMIT_S) as opened:
        yield opened


async def test_a_script_runs_also_after_valkey_has_forgotten_it(server: ValkeyServer, valkey: Valkey) -> None:
    assert await valkey.run(ADD, ["n"], ["2"]) == 2
    server.command("SCRIPT", "FLUSH")
    assert await valkey.run(ADD, ["n"], ["3"]) == 5


async def test_a_key_is_new_once(valkey: Valkey) -> None:
    assert await valkey.put_new("k", 60_000)
    assert not await valkey.put_new("k", 60_000)


async def test_a_setting_of_the_server_is_told(valkey: Valkey) -> None:
    assert await valkey.setting("maxmemory-policy") == "noeviction"


async def test_an_error_of_valkey_is_translated(valkey: Valkey) -> None:
    with pytest.raises(ValkeyAwayError, match="failed"):
        await valkey.run("return redis.call('INCRBY', KEYS[1], 'x')", ["n"], [])


async def test_a_valkey_that_is_gone_is_away_and_comes_back_by_itself(server: ValkeyServer, valkey: Valkey) -> None:
    assert await valkey.put_new("k", 60_000)
    server.kill()
    with pytest.raises(ValkeyAwayError):
        await valkey.put_new("k", 60_000)
    server.start()
    # It may take one question to find that the old connection is dead.
    for _ in range(2):
        try:
            assert await valkey.put_new("other", 60_000)
            break
        except ValkeyAwayError:
            continue
    assert not await valkey.put_new("other", 60_000)


async def test_a_valkey_that_hangs_is_away_within_the_limit(server: ValkeyServer, valkey: Valkey) -> None:
    assert await valkey.put_new("k", 60_000)
    server.pause()
    async with open_valkey(server.url, timeout_s=0.1) as hasty:
        with pytest.raises(ValkeyAwayError):
            await hasty.put_new("k", 60_000)
        # And on a connection that it has already.
        valkey._timeout_s = hasty._timeout_s
        with pytest.raises(ValkeyAwayError, match="in time"):
            await valkey.put_new("k", 60_000)
    server.go_on()
    valkey._timeout_s = LIMIT_S
    assert not await valkey.put_new("k", 60_000)


async def test_without_the_library_it_is_said_which_extra_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name.partition(".")[0] == "valkey":
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValkeyExtraError, match=r"tollhouse\[valkey\]"):
        async with open_valkey("unix:///nowhere", timeout_s=0.1):
            pass
