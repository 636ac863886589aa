"""What is done to keys and accounts, as their users see it: scopes, rotation, revocation, expiry, and whom it hits."""

import asyncio
import datetime as dt
import json
from typing import Any

import pytest

from proxy.admin.client import AdminClient
from proxy.admin.records import (
    AccountChanges,
    AccountLimitChanges,
    AccountLimits,
    KeyChanges,
    KeyLimitChanges,
    NewAccount,
    NewKey,
    Rotation,
)
from proxy.policy.schema import Overrides
from sidecar.wire.errors import ApiError
from tests.fakes.sidecar import DONE, FINISH, delta, usage_comment
from tests.wire.proxy.house import WAIT_S, House, Wire, chat, request


def id_of(secret: str) -> str:
    return secret.removeprefix("sk-th_").partition("_")[0]


async def status(house: House, key: str) -> int:
    return (await (await house.ask(key, chat(stream=False))).answer()).status


async def streaming(house: House, key: str) -> Wire:
    """A stream under way, whose sidecar says no more."""
    house.sidecar.script = [delta("a"), asyncio.Event()]
    house.sidecar.always_produced = 1
    wire = await house.ask(key)
    await wire.head()
    assert await wire.chunk()
    return wire


async def told(wire: Wire) -> dict[str, Any]:
    """The error that ends a stream, which has no proper end."""
    chunk = await wire.chunk()
    assert chunk is not None
    error: dict[str, Any] = json.loads(chunk.removeprefix(b"data: "))["error"]
    assert await wire.chunk() is None
    return error


async def test_a_key_does_what_its_scopes_say(house: House) -> None:
    key = await house.key(scopes=["models"])
    wire = await house.ask(key)
    answer = await wire.answer()
    assert (answer.status, answer.error["code"]) == (403, "insufficient_scope")
    assert "'chat'" in answer.error["message"]
    wire = await house.connect()
    await wire.send(request(key, method="GET", path="/v1/models"))
    assert (await wire.answer()).status == 200
    assert house.sidecar.received == []


async def test_both_secrets_of_a_rotated_key_are_good_and_without_grace_one_is(house: House) -> None:
    first = await house.key()
    async with AdminClient(house.settings.admin.socket) as client:
        second = (await client.rotate_key(id_of(first), Rotation())).secret
        assert id_of(second) == id_of(first)
        assert [await status(house, key) for key in (first, second)] == [200, 200]
        third = (await client.rotate_key(id_of(first), Rotation(grace_s=0.0))).secret
        assert [await status(house, key) for key in (first, second, third)] == [401, 401, 200]


async def test_a12_a_rotation_without_grace_cuts_what_runs_on_the_old_secret_alone(house: House) -> None:
    old = await house.key()
    on_old = await streaming(house, old)
    async with AdminClient(house.settings.admin.socket) as client:
        new = (await client.rotate_key(id_of(old), Rotation())).secret
        on_new = await streaming(house, new)
        house.sidecar.script = []
        third = await client.rotate_key(id_of(old), Rotation(grace_s=0.0))
        for wire in (on_old, on_new):
            assert (await told(wire))["code"] == "invalid_api_key"
        assert await status(house, third.secret) == 200


async def test_a12_a_change_of_a_key_cuts_nothing_and_holds_from_the_next_request_on(house: House) -> None:
    key = await house.key()
    more = asyncio.Event()
    house.sidecar.script = [delta("a"), more, usage_comment(1), FINISH + DONE]
    wire = await house.ask(key)
    await wire.head()
    await wire.chunk()
    async with AdminClient(house.settings.admin.socket) as client:
        await client.update_key(id_of(key), KeyChanges(scopes=["models"]))
    more.set()
    assert (await wire.chunk(), await wire.chunk()) == (FINISH + DONE, b"")
    assert await status(house, key) == 403


async def test_a_key_s_own_limit_holds_from_the_next_request_on_until_it_is_taken_away(house: House) -> None:
    key = await house.key()
    async with AdminClient(house.settings.admin.socket) as client:
        await client.update_key(id_of(key), KeyChanges(limits=KeyLimitChanges(requests_per_minute=1)))
        answers = [await (await house.ask(key)).answer() for _ in range(2)]
        assert [answer.status for answer in answers] == [200, 429]
        assert answers[0].headers["x-ratelimit-limit-requests"] == "1"
        await client.update_key(id_of(key), KeyChanges(limits=KeyLimitChanges(requests_per_minute=None)))
        assert await status(house, key) == 200
        assert (await client.show_key(id_of(key))).limits == Overrides()


async def test_an_account_s_quota_is_what_its_keys_have_together(house: House) -> None:
    async with AdminClient(house.settings.admin.socket) as client:
        await client.create_account(NewAccount("acme", limits=AccountLimits(monthly_requests=3)))
        new = NewKey(account="acme", tier="open", name="k")
        keys = [(await client.create_key(new)).secret for _ in range(2)]
        assert [await status(house, key) for key in (*keys, *keys)] == [200, 200, 200, 429]
        await client.update_account("acme", AccountChanges(limits=AccountLimitChanges(monthly_requests=4)))
        assert [await status(house, key) for key in keys] == [200, 429]
        await client.update_account("acme", AccountChanges(limits=AccountLimitChanges(monthly_requests=None)))
        assert await status(house, keys[0]) == 200


