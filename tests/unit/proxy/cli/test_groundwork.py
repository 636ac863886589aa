"""What `up` lays before the first start: only what is missing, and nothing over what is there."""

from pathlib import Path

import pytest

from proxy.cli import groundwork
from proxy.cli.exits import CommandError
from proxy.policy.load import load_policy
from proxy.settings import Proxy, Upstream, load_settings

WANTED = {Path("conf/proxy.yaml"): "conf/proxy.yaml", Path("conf/sidecar.yaml"): "conf/sidecar.yaml"}
SETTINGS = Proxy(upstreams=[Upstream(name="local", socket="run/sidecar.sock")])


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_empty_folder_gets_a_configuration_that_is_valid() -> None:
    assert groundwork.write_missing(WANTED) == list(WANTED)
    settings = load_settings(Path("conf/proxy.yaml"), {})
    policies = Path(settings.policies)
    groundwork.write_missing(groundwork.missing_policies(policies))
    assert {"free", "pro", "unlimited"} <= set(load_policy(policies).tiers)


def test_what_is_there_is_left_alone() -> None:
    path = Path("conf/proxy.yaml")
    path.parent.mkdir()
    path.write_text("mine")
    assert groundwork.write_missing(WANTED) == [Path("conf/sidecar.yaml")]
    assert path.read_text() == "mine"
    assert groundwork.write_missing(WANTED) == []


def test_a_folder_with_a_policy_gets_no_other() -> None:
    Path("policies").mkdir()
    Path("policies/mine.yaml").write_text("")
    assert groundwork.missing_policies(Path("policies")) == {}


def test_a_policy_folder_of_another_name_is_not_made_up() -> None:
    assert groundwork.missing_policies(Path("polices")) == {}


def test_an_installation_without_defaults_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(groundwork, "_ROOT", tmp_path)
    monkeypatch.setattr(groundwork.sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(CommandError, match="brings no default"):
        groundwork.defaults_folder()


def test_an_installed_wheel_brings_the_defaults_in_share(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    share = tmp_path / "share/tollhouse"
    (share / "conf").mkdir(parents=True)
    (share / "conf/proxy.yaml").write_text("shared")
    monkeypatch.setattr(groundwork, "_ROOT", tmp_path / "site-packages")
    monkeypatch.setattr(groundwork.sysconfig, "get_path", lambda _: str(tmp_path))
    assert groundwork.defaults_folder() == share


def test_the_folders_of_secrets_sockets_and_logs_are_private(here: Path) -> None:
    groundwork.make_private_folders(SETTINGS, "run/sidecar.sock")
    assert {path.name: path.stat().st_mode & 0o777 for path in here.iterdir()} == {"data": 0o700, "run": 0o700}
    groundwork.make_private_folders(SETTINGS, "run/sidecar.sock")


def test_the_database_is_made_once() -> None:
    assert groundwork.upgrade_database(SETTINGS) == "data/tollhouse.db, created"
    assert groundwork.upgrade_database(SETTINGS) == "data/tollhouse.db"


def test_a_folder_that_cannot_be_written_to_is_told_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "conf").write_text("a file")
    with pytest.raises(
        CommandError, match=r"conf/proxy.yaml cannot be made in .*: (File exists|Not a directory)"
    ) as no:
        groundwork.write_missing({tmp_path / "conf/proxy.yaml": "conf/proxy.yaml"})
    assert "may write to" in no.value.hint
