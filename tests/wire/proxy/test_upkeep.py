"""What docs/operations.md tells an operator to do: a backup beside a running server, a restore, a new root secret."""

import asyncio
import json
import os
from pathlib import Path

import pytest

from proxy.admin.client import AdminClient
from proxy.admin.records import Rotation
from proxy.settings import Database
from proxy.signing import Signer
from proxy.store import address
from proxy.store.backup import back_up
from tests.fakes.postgres import Postgres
from tests.wire.proxy.conftest import Build
from tests.wire.proxy.house import House, chat, request


async def status(house: House, key: str) -> int:
    return (await (await house.ask(key, chat(stream=False))).answer()).status


async def rotated(house: House, key: str) -> str:
    async with AdminClient(house.settings.admin.socket) as client:
        given = await client.rotate_key(key.removeprefix("sk-th_").partition("_")[0], Rotation(grace_s=0.0))
        return given.secret


async def test_a_backup_of_a_busy_house_is_restored_with_its_keys_and_its_books(build: Build, tmp_path: Path) -> None:
    copy = tmp_path / "backup.db"
    async with build() as house:
        key = await house.key("few")
        assert await status(house, key) == 200
        asked = [asyncio.create_task(status(house, key)) for _ in range(3)]
        await asyncio.to_thread(back_up, house.settings.database, copy)
        assert await asyncio.gather(*asked) == [200, 200, 200]
        after = await house.key()
    await asyncio.to_thread(_restore, copy, address.file_of(house.settings.database))
    # Leaving the house checks the books, too.
    async with build() as house:
        assert await status(house, key) == 200
        assert await status(house, after) == 401
        # What ran while it was copied is settled: at the start, or by what it used.
        assert {row["state"] for row in house.rows()} <= {"settled", "forced", "void"}


def _restore(copy: Path, path: Path) -> None:
    for old in path.parent.glob(f"{path.name}*"):
        old.unlink()
    copy.rename(path)


async def test_with_another_root_secret_no_key_is_good_until_it_is_rotated(build: Build, tmp_path: Path) -> None:
    secret = tmp_path / "data/root.secret"
    async with build() as house:
        first, second = await house.key(), await house.key()
        assert await status(house, first) == 200
    await asyncio.to_thread(secret.rename, tmp_path / "old.secret")
    async with build() as house:
        assert [await status(house, key) for key in (first, second)] == [401, 401]
        new = await rotated(house, first)
        assert [await status(house, key) for key in (first, new, second)] == [401, 200, 401]
    # The one from before makes the old keys good again, and the new one worthless.
    await asyncio.to_thread(os.replace, tmp_path / "old.secret", secret)
    async with build() as house:
        assert [await status(house, key) for key in (second, new)] == [200, 401]


async def test_a_key_that_signs_is_good_under_another_root_secret(build: Build, tmp_path: Path) -> None:
    body = json.dumps(chat(stream=False)).encode()

    async def signed(house: House) -> int:
        host = f"127.0.0.1:{house.ready['port']}"
        told = Signer(secret).headers("POST", f"http://{host}/v1/chat/completions", body, {})
        wire = await house.connect()
        await wire.send(request(None, body, headers={"host": host} | told))
        return (await wire.answer()).status

    async with build() as house:
        secret = await house.key("signed", signed=True)
        assert await signed(house) == 200
    await asyncio.to_thread((tmp_path / "data/root.secret").unlink)
    async with build() as house:
        assert await signed(house) == 200


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
async def test_a_dump_of_postgres_is_restored_with_its_keys_and_its_books(
    build: Build, database: Database, postgres: Postgres
) -> None:
    name = postgres.name_in(database.url)
    async with build() as house:
        key = await house.key("few")
        assert await status(house, key) == 200
        dump = await asyncio.to_thread(postgres.dump, name)
        assert await status(house, key) == 200
        after = await house.key()
    await asyncio.to_thread(postgres.restore, name, dump)
    async with build() as house:
        assert [await status(house, one) for one in (key, after)] == [200, 401]
        # The one before the dump, and this one.
        assert [row["state"] for row in house.rows()] == ["settled", "settled"]
