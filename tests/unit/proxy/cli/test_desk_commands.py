"""`keys`, `accounts` and `usage`: what they ask for, what they show people, pipes and programs."""

import asyncio
import datetime as dt
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from proxy.admin.records import (
    Account,
    AccountChanges,
    AccountLimitChanges,
    AccountLimits,
    AuditEvent,
    AuditQuery,
    CreatedKey,
    Key,
    KeyChanges,
    KeyLimitChanges,
    Listing,
    NewAccount,
    NewKey,
    Rotation,
    ServerState,
    Usage,
    UsageRow,
)
from proxy.cli import accounts, audit, console, keys, ledger, root, state, usage
from proxy.policy.schema import Overrides
from proxy.scopes import EVERY
from sidecar.wire.errors import ApiError
from tests.fakes.server_state import server_state

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
    """What a desk was asked for, and fixed answers. Mutable: `asked`, `problems`, `tiers`."""

    def __init__(self) -> None:
        self.tiers = ["free", "pro"]
        self.asked: list[object] = []
        self.problems: list[str] = []

    async def create_account(self, wanted: NewAccount) -> Account:
        if wanted.name == "taken":
            raise ApiError(409, "There is an account 'taken' already.")
        return Account("acct_1", wanted.name, MADE)

    async def list_accounts(self) -> list[Account]:
        return [Account("acct_1", "acme", MADE)]

    async def create_key(self, wanted: NewKey) -> CreatedKey:
        self.asked.append(wanted)
        secret = "ths_0123456789_abc" if wanted.signed else SECRET
        return CreatedKey(secret, "0123456789", wanted.name, wanted.account, wanted.tier)

    async def list_keys(self, account: str | None = None) -> list[Key]:
        self.asked.append(account)
        revoked = a_key("bbb", revoked=True, state="revoked")
        return [a_key("aaa", models=["m1", "m2"], last_used=MADE, expires=MADE), revoked]

    async def show_key(self, key_id: str) -> Key:
        limits = Overrides(requests_per_minute=5)
        return a_key(key_id, scopes=["chat"], limits=limits, metadata={"team": "web"}, allow_from=["192.0.2.0/24"])

    async def update_key(self, key_id: str, wanted: KeyChanges) -> Key:
        self.asked.append(wanted)
        return a_key(key_id)

    async def rotate_key(self, key_id: str, wanted: Rotation) -> CreatedKey:
        self.asked.append(wanted)
        return CreatedKey(SECRET, key_id, "web", "acme", "free", MADE)

    async def revoke_key(self, key_id: str) -> Key:
        return a_key(key_id, revoked=True)

    async def show_account(self, name_or_id: str) -> Account:
        limits = AccountLimits(monthly_tokens=1000)
        return Account("acct_1", name_or_id, MADE, disabled=True, limits=limits, metadata={"floor": "2"})

    async def update_account(self, name_or_id: str, wanted: AccountChanges) -> Account:
        self.asked.append(wanted)
        return Account("acct_1", name_or_id, MADE)

    async def disable_account(self, name_or_id: str) -> Account:
        return Account("acct_1", name_or_id, MADE, disabled=True)

    async def enable_account(self, name_or_id: str) -> Account:
        return Account("acct_1", name_or_id, MADE)

    async def list_audit(self, wanted: AuditQuery) -> Listing[AuditEvent]:
        self.asked.append(wanted)
        changes: dict[str, list[Any]] = {"tier": ["free", "pro"], "expires": [None, "2027-01-31T00:00:00Z"]}
        event = AuditEvent("evt_1", MADE, "socket:0", "key.update", "aaa", "req_1", "local", changes)
        return Listing([event], "evt_1")

    async def check_ledger(self) -> list[str]:
        return self.problems

    async def do(self, *_: object) -> ServerState:
        problems = ["default.yaml:3:1: no"]
        return server_state("loading", {"local": "loading"}, policy_problems=problems, tiers=self.tiers)

    async def usage(self, period: str | None = None, account: str | None = None) -> Usage:
        self.asked.append((period, account))
        return Usage("2026-11", [a_row("small", 1500, None), a_row("large", 250_000, 1_000_000)])


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeDesk:
    """A house whose desk is a fake."""
    made = FakeDesk()

    def at_the_desk(_settings: object, errand: Callable[[FakeDesk], Awaitable[Any]]) -> Any:
        async def done() -> Any:
            return await errand(made)

        return asyncio.run(done())

    for module in (console, keys, accounts, usage, audit, ledger, state):
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


def test_a_key_that_signs_says_what_its_requests_show(desk: FakeDesk, capsys: pytest.CaptureFixture[str]) -> None:
    assert root.run([*NEW, "--signed"]) == 0
    out, err = capsys.readouterr()
    assert out == "ths_0123456789_abc\n"
    assert "thp_0123456789" in err
    assert desk.asked == [NewKey(account="acme", tier="free", name="web", signed=True)]


