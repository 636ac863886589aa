"""Requests that may come once: who needs a nonce, what it looks like, and when one is forgotten."""

import asyncio
import datetime as dt
from typing import Any

import pytest

from proxy.admission.replay import Purge, Replay, authorities
from proxy.exchange import Principal
from proxy.policy.schema import Policy
from proxy.settings import Replay as Settings
from proxy.store.claims import ClaimTakenError, Nonce
from proxy.store.database import StorageError
from sidecar.wire.errors import ApiError
from tests.fakes.proxy import NOON, FakeClient, FakeClock

GOOD = "0123456789abcdef"
HOME = "192.0.2.1"


class FakeStore:
    """Nonces in memory; `away` is a store that fails, `stuck` one that never answers."""

    def __init__(self) -> None:
        self.spent: dict[str, str] = {}
        self.released: list[str] = []
        self.away = self.stuck = False
        self.in_reservation = True
        self.forgotten: list[dt.datetime] = []

    async def seen(self, new: Nonce) -> bool:
        await self._answer()
        return new.id in self.spent

    async def spend(self, new: Nonce, request_id: str) -> None:
        await self._answer()
        if self.spent.setdefault(new.id, request_id) != request_id:
            raise ClaimTakenError(new)

    async def release(self, new: Nonce) -> None:
        await self._answer()
        self.released.append(new.id)

    async def forget(self, before: dt.datetime) -> None:
        self.forgotten.append(before)

    async def count(self) -> int:
        return len(self.spent)

    async def _answer(self) -> None:
        if self.stuck:
            await asyncio.Event().wait()
        if self.away:
            raise StorageError("away")


class Room:
    def __init__(self, mode: str, tier: Any) -> None:
        self.store, self.clock, self.client = FakeStore(), FakeClock(), FakeClient()
        self.failures: list[str] = []
        policy = Policy(tiers={"t": tier(replay=mode)}, revision="0" * 12)
        self.replay = Replay(
            lambda: policy,
            self.store,
            Settings(),
            self.clock,
            self.failed,
            authorities=authorities(["api.example.com"], "127.0.0.1", 8000),
            storage_s=0.01,
        )

    def failed(self, address: str, error: ApiError) -> ApiError:
        self.failures.append(address)
        return error

    async def expect(self, *nonces: str) -> Any:
        self.client.sent_headers = {"x-request-nonce": nonces}
        head: Any = self.client
        return await self.replay.expect(Principal("acc", "key", "t", None), head, None, HOME)

    async def refused(self, *nonces: str) -> ApiError:
        with pytest.raises(ApiError) as caught:
            await self.expect(*nonces)
        return caught.value


@pytest.fixture
def room(build: Any) -> Any:
    """Make a room whose tier has a mode of replay."""
    return lambda mode: Room(mode, lambda **rules: build(**rules).tier)


async def test_a_tier_without_replay_protection_asks_for_nothing(room: Any) -> None:
    assert await room("off").expect() is None
    assert await room("off").expect("odd!") is None


async def test_r_a_missing_nonce_is_a_400_that_names_it(room: Any) -> None:
    error = await room("duplicate").refused()
    assert (error.status, error.code, error.param) == (400, "missing_required_parameter", "x-request-nonce")


@pytest.mark.parametrize("nonces", [("short",), ("x" * 65,), ("with space 0123456",), ("ä" * 16,), (GOOD, GOOD), ("",)])
async def test_r_a_nonce_of_another_shape_is_a_400(room: Any, nonces: tuple[str, ...]) -> None:
    error = await room("duplicate").refused(*nonces)
    assert (error.status, error.code, error.param) == (400, "invalid_value", "x-request-nonce")


async def test_r_a_nonce_that_was_seen_is_a_409_that_is_not_to_be_retried(room: Any) -> None:
    here = room("duplicate")
    seal = await here.expect(GOOD)
    assert [(claim.id, claim.expires) for claim in seal.claims] == [(f"key:{GOOD}", NOON + dt.timedelta(seconds=330))]
    await seal.spend("req_1")
    error = await here.refused(GOOD)
    assert (error.status, error.code, error.headers()["x-should-retry"]) == (409, "duplicate_request", "false")
    with pytest.raises(ApiError, match="received before"):
        await seal.spend("req_2")


@pytest.mark.parametrize("how", ["away", "stuck"])
async def test_r_a_store_that_is_down_is_a_503(room: Any, how: str) -> None:
    here = room("duplicate")
    setattr(here.store, how, True)
    error = await here.refused(GOOD)
    assert (error.status, error.code, error.retry_after_s) == (503, "replay_store_unavailable", 1)


async def test_a_nonce_outside_the_reservation_is_given_back_when_nothing_came_of_it(room: Any) -> None:
    here = room("duplicate")
    here.store.in_reservation = False
    seal = await here.expect(GOOD)
    assert seal.claims == ()
    await seal.release()
    assert here.store.released == [f"key:{GOOD}"]
    here.store.away = True
    await seal.release()


async def test_f9_what_has_expired_is_forgotten_when_both_clocks_say_so(build: Any) -> None:
    store, clock = FakeStore(), FakeClock()
    purge = Purge(store, Settings(), clock)
    await purge.once()
    clock.seconds = 329
    await purge.once()
    assert store.forgotten == []
    clock.seconds = 330
    await purge.once()
    assert store.forgotten == [NOON]


class SteppingClock(FakeClock):
    """`ahead` is how far the wall clock has jumped."""

    ahead = dt.timedelta()

    def now(self) -> dt.datetime:
        return super().now() + self.ahead


async def test_f9_a_wall_clock_that_jumps_ahead_and_back_forgets_nothing_early() -> None:
    store, clock = FakeStore(), SteppingClock()
    purge = Purge(store, Settings(), clock)
    used = NOON + dt.timedelta(seconds=330)
    clock.ahead = dt.timedelta(days=40)
    for clock.seconds in (10, 100, 200, 300):
        await purge.once()
    assert store.forgotten == []
    clock.ahead = dt.timedelta()
    for clock.seconds in (320, 335, 345):
        await purge.once()
    # The mark of the jump is 40 days ahead, but the clock of now is not.
    assert [cutoff <= NOON + dt.timedelta(seconds=clock.seconds) for cutoff in store.forgotten] == [True]
    clock.ahead = dt.timedelta(hours=-1)
    clock.seconds = 700
    await purge.once()
    assert max(store.forgotten[1:]) < used
