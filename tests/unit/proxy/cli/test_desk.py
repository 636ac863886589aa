"""Where an errand is done: at the running server, or on the database; and how failures of either are told."""

import socket
import threading
from pathlib import Path

import pytest

from proxy.admin import table
from proxy.admin.client import NotReachableError
from proxy.admin.errands import Errands
from proxy.admin.records import AccountChanges, AuditQuery, KeyChanges, NewAccount, NewKey, Nothing, Rotation
from proxy.cli import groundwork
from proxy.cli.desk import at_the_desk, explained
from proxy.cli.exits import CommandError, Exit
from proxy.secrets import SecretFileError
from proxy.settings import Admin, Proxy, Upstream
from proxy.sockets import ListenError
from proxy.store.backup import BackupFileError
from proxy.store.database import StorageError, StorageLockedError
from proxy.store.failure import SchemaError

SETTINGS = Proxy(upstreams=[Upstream(name="local", socket="run/s.sock")], admin=Admin(socket="run/a.sock"))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    groundwork.write_missing(groundwork.missing_policies(Path("policies")))
    groundwork.make_private_folders(SETTINGS, "run/s.sock")


def test_without_a_server_the_database_itself_is_used() -> None:
    groundwork.upgrade_database(SETTINGS)
    made = at_the_desk(SETTINGS, lambda desk: desk.create_account(NewAccount(name="acme")))
    listed = at_the_desk(SETTINGS, lambda desk: desk.list_accounts())
    assert listed == [made]


def test_a_database_without_tables_says_what_to_do() -> None:
    with pytest.raises(CommandError, match="tollhouse db upgrade"):
        at_the_desk(SETTINGS, lambda desk: desk.list_accounts())


def hang_up(server: socket.socket) -> None:
    """Close each connection as it comes, until the server is shut down."""
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        connection.close()


def test_a_server_that_gives_no_answer_is_not_gone_around() -> None:
    groundwork.upgrade_database(SETTINGS)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("run/a.sock")
        server.listen()
        hanging_up = threading.Thread(target=hang_up, args=(server,))
        hanging_up.start()
        with pytest.raises(CommandError, match="does not answer") as refused:
            at_the_desk(SETTINGS, lambda desk: desk.list_accounts())
        server.shutdown(socket.SHUT_RDWR)
        hanging_up.join()
    assert refused.value.code is Exit.NOT_REACHABLE


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (NotReachableError("gone"), Exit.NOT_REACHABLE),
        (StorageError("full"), Exit.FAILED),
        (StorageLockedError(Path("x.db"), 7), Exit.FAILED),
        (SchemaError("behind"), Exit.FAILED),
        (SecretFileError("open to all"), Exit.FAILED),
        (ListenError("in use"), Exit.FAILED),
        (BackupFileError("there"), Exit.FAILED),
    ],
)
def test_every_foreign_failure_is_explained(raised: Exception, code: Exit) -> None:
    with pytest.raises(CommandError) as told, explained():
        raise raised
    assert told.value.code is code
    assert str(raised) in told.value.message


def test_what_only_a_server_can_say_is_told_when_there_is_none() -> None:
    groundwork.upgrade_database(SETTINGS)
    with pytest.raises(CommandError, match="No server runs here") as refused:
        at_the_desk(SETTINGS, lambda desk: desk.do(table.STATE, Nothing()))
    assert refused.value.code is Exit.NOT_REACHABLE


def test_every_errand_is_done_on_the_database_itself() -> None:
    groundwork.upgrade_database(SETTINGS)

    async def errands(desk: Errands) -> list[str]:
        await desk.create_account(NewAccount("acme"))
        key = await desk.create_key(NewKey(account="acme", tier="free", name="k"))
        await desk.update_account("acme", AccountChanges(name="ACME"))
        await desk.update_key(key.key_id, KeyChanges(tier="pro"))
        assert (await desk.rotate_key(key.key_id, Rotation())).key_id == key.key_id
        assert (await desk.disable_account("ACME")).disabled
        assert (await desk.show_key(key.key_id)).state == "disabled"
        assert not (await desk.enable_account("ACME")).disabled
        assert (await desk.revoke_key(key.key_id)).revoked
        assert [row.key_id for row in (await desk.usage()).rows] == [key.key_id]
        assert await desk.check_ledger() == []
        events = (await desk.list_audit(AuditQuery())).data
        assert {event.actor for event in events} == {"cli"}
        return [event.action for event in events]

    assert at_the_desk(SETTINGS, errands) == [
        "key.revoke",
        "account.enable",
        "account.disable",
        "key.rotate",
        "key.update",
        "account.update",
        "key.create",
        "account.create",
    ]
