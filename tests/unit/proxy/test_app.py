"""What a start needs, and what it says when that is missing."""

import asyncio
import io
import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from proxy import app, sockets
from proxy.admin.records import NewAccount, NewKey, Rotation
from proxy.cli.desk import LocalDesk
from proxy.secrets import SecretFileError
from proxy.settings import Admin, Database, Listen, Proxy, Upstream
from proxy.store import migrate
from proxy.store.database import StorageLockedError
from proxy.store.failure import SchemaError
from sidecar.jsonlog import JsonLog
from sidecar.notify import Notifier
from sidecar.wire.errors import ApiError
from sidecar.yamlfile import ConfigInvalidError

POLICY = """\
version: 1
tiers:
  open:
    requests_per_minute: unlimited
    tokens_per_minute: unlimited
    concurrency: unlimited
    monthly_requests: unlimited
    monthly_tokens: 500
    max_output_tokens: unlimited
    default_output_tokens: 16
    models: ["*"]
    priority: 0
"""


@pytest.fixture
def settings(tmp_path: Path) -> Proxy:
    """A folder in which a server could start."""
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies/default.yaml").write_text(POLICY)
    made = Proxy(
        upstreams=[Upstream(name="local", socket=str(tmp_path / "s.sock"))],
        listen=Listen(port=0),
        admin=Admin(port=0, socket=str(tmp_path / "a.sock")),
        database=Database(url=f"sqlite+aiosqlite:///{tmp_path / 'data/t.db'}"),
        policies=str(tmp_path / "policies"),
        secret_file=str(tmp_path / "data/root.secret"),
    )
    migrate.upgrade(made.database)
    return made


async def start(settings: Proxy, told: io.StringIO | None = None) -> None:
    stop = app.Stop()
    stop.tell()
    log = JsonLog(told or io.StringIO())
    await app.live(settings, log, stop, Notifier({}, log))


async def test_a_server_without_its_sidecar_starts_and_ends(settings: Proxy) -> None:
    await start(settings)
    assert not await asyncio.to_thread(Path(settings.admin.socket).exists)


