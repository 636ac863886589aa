"""The doctor: each check says what it found and what to do; a wrong configuration stops none of the others."""

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from proxy.cli import doctor as room
from proxy.cli import root
from proxy.cli.checks import cpu, house, machine, model
from proxy.cli.checks.check import Case, Status
from proxy.cli.exits import CommandError
from proxy.cli.sidecar_command import SidecarConfig, SidecarModel
from proxy.settings import Admin, Listen, Proxy, Upstream

ROOT = Path(__file__).parents[4]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A house that is configured and has not been started."""
    shutil.copytree(ROOT / "policies", tmp_path / "policies")
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/proxy.yaml").write_text(
        "upstreams: [{name: local, socket: run/s.sock}]\nlisten: {port: 0}\nadmin: {port: 0}\n"
    )
    (tmp_path / "conf/sidecar.yaml").write_text("model: {id: m, source: m}\nsocket: run/s.sock\n")
    (tmp_path / "run").mkdir(mode=0o700)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def a_case() -> Case:
    settings = Proxy(
        upstreams=[Upstream(name="local", socket="run/s.sock")], listen=Listen(port=0), admin=Admin(port=0)
    )
    sidecar = SidecarConfig(model=SidecarModel(id="m", source="m"), socket="run/s.sock")
    return Case(Path("conf/proxy.yaml"), settings, Path("conf/sidecar.yaml"), sidecar)


def examined(capsys: pytest.CaptureFixture[str], *only: str, code: int = 0) -> list[dict[str, Any]]:
    arguments = [part for name in only for part in ("--only", name)]
    assert root.run(["--json", "doctor", *arguments]) == code
    checks: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["checks"]
    return checks


def test_only_what_was_asked_for_is_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    checks = examined(capsys, "sqlite", "policy")
    assert [check["name"] for check in checks] == ["sqlite", "policy"]


def test_the_books_of_a_new_database_are_right(capsys: pytest.CaptureFixture[str]) -> None:
    (check,) = examined(capsys, "ledger")
    assert check["status"] == "warn"
    root.run(["-q", "db", "upgrade"])
    capsys.readouterr()
    (check,) = examined(capsys, "ledger")
    assert check["status"] == "ok"


def test_a_root_secret_that_is_lost_is_a_failure_once_there_are_keys(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = here / "data/root.secret"
    assert house.check_secret(a_case()).status is Status.OK
    root.run(["-q", "db", "upgrade"])
    assert house.check_secret(a_case()).status is Status.OK
    for line in (
        ["accounts", "create", "acme"],
        ["keys", "create", "--account", "acme", "--tier", "free", "--name", "k"],
    ):
        assert root.run(line) == 0
    capsys.readouterr()
    assert house.check_secret(a_case()).message == "data/root.secret"
    secret.rename(here / "old.secret")
    checks = examined(capsys, "secret", "ledger", code=1)
    assert [(check["name"], check["status"]) for check in checks] == [("secret", "fail"), ("ledger", "ok")]
    assert ("1 key" in checks[0]["message"], "back" in checks[0]["hint"]) == (True, True)
    assert not secret.exists()


def test_books_that_disagree_are_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    root.run(["-q", "db", "upgrade"])
    with sqlite3.connect("data/tollhouse.db") as database:
        database.execute(
            "INSERT INTO quota (key_id, period, settled_tokens, reserved_tokens, settled_requests, reserved_requests,"
            " settled_prompt_tokens, settled_cached_tokens) VALUES ('k', '2026-11', 5, 0, 0, 0, 0, 0)"
        )
    database.close()
    capsys.readouterr()
    (check,) = examined(capsys, "ledger", code=1)
    assert check["status"] == "fail"
    assert check["hint"]


def test_a_configuration_that_is_wrong_is_told_and_the_machine_looked_at(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "conf/proxy.yaml").write_text("upstrems: []\n")
    checks = examined(capsys, "python", "config", "policy", code=3)
    assert [check["name"] for check in checks] == ["python", "config"]
    assert "conf/proxy.yaml:1:1: " in checks[1]["message"]


@pytest.mark.parametrize("name", ["PRECISION", "DEVICE"])
def test_a_precision_or_a_device_that_no_engine_has_is_a_mistake_in_the_configuration(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"TOLLHOUSE_SIDECAR__ENGINE__{name}", "foo")
    checks = examined(capsys, "config", "precision", code=3)
    assert (checks[0]["name"], checks[0]["status"]) == ("config", "fail")
    assert f"TOLLHOUSE_SIDECAR__ENGINE__{name}" in checks[0]["message"]


@pytest.mark.parametrize(
    "url",
    ["sqlite:///x.db", "postgresql://u:secret@h/d", "foo", "", "sqlite+aiosqlite://", "postgresql+asyncpg://h:x/d"],
)
def test_an_address_of_no_database_is_a_mistake_in_the_configuration(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOLLHOUSE__DATABASE__URL", url)
    (check,) = examined(capsys, "config", "disk", "permissions", "database", "ledger", code=3)
    assert (check["name"], check["status"]) == ("config", "fail")
    assert "database.url" in check["message"]
    assert "secret" not in check["message"]


def test_a_sidecar_s_file_that_lies_elsewhere_is_looked_at(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    etc = here / "etc"
    etc.mkdir()
    for name in ("proxy.yaml", "sidecar.yaml"):
        (here / "conf" / name).rename(etc / name)
    line = ["--json", "--config", "etc/proxy.yaml", "doctor", "--only", "config"]
    assert root.run(line) == 0
    (check,) = json.loads(capsys.readouterr().out)["checks"]
    assert (check["status"], "--sidecar-config" in check["hint"]) == ("warn", True)
    assert root.run([*line, "--sidecar-config", "etc/sidecar.yaml"]) == 0
    (check,) = json.loads(capsys.readouterr().out)["checks"]
    assert (check["status"], check["message"]) == ("ok", "etc/proxy.yaml, etc/sidecar.yaml")
    monkeypatch.setenv("TOLLHOUSE_CONFIG", "etc/proxy.yaml")
    monkeypatch.setenv("TOLLHOUSE_SIDECAR_CONFIG", "etc/sidecar.yaml")
    assert examined(capsys, "config") == [check]
    # One that was asked for and is not there is a mistake.
    assert root.run([*line, "--sidecar-config", "etc/sidecars.yaml"]) == 3
    assert "etc/sidecars.yaml" in capsys.readouterr().out


def test_a_hint_names_the_launcher_of_a_checkout(here: Path) -> None:
    (here / "policies/default.yaml").write_text("version: 2\ntiers: {}\n")
    (here / "tollhouse").touch(0o755)
    assert house.check_policy(a_case()).hint == "Run: ./tollhouse policy check"


def test_a_policy_s_first_mistake_is_told_with_its_place(here: Path) -> None:
    (here / "policies/default.yaml").write_text("version: 2\ntiers: {}\n")
    check = house.check_policy(a_case())
    assert check.status is Status.FAILED
    assert check.message.startswith("policies/default.yaml:1:10: ")


def test_signed_requests_want_the_server_s_names(here: Path) -> None:
    policy = here / "policies/default.yaml"
    policy.write_text(policy.read_text().replace("    priority: 10\n", "    priority: 10\n    replay: signed\n"))
    check = house.check_policy(a_case())
    assert (check.status, "tier pro" in check.message) == (Status.WARNING, True)
    case = a_case()
    named = structs.replace(case.settings, public_authorities=("api.example.com",))
    assert house.check_policy(structs.replace(case, settings=named)).status is Status.OK


def test_files_that_others_may_read_are_a_failure_with_the_remedy(here: Path) -> None:
    assert house.check_permissions(a_case()).status is Status.OK
    (here / "run").chmod(0o755)
    check = house.check_permissions(a_case())
    assert check.status is Status.FAILED
    assert check.hint == "Run: chmod go-rwx run"


def test_a_secret_that_others_may_read_is_a_failure(here: Path) -> None:
    (here / "data").mkdir(mode=0o700)
    secret = here / "data/root.secret"
    secret.write_bytes(bytes(32))
    secret.chmod(0o644)
    check = house.check_permissions(a_case())
    assert check.status is Status.FAILED
    assert "chmod 600" in check.message


def test_a_database_without_tables_is_a_warning_and_a_current_one_is_well() -> None:
    assert house.check_database(a_case()).status is Status.WARNING
    root.run(["-q", "db", "upgrade"])
    assert house.check_database(a_case()).status is Status.OK


@pytest.mark.parametrize(
    ("path", "status"), [("/cache/m", Status.OK), (None, Status.WARNING)], ids=["in the cache", "not fetched"]
)
def test_a_catalogue_s_model_is_in_the_cache_or_not(
    monkeypatch: pytest.MonkeyPatch, path: str | None, status: Status
) -> None:
    configured = [{"source": "m", "path": path, "weights": [], "error": None}]
    listed = json.dumps({"rows": [{"name": "m", "path": path}], "configured": configured}).encode()
    monkeypatch.setattr(model.sidecar_command, "ask_sidecar_command", lambda *_: listed)
    assert model.check_model(a_case()).status is status


def test_a_sidecar_that_is_not_installed_is_told_with_the_way_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: str) -> bytes:
        raise CommandError("The sidecar is not installed.", hint="pip install it")

    monkeypatch.setattr(model.sidecar_command, "ask_sidecar_command", missing)
    check = model.check_model(a_case())
    assert (check.status, check.hint) == (Status.FAILED, "pip install it")


@pytest.mark.skipif(machine.platform.machine() != "x86_64", reason="the flags are x86's")
@pytest.mark.parametrize(
    ("flags", "status", "said"),
    [
        ("fpu avx2 avx512_vnni", Status.OK, "VNNI: int8 is fast"),
        ("fpu avx2", Status.OK, "no VNNI"),
        ("fpu avx", Status.WARNING, "no AVX2"),
    ],
)
def test_the_cpu_is_known_by_its_flags(tmp_path: Path, flags: str, status: Status, said: str) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor : 0\nflags\t\t: {flags}\n")
    check = cpu.check_cpu(cpuinfo)
    assert check.status is status
    assert said in check.message


@pytest.mark.parametrize(("left_bytes", "status"), [(8_000_000_000, Status.OK), (1_000_000_000, Status.WARNING)])
def test_little_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch, left_bytes: int, status: Status) -> None:
    monkeypatch.setattr(machine, "left_bytes", lambda: left_bytes)
    assert machine.check_memory().status is status


def test_a_foreign_package_of_our_name_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    owners = {"proxy": ["tollhouse", "proxy.py"], "sidecar": ["tollhouse"]}
    monkeypatch.setattr(machine.importlib.metadata, "packages_distributions", lambda: owners)
    check = machine.check_packages()
    assert check.status is Status.FAILED
    assert "pip uninstall proxy.py" in check.hint


def test_every_check_has_a_name_of_its_own() -> None:
    assert len(set(room.NAMES)) == len(room.NAMES)


def test_people_see_the_hint_below_the_finding(capsys: pytest.CaptureFixture[str]) -> None:
    assert root.run(["doctor", "--only", "database"]) == 0
    first, hint, _, summary = capsys.readouterr().out.splitlines()
    assert first.startswith("! database  data/tollhouse.db has no tables yet")
    assert "tollhouse db upgrade" in hint
    assert summary == "1 warning."
