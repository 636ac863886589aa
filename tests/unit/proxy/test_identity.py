"""Keys: their form, one answer for every wrong one, and good ones that nobody can lock out."""

import asyncio
import datetime as dt
import hmac
import io
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.admission.rate import Allowance, Rate
from proxy.identity import KNOWN_KEY_S, Identify, Keysmith, MintedKey, key_id_of
from proxy.policy.schema import Overrides, Policy, Tier
from proxy.secrets import RootSecret
from proxy.signing import checksum
from proxy.store.database import StorageError
from proxy.store.keys import KeyRecord
from sidecar.jsonlog import JsonLog
from sidecar.wire.errors import ApiError

NOON = dt.datetime(2026, 11, 25, 12, tzinfo=dt.UTC)
HOME = "192.0.2.1"
SMITH = Keysmith(RootSecret(bytes(32)))
FREE = Tier(
    name="free",
    requests_per_minute=None,
    tokens_per_minute=None,
    concurrency=None,
    monthly_requests=None,
    monthly_tokens=None,
    max_output_tokens=None,
    default_output_tokens=None,
    models=frozenset({"*"}),
    priority=0,
)


class FakeClock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return 1_000.0 + self.seconds

    def now(self) -> dt.datetime:
        return NOON + dt.timedelta(seconds=self.seconds)


class FakeKeys:
    """Keys by id; counts what is asked, and answers when it is let."""

    def __init__(self) -> None:
        self.records: dict[str, KeyRecord] = {}
        self.asked: list[str] = []
        self.touched: list[tuple[str, dt.datetime]] = []
        self.away = False
        self.open = asyncio.Event()
        self.open.set()
        self.reading = asyncio.Event()

    async def lookup(self, key_id: str) -> KeyRecord | None:
        self.asked.append(key_id)
        found = self.records.get(key_id)
        self.reading.set()
        await self.open.wait()
        if self.away:
            raise StorageError("away")
        return found

    def touch(self, key_id: str, moment: dt.datetime) -> asyncio.Future[None]:
        self.touched.append((key_id, moment))
        return asyncio.get_running_loop().create_future()


