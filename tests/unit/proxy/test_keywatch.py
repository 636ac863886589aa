"""Whose keys are looked up again, and whose requests end, when something was changed somewhere."""

import asyncio
import contextlib
import datetime as dt
import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from proxy.exchange import Ending, Principal
from proxy.identity import SIGNED_VERSION
from proxy.keywatch import KeyWatch
from proxy.running import Running
from proxy.store.database import StorageError
from proxy.store.generation import Changed
from proxy.store.keys import KeyRecord
from sidecar.jsonlog import JsonLog
from tests.fakes.proxy import NOON, FakeClock, principal

MAC, OLD = b"m" * 32, b"o" * 32


class FakeStore:
    """The number of now, what was changed, and the keys; `away` is a database that does not answer."""

    def __init__(self) -> None:
        self.changed = Changed(7, [])
        self.records: dict[str, KeyRecord] = {}
        self.away = False
        self.asked: list[int] = []

    async def number(self) -> int:
        return self.changed.number

    async def since(self, number: int) -> Changed:
        self.asked.append(number)
        if self.away:
            raise StorageError("away")
        return self.changed if number != self.changed.number else Changed(number, [])

    async def lookup(self, key_id: str) -> KeyRecord | None:
        if self.away:
            raise StorageError("away")
        return self.records.get(key_id)


class FakeKnown:
    def __init__(self) -> None:
        self.forgotten: list[str] = []
        self.all = 0

    def forget(self, *key_ids: str) -> None:
        self.forgotten.extend(key_ids)

    def forget_all(self) -> None:
        self.all += 1


class FakeLeaver:
    def __init__(self) -> None:
        self.ending: Ending | None = None
        self.left = asyncio.Event()

    def leave(self, ending: Ending) -> None:
        self.ending = ending
        self.left.set()


class Post:
    """A watch with fakes around it."""

    def __init__(self) -> None:
        self.store, self.known, self.running = FakeStore(), FakeKnown(), Running()
        self.clock, self.log = FakeClock(), io.StringIO()
        store: Any = self.store
        rooms = (store, store, self.known, self.running)
        self.checked: list[float] = []
        self.watch = KeyWatch(*rooms, checked=self.checked.append, clock=self.clock, log=JsonLog(self.log))
        self.store.records["k"] = KeyRecord("k", "a", "n", "open", None, MAC, 1, NOON)

    @contextlib.contextmanager
    def at_work(self, **fields: Any) -> Iterator[FakeLeaver]:
        leaver = FakeLeaver()
        with self.running.at_work(self.who(**fields), leaver):
            yield leaver

    def who(self, **fields: Any) -> Principal:
        return principal(**{"key_id": "k", "mac": MAC, **fields})

    async def change(self, key_id: str = "k", **fields: Any) -> None:
        if fields:
            self.store.records[key_id] = replace(self.store.records[key_id], **fields)
        self.store.changed = Changed(self.store.changed.number + 1, [key_id])
        await self.watch.look()


@pytest.fixture
async def post() -> Post:
    made = Post()
    await made.watch.begin()
    return made


async def test_a12_what_was_changed_before_the_start_is_no_news(post: Post) -> None:
    await post.watch.look()
    assert (post.known.forgotten, post.store.asked) == ([], [7])


@pytest.mark.parametrize(
    ("fields", "ending"),
    [
        ({"revoked": NOON}, Ending.REVOKED),
        ({"account_disabled": NOON}, Ending.REVOKED),
        ({"expires": NOON}, Ending.REVOKED),
        ({"mac": b"n" * 32}, Ending.REVOKED),
        ({"mac": b"n" * 32, "old_mac": MAC, "old_until": NOON}, Ending.REVOKED),
        ({"mac": b"n" * 32, "old_mac": MAC, "old_until": NOON + dt.timedelta(seconds=1)}, None),
        ({"tier": "other"}, None),
    ],
)
async def test_a12_what_runs_on_a_changed_key_ends_if_the_key_is_good_no_more(
    post: Post, fields: dict[str, Any], ending: Ending | None
) -> None:
    with post.at_work() as one, post.at_work(key_id="other") as other:
        await post.change(**fields)
        assert (one.ending, other.ending) == (ending, None)
    assert post.known.forgotten == ["k"]
    await post.watch.look()
    assert post.store.asked == [7, 8]


async def test_a12_only_the_secret_that_is_over_is_cut(post: Post) -> None:
    with post.at_work() as new, post.at_work(mac=OLD) as old, post.at_work(mac=b"") as signed:
        await post.change(old_mac=OLD, old_until=NOON)
        assert (new.ending, old.ending, signed.ending) == (None, Ending.REVOKED, None)


@pytest.mark.parametrize(
    ("began", "fields"),
    [
        ({}, {"expires": NOON + dt.timedelta(seconds=10)}),
        ({"expires": NOON + dt.timedelta(seconds=5)}, {"expires": NOON + dt.timedelta(seconds=10)}),
        ({}, {"mac": b"n" * 32, "old_mac": MAC, "old_until": NOON + dt.timedelta(seconds=10)}),
        (
            {"mac": b"", "public_keys": (MAC,)},
            {
                "mac": b"n" * 32,
                "mac_version": SIGNED_VERSION,
                "old_mac": MAC,
                "old_mac_version": SIGNED_VERSION,
                "old_until": NOON + dt.timedelta(seconds=10),
            },
        ),
    ],
    ids=["an end", "a later one", "a new secret", "a new signing key"],
)
async def test_a12_what_runs_when_its_key_is_given_another_end_runs_until_then(
    post: Post, began: dict[str, Any], fields: dict[str, Any]
) -> None:
    with post.at_work(**began) as one:
        await post.change(**fields)
        post.clock.seconds = 9
        await post.watch.look()
        assert one.ending is None
        post.clock.seconds = 10
        await post.watch.look()
        assert one.ending is Ending.REVOKED