async def test_a12_a_disabled_account_s_keys_are_refused_like_revoked_ones_and_their_streams_cut(house: House) -> None:
    key, other = await house.key(), await house.key()
    wire = await streaming(house, key)
    async with AdminClient(house.settings.admin.socket) as client:
        account = (await client.show_key(id_of(key))).account
        await client.disable_account(account)
        assert (await told(wire))["code"] == "invalid_api_key"
        house.sidecar.script = []
        refused = await (await house.ask(key)).answer()
        unknown = await (await house.ask("sk-th_wrong")).answer()
        assert (refused.status, refused.body) == (401, unknown.body)
        assert await status(house, other) == 200
        assert (await client.show_key(id_of(key))).state == "disabled"
        await client.enable_account(account)
        assert await status(house, key) == 200


async def test_a12_a_stream_ends_when_its_key_expires(house: House) -> None:
    key = await house.key()
    wire = await streaming(house, key)
    soon = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=1.0)
    async with AdminClient(house.settings.admin.socket) as client:
        await client.update_key(id_of(key), KeyChanges(expires=soon))
    assert (await told(wire))["code"] == "invalid_api_key"
    assert dt.datetime.now(dt.UTC) >= soon
    assert (await house.row("settled"))["reason"] == "revoked"
    assert house.lines("requests_cut")[0]["reason"] == "expired"


async def test_a12_what_another_process_changed_in_the_database_is_noticed(house: House) -> None:
    """As another proxy on the same Postgres would: in the same transaction, behind this one's back."""
    key, other = await house.key(), await house.key()
    wire = await streaming(house, key)
    house.sidecar.script = []
    assert await status(house, other) == 200
    for revoked in (key, other):
        await house.change(
            "INSERT INTO key_generation VALUES (1, 2) ON CONFLICT (id) DO UPDATE SET number = number + 1",
            # The id is the test's own.
            "UPDATE api_key SET revoked = '2026-11-26 00:00:00.000000', generation = (SELECT number FROM "  # noqa: S608
            f"key_generation) WHERE id = '{id_of(revoked)}'",
        )
    assert (await told(wire))["code"] == "invalid_api_key"
    async with asyncio.timeout(WAIT_S):
        while await status(house, other) != 401:
            pass


async def test_a1_a_good_key_is_never_blocked_by_another_s_failures(house: House) -> None:
    good, fresh = await house.key(), await house.key()
    assert await status(house, good) == 200
    seen = {await status(house, f"sk-th_wrong{number}") for number in range(40)}
    assert seen == {401, 429}
    for key in (good, fresh):
        assert await status(house, key) == 200


async def test_a1_one_body_for_every_cause(house: House) -> None:
    revoked, disabled, rotated = await house.key(), await house.key(), await house.key()
    known = await house.key()
    async with AdminClient(house.settings.admin.socket) as client:
        await client.revoke_key(id_of(revoked))
        await client.disable_account((await client.show_key(id_of(disabled))).account)
        await client.rotate_key(id_of(rotated), Rotation(grace_s=0.0))
    wrong = ("sk-th_x", known[:-1] + ("a" if known[-1] != "a" else "b"), "sk-proj-abc")
    answers = [await (await house.ask(key)).answer() for key in (revoked, disabled, rotated, *wrong)]
    assert {(answer.status, answer.body) for answer in answers} == {(401, answers[0].body)}


async def test_what_cannot_be_done_to_a_key_is_said(house: House) -> None:
    key = id_of(await house.key())
    async with AdminClient(house.settings.admin.socket) as client:
        for changes, param in (
            (KeyChanges(tier="gold"), "tier"),
            (KeyChanges(expires=dt.datetime(2020, 1, 1, tzinfo=dt.UTC)), "expires"),
            (KeyChanges(allow_from=["192.0.2.1/24"]), "allow_from"),
            (KeyChanges(deny_from=["here"]), "deny_from"),
        ):
            with pytest.raises(ApiError) as refused:
                await client.update_key(key, changes)
            assert (refused.value.status, refused.value.param) == (400, param)
        await client.revoke_key(key)
        for doing in (client.update_key(key, KeyChanges(tier="one")), client.rotate_key(key, Rotation())):
            with pytest.raises(ApiError) as revoked:
                await doing
            assert (revoked.value.status, revoked.value.code) == (409, "key_revoked")
        with pytest.raises(ApiError) as unknown:
            await client.update_account("nobody", AccountChanges(name="x"))
        assert (unknown.value.status, unknown.value.code) == (404, "account_not_found")
        (account, *_) = await client.list_accounts()
        await house.key()
        with pytest.raises(ApiError) as taken:
            await client.update_account("account-1", AccountChanges(name=account.name))
        assert (taken.value.status, taken.value.code) == (409, "account_exists")
    # These are no failures of the database.
    assert house.lines("ledger_commit_failed") == []