async def test_two_listeners_that_cannot_be_at_once_refuse_to_start(settings: Proxy) -> None:
    with sockets.bind_tcp("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    listen = Listen(host="localhost", port=port)
    with pytest.raises(sockets.ListenError, match=f"127.0.0.1:{port}: another process listens there"):
        await start(replace(settings, listen=listen, admin=replace(settings.admin, port=port)))


async def test_a_wrong_policy_refuses_to_start(settings: Proxy, tmp_path: Path) -> None:
    wrong = POLICY.replace("priority: 0", "priority: no")
    await asyncio.to_thread((tmp_path / "policies/default.yaml").write_text, wrong)
    with pytest.raises(ConfigInvalidError) as invalid:
        await start(settings)
    assert [(problem.line, problem.column) for problem in invalid.value.problems] == [(12, 15)]


async def test_a_database_without_tables_refuses_to_start(settings: Proxy, tmp_path: Path) -> None:
    await asyncio.to_thread((tmp_path / "data/t.db").unlink)
    with pytest.raises(SchemaError, match="tollhouse db upgrade"):
        await start(settings)


async def test_a_secret_that_others_may_read_refuses_to_start(settings: Proxy, tmp_path: Path) -> None:
    await start(settings)
    await asyncio.to_thread((tmp_path / "data/root.secret").chmod, 0o644)
    with pytest.raises(SecretFileError, match="chmod 600"):
        await start(settings)


async def test_a_database_that_another_has_open_refuses_to_start(settings: Proxy) -> None:
    async with app.open_desk(settings):
        with pytest.raises(StorageLockedError):
            await start(settings)


async def test_the_desk_works_on_the_database_itself(settings: Proxy) -> None:
    async with app.open_desk(settings) as desk:
        local = LocalDesk(desk)
        account = await local.create_account(NewAccount("acme"))
        made = await local.create_key(NewKey(account="acme", tier="open", name="ci"))
    async with app.open_desk(settings) as desk:
        local = LocalDesk(desk)
        assert await local.list_accounts() == [account]
        (key,) = await local.list_keys()
        assert (key.key_id, key.account, key.revoked) == (made.key_id, "acme", False)
        (row,) = (await local.usage()).rows
        assert (row.key_id, row.requests, row.monthly_tokens, row.monthly_requests) == (made.key_id, 0, 500, None)
        assert (await local.revoke_key(made.key_id)).revoked
        assert await local.check_ledger() == []


def told(log: io.StringIO) -> list[tuple[str, str]]:
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    return [(line["level"], line["path"]) for line in lines if line["event"] == "root_secret_made"]


async def test_a_root_secret_that_a_server_makes_is_told_and_where_keys_are_as_a_warning(settings: Proxy) -> None:
    path = Path(settings.secret_file)
    logs = [io.StringIO() for _ in range(3)]
    await start(settings, logs[0])
    async with app.open_desk(settings) as desk:
        await LocalDesk(desk).create_account(NewAccount("acme"))
        await LocalDesk(desk).create_key(NewKey(account="acme", tier="open", name="ci"))
    await start(settings, logs[1])
    await asyncio.to_thread(path.unlink)
    await start(settings, logs[2])
    assert [told(log) for log in logs] == [[("info", str(path))], [], [("warning", str(path))]]


async def test_what_only_looks_makes_no_root_secret(settings: Proxy) -> None:
    path = Path(settings.secret_file)
    async with app.open_desk(settings) as desk:
        local = LocalDesk(desk)
        await local.create_account(NewAccount("acme"))
        assert await local.list_keys() == []
        assert await local.check_ledger() == []
        assert not await asyncio.to_thread(path.exists)
        made = await local.create_key(NewKey(account="acme", tier="open", name="ci"))
    assert await asyncio.to_thread(path.exists)
    await asyncio.to_thread(path.unlink)
    async with app.open_desk(settings) as desk:
        local = LocalDesk(desk)
        assert [key.key_id for key in await local.list_keys()] == [made.key_id]
        # Made here, it would make the others worthless, and nobody would be told.
        with pytest.raises(SecretFileError, match="put it back"):
            await local.rotate_key(made.key_id, Rotation())
    assert not await asyncio.to_thread(path.exists)


async def test_keys_that_sign_or_have_ended_need_no_root_secret(settings: Proxy) -> None:
    path = Path(settings.secret_file)
    async with app.open_desk(settings) as desk:
        local = LocalDesk(desk)
        await local.create_account(NewAccount("acme"))
        await local.create_key(NewKey(account="acme", tier="open", name="machine", signed=True))
        ended = await local.create_key(NewKey(account="acme", tier="open", name="ci"))
        await local.revoke_key(ended.key_id)
    await asyncio.to_thread(path.unlink)
    async with app.open_desk(settings) as desk:
        await LocalDesk(desk).create_key(NewKey(account="acme", tier="open", name="ci"))
    assert await asyncio.to_thread(path.exists)


async def test_a_key_that_would_be_over_before_it_begins_is_refused(settings: Proxy) -> None:
    async with app.open_desk(settings) as desk:
        local = LocalDesk(desk)
        await local.create_account(NewAccount("acme"))
        now = desk.clock.now()
        for expires in (now, now.replace(tzinfo=None)):
            with pytest.raises(ApiError) as refused:
                await local.create_key(NewKey(account="acme", tier="open", name="ci", expires=expires))
            assert refused.value.param == "expires"


def test_a_stop_is_told_twice_to_hurry() -> None:
    stop = app.Stop()
    stop.tell()
    assert (stop.told.is_set(), stop.hurry.is_set()) == (True, False)
    stop.tell()
    assert stop.hurry.is_set()
