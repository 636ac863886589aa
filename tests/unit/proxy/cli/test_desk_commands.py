"""`keys`, `accounts` and `usage`: what they ask for, what they show people, pipes and programs."""

import asyncio
import datetime as dt
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from proxy.admin.actions import Account, CreatedKey, Key, NewAccount, NewKey, Usage, UsageRow
from proxy.cli import accounts, keys, root, usage
from sidecar.wire.errors import ApiError

MADE = dt.datetime(2026, 11, 25, 10, 11, tzinfo=dt.UTC)
SECRET = "sk-th_0123456789_abc"


def a_key(key_id: str, **changes: Any) -> Key:
    fields: dict[str, Any] = {
        "key_id": key_id,
        "name": "web",
        "account": "acme",
        "tier": "free",
        "models": None,
        "created": MADE,
        "expires": None,
        "last_used": None,
        "revoked": False,
    }
    return Key(**{**fields, **changes})


def a_row(key_id: str, total: int, limit: int | None) -> UsageRow:
    return UsageRow(
        key_id=key_id,
        name="web",
        account="acme",
        tier="free",
        requests=3,
        prompt_tokens=total - 1000,
        cached_tokens=0,
        completion_tokens=1000,
        total_tokens=total,
        reserved_tokens=7,
        reserved_requests=1,
        monthly_tokens=limit,
        monthly_requests=None,
    )


class FakeDesk:
    """What a desk was asked for, and fixed answers. Mutable: `asked`."""

    def __init__(self) -> None:
        self.asked: list[object] = []

    async def create_account(self, wanted: NewAccount) -> Account:
        if wanted.name == "taken":
            raise ApiError(409, "There is an account 'taken' already.")
        return Account("acct_1", wanted.name, MADE)

    async def list_accounts(self) -> list[Account]:
        return [Account("acct_1", "acme", MADE)]

    async def create_key(self, wanted: NewKey) -> CreatedKey:
        self.asked.append(wanted)
        return CreatedKey(SECRET, "0123456789", wanted.name, wanted.account, wanted.tier)

    async def list_keys(self) -> list[Key]:
        return [a_key("aaa", models=["m1", "m2"], last_used=MADE, expires=MADE), a_key("bbb", revoked=True)]

    async def revoke_key(self, key_id: str) -> Key:
        return a_key(key_id, revoked=True)

    async def usage(self, period: str | None = None) -> Usage:
        self.asked.append(period)
        return Usage("2026-11", [a_row("small", 1500, None), a_row("large", 250_000, 1_000_000)])


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeDesk:
    """A house whose desk is a fake."""
    made = FakeDesk()

    def at_the_desk(_settings: object, errand: Callable[[FakeDesk], Awaitable[Any]]) -> Any:
        async def done() -> Any:
            return await errand(made)

        return asyncio.run(done())

    for module in (keys, accounts, usage):
        monkeypatch.setattr(module, "at_the_desk", at_the_desk)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/proxy.yaml").write_text("upstreams: [{name: local, socket: run/s.sock}]\n")
    monkeypatch.chdir(tmp_path)
    return made


NEW = ["keys", "create", "--account", "acme", "--tier", "free", "--name", "web"]


def test_a_new_key_s_secret_is_all_of_stdout(desk: FakeDesk, capsys: pytest.CaptureFixture[str]) -> None:
    assert root.run(NEW) == 0
    out, err = capsys.readouterr()
    assert out == f"{SECRET}\n"
    assert "0123456789" in err
    assert "not shown again" in err
    assert SECRET not in err
    assert desk.asked == [NewKey(account="acme", tier="free", name="web")]


def test_a_new_key_is_a_document_for_a_program(desk: FakeDesk, capsys: pytest.CaptureFixture[str]) -> None:
    root.run(["--json", *NEW])
    made = json.loads(capsys.readouterr().out)
    assert (made["secret"], made["key_id"]) == (SECRET, "0123456789")


def test_models_and_a_time_can_be_set(desk: FakeDesk) -> None:
    root.run([*NEW, "--model", "m1", "--model", "m2", "--expires", "2027-01-31"])
    wanted = NewKey(
        account="acme", tier="free", name="web", models=["m1", "m2"], expires=dt.datetime(2027, 1, 31, tzinfo=dt.UTC)
    )
    assert desk.asked == [wanted]


def test_a_time_may_have_a_zone_or_be_in_days(desk: FakeDesk) -> None:
    root.run([*NEW, "--expires", "2027-01-31T12:00:00+02:00"])
    root.run([*NEW, "--expires", "90d"])
    zoned, days = (wanted.expires for wanted in desk.asked if isinstance(wanted, NewKey))
    assert zoned == dt.datetime(2027, 1, 31, 10, tzinfo=dt.UTC)
    assert days is not None
    assert dt.timedelta(days=89) < days - dt.datetime.now(dt.UTC) <= dt.timedelta(days=90)


@pytest.mark.parametrize("wrong", ["soon", "0d", "-3d", "2027-13-01", "12"])
def test_a_time_that_is_none_is_a_usage_error(desk: FakeDesk, wrong: str) -> None:
    assert root.run([*NEW, f"--expires={wrong}"]) == 2
    assert desk.asked == []


def test_keys_are_listed_without_the_revoked_ones(desk: FakeDesk, capsys: pytest.CaptureFixture[str]) -> None:
    root.run(["keys", "list"])
    assert capsys.readouterr().out == "aaa\tweb\tacme\tfree\tm1, m2\t2026-11-25\t2026-11-25 10:11\tactive\n"
    root.run(["keys", "list", "--all"])
    second = capsys.readouterr().out.splitlines()[1]
    assert second == "bbb\tweb\tacme\tfree\tall of its tier\tnever\tnever\trevoked"


def test_a_key_is_revoked_by_its_id(desk: FakeDesk, capsys: pytest.CaptureFixture[str]) -> None:
    assert root.run(["keys", "revoke", "aaa"]) == 0
    assert "aaa (web) is revoked" in capsys.readouterr().out


def test_accounts_are_created_and_listed(desk: FakeDesk, capsys: pytest.CaptureFixture[str]) -> None:
    root.run(["accounts", "create", "acme"])
    assert "acct_1" in capsys.readouterr().out
    root.run(["--json", "accounts", "list"])
    assert [row["name"] for row in json.loads(capsys.readouterr().out)["rows"]] == ["acme"]


def test_a_name_that_is_taken_is_a_failure_in_the_server_s_words(
    desk: FakeDesk, capsys: pytest.CaptureFixture[str]
) -> None:
    assert root.run(["accounts", "create", "taken"]) == 1
    assert capsys.readouterr().err == "Error: There is an account 'taken' already.\n"


def test_usage_has_the_largest_first_and_the_share_of_the_quota(
    desk: FakeDesk, capsys: pytest.CaptureFixture[str]
) -> None:
    root.run(["usage", "--month", "2026-11"])
    assert desk.asked == ["2026-11"]
    assert capsys.readouterr().out.splitlines() == [
        "large\tweb\tacme\tfree\t3\t249000\t1000\t250000\t7\t25%",
        "small\tweb\tacme\tfree\t3\t500\t1000\t1500\t7\tunlimited",
    ]


def test_usage_for_a_program_has_rows(desk: FakeDesk, capsys: pytest.CaptureFixture[str]) -> None:
    root.run(["--json", "usage"])
    assert [row["key_id"] for row in json.loads(capsys.readouterr().out)["rows"]] == ["small", "large"]
    assert desk.asked == [None]
