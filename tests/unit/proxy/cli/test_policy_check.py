"""`tollhouse policy check`: what the server would read, or all that is wrong with it."""

import json
from pathlib import Path

import pytest

from proxy.cli import root

POLICIES = Path(__file__).parents[4] / "policies"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/proxy.yaml").write_text("upstreams: [{name: local, socket: run/s.sock}]\n")
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies/default.yaml").write_text((POLICIES / "default.yaml").read_text())
    monkeypatch.chdir(tmp_path)


def test_a_valid_policy_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert root.run(["policy", "check"]) == 0
    out, err = capsys.readouterr()
    assert [line.split("\t")[0] for line in out.splitlines()] == ["free", "pro", "unlimited"]
    assert "valid" in err


def test_a_valid_policy_has_no_problems_for_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    assert root.run(["--json", "policy", "check"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["problems"] == []
    assert len(report["revision"]) == 12


def test_all_problems_are_given_with_their_places(capsys: pytest.CaptureFixture[str]) -> None:
    Path("policies/default.yaml").write_text("version: 1\ntiers: {free: 3}\nteirs: {}\n")
    assert root.run(["--json", "policy", "check"]) == 3
    out, err = capsys.readouterr()
    problems = json.loads(out)["problems"]
    assert [(problem["path"], problem["line"]) for problem in problems] == [
        ("policies/default.yaml", 2),
        ("policies/default.yaml", 3),
    ]
    assert err.splitlines()[0].startswith("policies/default.yaml:2:15: ")


def test_another_folder_can_be_checked_without_a_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path / "conf")
    assert root.run(["policy", "check", str(POLICIES)]) == 0