async def test_a12_what_runs_when_its_key_is_given_no_end_runs_on(post: Post) -> None:
    with post.at_work(expires=NOON + dt.timedelta(seconds=5)) as one:
        await post.change(expires=None)
        post.clock.seconds = 9
        await post.watch.look()
        assert one.ending is None


async def test_a12_a_signing_key_that_is_over_is_cut_too(post: Post) -> None:
    new, old = b"p" * 32, b"q" * 32
    post.store.records["k"] = replace(post.store.records["k"], mac=old, mac_version=SIGNED_VERSION)
    before, grace = {"mac": b"", "public_keys": (old,)}, {"old_until": NOON + dt.timedelta(hours=1)}
    with post.at_work(**before) as one:
        await post.change(mac=new, old_mac=old, old_mac_version=SIGNED_VERSION, **grace)
        assert one.ending is None
        with post.at_work(mac=b"", public_keys=(new,)) as other:
            await post.change(old_until=NOON)
            assert (one.ending, other.ending) == (Ending.REVOKED, None)


async def test_a12_a_key_that_is_gone_is_no_good_one(post: Post) -> None:
    with post.at_work() as one:
        del post.store.records["k"]
        await post.change()
        assert one.ending is Ending.REVOKED


async def test_a12_what_runs_on_a_key_that_expires_ends(post: Post) -> None:
    with post.at_work(expires=NOON + dt.timedelta(seconds=5)) as one, post.at_work() as other:
        await post.watch.look()
        assert one.ending is None
        post.clock.seconds = 5
        await post.watch.look()
        assert (one.ending, other.ending) == (Ending.REVOKED, None)
    assert '"reason":"expired"' in post.log.getvalue()


async def test_a12_while_the_database_is_away_nothing_is_forgotten_and_it_is_asked_again(post: Post) -> None:
    post.store.away = True
    with post.at_work() as one, post.at_work(expires=NOON) as expired:
        await post.change(revoked=NOON)
        await post.watch.look()
        assert (one.ending, expired.ending, post.known.forgotten) == (None, Ending.REVOKED, [])
        post.store.away = False
        await post.watch.look()
        assert one.ending is Ending.REVOKED
    assert post.store.asked == [7, 7, 7]
    # Only the look that was answered.
    assert post.checked == [NOON.timestamp()]
    assert post.log.getvalue().count("keys_unwatched") == 1


async def test_a12_a_database_that_goes_away_between_two_questions_is_asked_for_the_same_again(post: Post) -> None:
    with post.at_work() as one:
        lookup = post.store.lookup

        async def away(_key_id: str) -> KeyRecord | None:
            raise StorageError("away")

        post.store.lookup = away  # type: ignore[method-assign]  # for one look
        await post.change(revoked=NOON)
        assert one.ending is None
        post.store.lookup = lookup  # type: ignore[method-assign]  # as above
        await post.watch.look()
        assert one.ending is Ending.REVOKED


async def test_a12_a_restored_database_makes_every_key_a_stranger(post: Post) -> None:
    with post.at_work() as one, post.at_work(key_id="gone") as gone:
        post.store.changed = Changed(3, [])
        await post.watch.look()
        assert (post.known.all, one.ending, gone.ending) == (1, None, Ending.REVOKED)


async def test_a12_the_watch_outlives_what_nobody_expected(post: Post) -> None:
    number = post.store.number
    since, failed = post.store.since, asyncio.Event()

    async def broken(_number: int) -> Changed:
        post.store.since = since  # type: ignore[method-assign]  # once is enough
        failed.set()
        raise ZeroDivisionError

    post.store.since = broken  # type: ignore[method-assign]  # as above
    task = asyncio.create_task(post.watch.run())
    post.watch.tell()
    await failed.wait()
    with post.at_work() as one:
        post.store.records["k"] = replace(post.store.records["k"], revoked=NOON)
        post.store.changed = Changed(await number() + 1, ["k"])
        post.watch.tell()
        async with asyncio.timeout(5.0):
            await one.left.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert "key_watch_failed" in post.log.getvalue()


async def test_two_looks_at_once_act_one_after_the_other(post: Post) -> None:
    post.store.changed = Changed(8, ["k"])
    await asyncio.gather(post.watch.look(), post.watch.look())
    assert (post.store.asked, post.known.forgotten) == ([7, 8], ["k"])


def test_nobody_is_left_behind_in_the_list_of_who_runs() -> None:
    running, who = Running(), principal(key_id="k")
    with running.at_work(who, FakeLeaver()):
        with running.at_work(who, FakeLeaver()):
            assert running.cut("k", lambda _: None) == 2
        assert running.cut("k", lambda _: None) == 1
    assert running.key_ids == set()