def test_a_new_key_is_a_document_for_a_program(desk: FakeDesk, capsys: pytest.CaptureFixture[str]) -> None:
    root.run(["--json", *NEW])
    made = json.loads(capsys.readouterr().out)
    assert (made["secret"], made["key_id"]) == (SECRET, "0123456789")


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (["accounts", "create", ""], "'NAME'"),
        (["accounts", "create", "a\nb"], "'NAME'"),
        (["accounts", "create", "x" * 101], "'NAME'"),
        (["accounts", "show", ""], "'NAME'"),
        (["accounts", "update", "acme", "--name", ""], "'--name'"),
        (["accounts", "disable", ""], "'NAME'"),
        (["accounts", "enable", ""], "'NAME'"),
        ([*NEW[:-1], ""], "'--name'"),
        ([*NEW, "--account", ""], "'--account'"),
        ([*NEW, "--tier", ""], "'--tier'"),
        ([*NEW, "--model", ""], "'--model'"),
        (["keys", "show", ""], "'KEY_ID'"),
        (["keys", "update", "", "--name", "n"], "'KEY_ID'"),
        (["keys", "update", "aaa", "--tier", ""], "'--tier'"),
        (["keys", "rotate", ""], "'KEY_ID'"),
        (["keys", "revoke", ""], "'KEY_ID'"),
        (["usage", "--month", "2026-13"], "'--month'"),
        (["usage", "--month", ""], "'--month'"),
    ],
)
def test_a_value_that_cannot_be_is_a_usage_error(
    desk: FakeDesk, capsys: pytest.CaptureFixture[str], line: list[str], named: str
) -> None:
    assert root.run(line) == 2
    assert f"Invalid value for {named}: " in capsys.readouterr().err
    assert desk.asked == []


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
    root.run(["usage", "--month", "2026-11", "--account", "acme"])
    assert desk.asked == [("2026-11", "acme")]
    assert capsys.readouterr().out.splitlines() == [
        "large\tweb\tacme\tfree\t3\t249000\t1000\t250000\t7\t25%",
        "small\tweb\tacme\tfree\t3\t500\t1000\t1500\t7\tunlimited",
    ]


def test_usage_for_a_program_has_rows(desk: FakeDesk, capsys: pytest.CaptureFixture[str]) -> None:
    root.run(["--json", "usage"])
    assert [row["key_id"] for row in json.loads(capsys.readouterr().out)["rows"]] == ["small", "large"]
    assert desk.asked == [(None, None)]


def test_all_that_a_key_may_can_be_said_when_it_is_made(desk: FakeDesk) -> None:
    scopes = ["--scope", "chat", "--scope", "models"]
    limits = ["--requests-per-minute", "5", "--monthly-tokens", "unlimited", "--concurrency", "tier"]
    places = ["--allow-from", "192.0.2.0/24", "--deny-from", "192.0.2.7"]
    root.run([*NEW, *scopes, *limits, *places, "--metadata", "team=web"])
    assert desk.asked == [
        NewKey(
            account="acme",
            tier="free",
            name="web",
            scopes=["chat", "models"],
            limits=Overrides(requests_per_minute=5, monthly_tokens="unlimited"),
            metadata={"team": "web"},
            allow_from=["192.0.2.0/24"],
            deny_from=["192.0.2.7"],
        )
    ]


@pytest.mark.parametrize(
    "wrong",
    ["--scope=root", "--requests-per-minute=0", "--monthly-tokens=1e3", "--metadata=team", "--metadata==x"],
)
def test_an_option_that_means_nothing_is_a_usage_error(desk: FakeDesk, wrong: str) -> None:
    assert root.run([*NEW, wrong]) == 2
    assert desk.asked == []