class Door:
    """An `Identify` with fakes around it."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.keys = FakeKeys()
        self.log = io.StringIO()
        self.policy = Policy(tiers={"free": FREE}, revision="0" * 12)
        failures = Allowance(self.clock, Rate(20))
        self.identify = Identify(
            self.keys, SMITH, lambda: self.policy, failures, clock=self.clock, log=JsonLog(self.log)
        )

    def key(self, **fields: Any) -> MintedKey:
        minted = SMITH.mint()
        record = KeyRecord(
            key_id=minted.key_id,
            account_id="a",
            name="n",
            tier="free",
            models=None,
            mac=minted.mac,
            mac_version=minted.mac_version,
            created=NOON,
        )
        self.keys.records[minted.key_id] = replace(record, **fields)
        return minted

    def rotated(self, until: dt.datetime, **fields: Any) -> MintedKey:
        """A key whose secret is the one before the last rotation."""
        old = self.key(**fields)
        new = SMITH.mint(old.key_id)
        was = {"old_mac": old.mac, "old_mac_version": old.mac_version, "old_until": until}
        self.keys.records[old.key_id] = replace(self.keys.records[old.key_id], mac=new.mac, **was)
        return old

    async def knock(self, key: MintedKey | str, address: str = HOME) -> Any:
        secret = key if isinstance(key, str) else key.secret
        return await self.identify.identify(f"Bearer {secret}", address)

    async def refused(self, authorization: str | None, address: str = HOME) -> ApiError:
        with pytest.raises(ApiError) as caught:
            await self.identify.identify(authorization, address)
        return caught.value


@pytest.fixture
def door() -> Door:
    return Door()


# --- the form of a key ---


def test_a_key_has_the_form_that_secret_scanners_look_for() -> None:
    minted = SMITH.mint()
    assert re.fullmatch(r"sk-th_[0-9A-Za-z]{10}_[0-9A-Za-z]{38}", minted.secret)
    assert len(minted.secret) == 55
    assert key_id_of(minted.secret) == minted.key_id == minted.secret[6:16]
    assert len(minted.mac) == 32
    assert minted.mac == SMITH.mac(minted.secret)


def test_no_two_keys_are_alike() -> None:
    minted = [SMITH.mint() for _ in range(200)]
    assert len({key.secret[17:49] for key in minted}) == len({key.key_id for key in minted}) == 200


def test_a_key_of_long_ago_is_still_one() -> None:
    # The checksum may not change: keys are out there. CRC-32 of the 49 characters before it, in base 62.
    assert key_id_of("sk-th_0123456789_abcdefghijklmnopqrstuvwxyzABCDEF31XMiB") == "0123456789"


@given(place=st.integers(0, 54), by=st.characters(min_codepoint=33, max_codepoint=126))
def test_one_wrong_character_is_no_key(place: int, by: str) -> None:
    secret = SMITH.mint().secret
    changed = secret[:place] + by + secret[place + 1 :]
    assert (key_id_of(changed) is not None) == (changed == secret)


@given(text=st.text(max_size=80))
def test_anything_else_is_no_key_and_no_fault(text: str) -> None:
    assert key_id_of(text) is None
    assert key_id_of(text + "\n") is None
    assert key_id_of("sk-th_" + text) is None


def test_another_root_makes_another_mac() -> None:
    secret = SMITH.mint().secret
    assert Keysmith(RootSecret(b"x" * 32)).mac(secret) != SMITH.mac(secret)


def test_a4_a_minted_key_does_not_show_itself() -> None:
    minted = SMITH.mint()
    assert minted.secret not in repr(minted)


# --- who it is ---


async def test_a_good_key_is_its_owner(door: Door) -> None:
    key = door.key(account_id="acme", models=frozenset({"m"}))
    principal = await door.knock(key)
    assert (principal.account_id, principal.key_id, principal.tier) == ("acme", key.key_id, "free")
    assert principal.models == frozenset({"m"})


@pytest.mark.parametrize("form", ["bearer {}", "BEARER {}", "Bearer  {} ", "Bearer {}"])
async def test_the_scheme_is_read_as_http_reads_it(door: Door, form: str) -> None:
    key = door.key()
    assert (await door.identify.identify(form.format(key.secret), HOME)).key_id == key.key_id


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer ", "Basic abc", "Token abc", "sk-th_x"])
async def test_without_a_key_the_code_is_null(door: Door, authorization: str | None) -> None:
    error = await door.refused(authorization)
    assert (error.status, error.type, error.code) == (401, "invalid_request_error", None)
    assert error.headers() == {"www-authenticate": "Bearer"}


async def test_a1_every_wrong_key_gets_the_same_answer(door: Door) -> None:
    good = door.key()
    other = SMITH.mint().secret
    # A known id with another key's secret, its checksum put right, is what a guesser sends.
    forged = next(_forge(good.key_id))
    wrong = {
        "unknown": other,
        "wrong secret": forged,
        "typing error": good.secret[:-1] + ("a" if good.secret[-1] != "a" else "b"),
        "another shape": "sk-proj-abc",
        "not ascii": "sk-th_é\udc80",
        "revoked": door.key(revoked=NOON).secret,
        "expired": door.key(expires=NOON).secret,
        "another MAC version": door.key(mac_version=2).secret,
        "disabled account": door.key(account_disabled=NOON).secret,
        "rotated, after its grace": door.rotated(NOON).secret,
    }
    errors = {name: await door.refused(f"Bearer {key}") for name, key in wrong.items()}
    assert {error.body() for error in errors.values()} == {errors["unknown"].body()}
    assert {(error.status, error.code) for error in errors.values()} == {(401, "invalid_api_key")}
    assert all(error.headers() == {"www-authenticate": "Bearer"} for error in errors.values())
    for key in wrong.values():
        assert key not in errors["unknown"].message
    assert (await door.knock(good)).key_id == good.key_id


async def test_a1_what_was_never_a_key_is_not_looked_up(door: Door) -> None:
    await door.refused("Bearer sk-proj-abc")
    await door.refused(f"Bearer {SMITH.mint().secret[:-1]}")
    assert door.keys.asked == []


async def test_a_wrong_secret_goes_the_way_of_an_unknown_id(door: Door) -> None:
    good = door.key()
    await door.knock(good)
    door.keys.asked.clear()
    await door.refused(f"Bearer {next(_forge(good.key_id))}")
    await door.refused(f"Bearer {SMITH.mint().secret}")
    assert len(door.keys.asked) == 2


async def test_a_key_that_expires_later_is_good_until_then(door: Door) -> None:
    key = door.key(expires=NOON + dt.timedelta(seconds=10))
    await door.knock(key)
    door.clock.seconds = 9.999
    await door.knock(key)
    door.clock.seconds = 10
    assert (await door.refused(f"Bearer {key.secret}")).code == "invalid_api_key"


async def test_a_key_of_a_tier_that_is_gone_is_the_operators_to_fix(door: Door) -> None:
    key = door.key(tier="gold")
    error = await door.refused(f"Bearer {key.secret}")
    assert (error.status, error.code) == (403, "permission_denied")
    assert "key_without_tier" in door.log.getvalue()
    assert key.key_id in door.log.getvalue()
    assert key.secret not in door.log.getvalue()


async def test_a_key_of_a_tier_that_is_gone_administers_on(door: Door) -> None:
    key = door.key(tier="gold", scopes=frozenset({"admin"}))
    found = await door.identify.authenticate(f"Bearer {key.secret}", HOME)
    assert (found.key_id, found.tier, found.scopes) == (key.key_id, "gold", {"admin"})
    assert door.log.getvalue() == ""


async def test_what_a_key_may_and_may_not_goes_with_it(door: Door) -> None:
    mine, shared = Overrides(requests_per_minute=5), Overrides(monthly_tokens=1000)
    own = {"scopes": frozenset({"chat"}), "allow_from": ("192.0.2.0/24",), "deny_from": ("192.0.2.7/32",)}
    until = NOON + dt.timedelta(days=1)
    principal = await door.knock(door.key(**own, limits=mine, account_limits=shared, expires=until))
    assert {name: getattr(principal, name) for name in own} == own
    assert (principal.limits, principal.account_limits, principal.expires) == (mine, shared, until)
    assert (await door.knock(door.key())).scopes is None


async def test_a_key_s_tier_says_which_headers_its_answers_have(door: Door) -> None:
    headers = {"x-served-by": "acme"}
    door.policy = Policy(tiers={"free": msgspec.structs.replace(FREE, response_headers=headers)}, revision="0" * 12)
    assert (await door.knock(door.key())).response_headers == (("x-served-by", "acme"),)


async def test_both_secrets_of_a_rotated_key_are_good_until_the_grace_ends(door: Door) -> None:
    until = NOON + dt.timedelta(hours=24)
    old = door.rotated(until)
    new = SMITH.mint(old.key_id)
    door.keys.records[old.key_id] = replace(door.keys.records[old.key_id], mac=new.mac)
    assert (await door.knock(old)).expires == until
    assert (await door.knock(new)).expires is None
    door.clock.seconds = 24 * 3600
    assert (await door.refused(f"Bearer {old.secret}")).code == "invalid_api_key"
    assert (await door.knock(new)).key_id == old.key_id


async def test_an_old_secret_ends_with_its_key_at_the_latest(door: Door) -> None:
    early = NOON + dt.timedelta(minutes=1)
    old = door.rotated(NOON + dt.timedelta(hours=24), expires=early)
    assert (await door.knock(old)).expires == early


def test_a_new_secret_of_a_key_has_the_key_s_id() -> None:
    first = SMITH.mint()
    second = SMITH.mint(first.key_id)
    assert (second.key_id, key_id_of(second.secret)) == (first.key_id, first.key_id)
    assert second.secret != first.secret


async def test_a_principal_does_not_show_its_mac(door: Door) -> None:
    key = door.key()
    assert repr(key.mac) not in repr(await door.knock(key))


# --- known keys ---


async def test_a_known_key_is_not_looked_up_for_a_minute(door: Door) -> None:
    key = door.key()
    for _ in range(3):
        await door.knock(key)
    door.clock.seconds = KNOWN_KEY_S - 1
    await door.knock(key)
    assert len(door.keys.asked) == 1
    door.clock.seconds = KNOWN_KEY_S
    await door.knock(key)
    assert len(door.keys.asked) == 2


async def test_its_last_use_is_noted_at_most_once_a_minute(door: Door) -> None:
    key = door.key()
    for second in (0, 1, 30, 61, 62):
        door.clock.seconds = second
        await door.knock(key)
    assert door.keys.touched == [(key.key_id, NOON), (key.key_id, NOON + dt.timedelta(seconds=61))]


async def test_a_key_that_is_refused_was_not_used(door: Door) -> None:
    await door.refused(f"Bearer {door.key(revoked=NOON).secret}")
    await door.refused(f"Bearer {next(_forge(door.key().key_id))}")
    assert door.keys.touched == []


async def test_a12_a_forgotten_key_is_looked_up_again(door: Door) -> None:
    key, other = door.key(), door.key()
    await door.knock(key)
    await door.knock(other)
    door.keys.records[key.key_id] = replace(door.keys.records[key.key_id], revoked=NOON)
    door.identify.forget(key.key_id)
    assert (await door.refused(f"Bearer {key.secret}")).code == "invalid_api_key"
    await door.knock(other)
    assert door.keys.asked == [key.key_id, other.key_id, key.key_id]


async def test_all_keys_can_be_forgotten(door: Door) -> None:
    key = door.key()
    await door.knock(key)
    door.identify.forget_all()
    await door.knock(key)
    assert door.keys.asked == [key.key_id, key.key_id]


async def test_a12_a_revocation_is_not_undone_by_what_was_read_before_it(door: Door) -> None:
    key = door.key()
    door.keys.open.clear()
    knocking = asyncio.create_task(door.refused(f"Bearer {key.secret}"))
    await door.keys.reading.wait()
    door.keys.records[key.key_id] = replace(door.keys.records[key.key_id], revoked=NOON)
    door.identify.forget(key.key_id)
    door.keys.open.set()
    assert (await knocking).code == "invalid_api_key"
    await door.refused(f"Bearer {key.secret}")


async def test_known_keys_are_bounded(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.identity.MOST_KNOWN_KEYS", 3)
    keys = [door.key() for _ in range(5)]
    for key in keys:
        await door.knock(key)
    assert len(door.identify._known) == 3
    await door.knock(keys[-1])
    assert len(door.keys.asked) == 5
    await door.knock(keys[0])
    assert len(door.keys.asked) == 6


async def test_a12_while_the_database_is_away_known_keys_are_served_for_a_minute(door: Door) -> None:
    known, unknown = door.key(), door.key()
    await door.knock(known)
    door.keys.away = True
    await door.knock(known)
    error = await door.refused(f"Bearer {unknown.secret}")
    assert (error.status, error.code) == (503, "storage_unavailable")
    door.clock.seconds = KNOWN_KEY_S
    assert (await door.refused(f"Bearer {known.secret}")).status == 503


# --- guessing ---


async def test_a1_an_address_may_fail_twenty_times_a_minute(door: Door) -> None:
    for _ in range(20):
        assert (await door.refused(f"Bearer {SMITH.mint().secret}")).status == 401
    error = await door.refused(None)
    assert (error.status, error.code, error.type) == (429, "rate_limit_exceeded", "requests")
    assert error.headers()["retry-after"] == "3"
    assert (await door.refused(None, "192.0.2.2")).status == 401
    door.clock.seconds = 3
    assert (await door.refused(None)).status == 401


async def test_a1_a_good_key_is_never_locked_out_by_its_neighbours(door: Door) -> None:
    known, new = door.key(), door.key()
    await door.knock(known)
    for _ in range(100):
        await door.refused("Bearer wrong")
    await door.knock(known)
    await door.knock(new)


async def test_a_storage_failure_is_not_the_clients(door: Door) -> None:
    door.keys.away = True
    for _ in range(50):
        assert (await door.refused(f"Bearer {SMITH.mint().secret}")).status == 503
    door.keys.away = False
    assert (await door.refused(None)).status == 401


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("unix", "unix", True),
    ],
)
async def test_addresses_of_one_ipv6_network_fail_together(door: Door, one: str, other: str, shared: bool) -> None:
    for _ in range(20):
        await door.refused(None, one)
    assert (await door.refused(None, other)).status == (429 if shared else 401)


async def test_a2_an_unknown_id_takes_the_path_of_a_wrong_secret(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """One look-up, one MAC and two comparisons of 32 bytes each, whatever of the key is wrong."""
    compared: list[tuple[int, int]] = []
    compare = hmac.compare_digest

    def noted(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", noted)
    good = door.key()
    for key in (next(_forge(good.key_id)), SMITH.mint().secret):
        asked = len(door.keys.asked)
        compared.clear()
        await door.refused(f"Bearer {key}")
        assert len(door.keys.asked) - asked == 1
        assert compared == [(32, 32), (32, 32)]


async def test_a10_a_known_key_opens_nothing_for_another_secret_of_its_id(door: Door) -> None:
    good = door.key()
    await door.knock(good)
    for _, forged in zip(range(5), _forge(good.key_id), strict=False):
        assert (await door.refused(f"Bearer {forged}")).code == "invalid_api_key"
    assert list(door.identify._known) == [good.mac]
    assert len(good.mac) == 32
    door.keys.asked.clear()
    assert (await door.knock(good)).key_id == good.key_id
    assert door.keys.asked == []


def _forge(key_id: str) -> Iterator[str]:
    """Well-formed keys with somebody's id and the wrong secret, as a guesser can make them."""
    while True:
        body = f"sk-th_{key_id}_{SMITH.mint().secret[17:49]}"
        yield body + checksum(body)