def test_a_key_is_shown_with_all_but_its_secret(desk: FakeDesk, capsys: pytest.CaptureFixture[str]) -> None:
    root.run(["keys", "show", "aaa"])
    rows = dict(line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert (rows["scopes"], rows["limits"], rows["metadata"]) == ("chat", "requests_per_minute=5", "team=web")
    assert (rows["allowed from"], rows["denied from"], rows["old secret"]) == ("192.0.2.0/24", "nowhere", "none")


def test_only_what_is_given_of_a_key_is_changed(desk: FakeDesk) -> None:
    root.run(["keys", "update", "aaa", "--tier", "pro"])
    root.run(["keys", "update", "aaa", "--every-model", "--default-scopes", "--expires", "never"])
    root.run(["keys", "update", "aaa", "--allow-from", "any", "--metadata", "team=", "--concurrency", "tier"])
    assert desk.asked == [
        KeyChanges(tier="pro"),
        KeyChanges(models=None, scopes=None, expires=None),
        KeyChanges(allow_from=[], metadata={"team": None}, limits=KeyLimitChanges(concurrency=None)),
    ]


def test_two_options_that_exclude_each_other_are_a_usage_error(desk: FakeDesk) -> None:
    assert root.run(["keys", "update", "aaa", "--scope", "chat", "--default-scopes"]) == 2
    assert root.run(["keys", "update", "aaa", "--model", "m", "--every-model"]) == 2
    assert desk.asked == []


def test_a_rotated_key_s_new_secret_is_all_of_stdout(desk: FakeDesk, capsys: pytest.CaptureFixture[str]) -> None:
    root.run(["keys", "rotate", "aaa"])
    out, err = capsys.readouterr()
    assert out == f"{SECRET}\n"
    assert "good until 2026-11-25 10:11 UTC" in err
    root.run(["keys", "rotate", "aaa", "--grace", "30m"])
    assert desk.asked == [Rotation(86_400.0), Rotation(1800.0)]
    assert root.run(["keys", "rotate", "aaa", "--grace", "soon"]) == 2


def test_the_keys_of_an_account_are_listed(desk: FakeDesk) -> None:
    root.run(["keys", "list", "--account", "acme"])
    assert desk.asked == ["acme"]


def test_accounts_are_shown_changed_disabled_and_enabled(desk: FakeDesk, capsys: pytest.CaptureFixture[str]) -> None:
    root.run(["accounts", "show", "acme"])
    rows = dict(line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert (rows["state"], rows["limits"], rows["metadata"]) == ("disabled", "monthly_tokens=1000", "floor=2")
    root.run(["accounts", "update", "acme", "--name", "ACME", "--monthly-tokens", "5", "--metadata", "floor="])
    changes = AccountChanges(name="ACME", limits=AccountLimitChanges(monthly_tokens=5), metadata={"floor": None})
    assert desk.asked == [changes]
    capsys.readouterr()
    root.run(["accounts", "disable", "acme"])
    root.run(["accounts", "enable", "acme"])
    assert capsys.readouterr().out == "Account acme is disabled.\nAccount acme is enabled.\n"


def test_the_audit_log_is_listed_and_gone_on_with(desk: FakeDesk, capsys: pytest.CaptureFixture[str]) -> None:
    root.run(["audit", "list", "--target", "aaa", "--actor", "cli", "--after", "evt_9", "--limit", "5"])
    assert desk.asked == [AuditQuery("evt_9", 5, "aaa", "cli")]
    out, err = capsys.readouterr()
    changes = "tier: free > pro, expires: none > 2027-01-31T00:00:00Z"
    assert out == f"2026-11-25 10:11:00\tsocket:0\tkey.update\taaa\t{changes}\n"
    assert "--after evt_1" in err
    root.run(["--json", "audit", "list"])
    document = json.loads(capsys.readouterr().out)
    assert (document["rows"][0]["id"], document["next"]) == ("evt_1", "evt_1")


def test_the_books_are_checked_with_an_exit_code(desk: FakeDesk, capsys: pytest.CaptureFixture[str]) -> None:
    assert root.run(["ledger", "check"]) == 0
    assert capsys.readouterr().out == "The books are right.\n"
    desk.problems = ["Key aaa: off by one."]
    assert root.run(["ledger", "check"]) == 1
    assert capsys.readouterr().out == "Key aaa: off by one.\n"


def test_the_state_says_whether_the_server_is_ready(desk: FakeDesk, capsys: pytest.CaptureFixture[str]) -> None:
    assert root.run(["state"]) == 1
    out = capsys.readouterr().out
    assert "ready\tno: loading\n" in out
    assert "policy problem\tdefault.yaml:3:1: no\n" in out


def test_the_console_s_address_has_a_key_in_it(
    desk: FakeDesk, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    # What is being written there is none of the running server's yet.
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies/default.yaml").write_text("tiers: {half")
    assert root.run(["console", "--expires", "30m"]) == 0
    said = capsys.readouterr()
    assert said.out == f"http://127.0.0.1:8001/console/#key={SECRET}\n"
    assert "show it to nobody" in said.err
    (wanted,) = desk.asked
    assert isinstance(wanted, NewKey)
    assert (wanted.account, wanted.tier, wanted.scopes) == ("console", "free", list(EVERY))
    assert wanted.expires is not None
    assert dt.timedelta() < wanted.expires - dt.datetime.now(dt.UTC) <= dt.timedelta(minutes=30)
    assert root.run(["--json", "console", "--read-only"]) == 0
    assert json.loads(capsys.readouterr().out)["secret"] == SECRET
    looks = desk.asked[-1]
    assert isinstance(looks, NewKey)
    assert looks.scopes == ["admin:read"]


def test_a_server_that_does_not_say_its_tiers_is_to_be_started_anew(
    desk: FakeDesk, capsys: pytest.CaptureFixture[str]
) -> None:
    desk.tiers = []
    assert root.run(["console"]) == 1
    assert capsys.readouterr().err == "Error: The running server is still Tollhouse 0.1.0.\nStart it anew.\n"


def test_where_the_console_is_off_that_is_said(
    desk: FakeDesk, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "conf/proxy.yaml").write_text(
        "upstreams: [{name: local, socket: run/s.sock}]\nadmin: {host: 192.0.2.1}\n"
    )
    assert root.run(["console"]) == 1
    assert "admin.console: true" in capsys.readouterr().err
    assert desk.asked == []
