"""`tollhouse policy schema` and `diff`: what is said of files alone."""

import json
from pathlib import Path

import pytest

from proxy.cli import root

POLICIES = Path(__file__).parents[4] / "policies"


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (POLICIES / "default.yaml").read_text()
    for name, content in (("a", text), ("b", text.replace("requests_per_minute: 10\n", "requests_per_minute: 20\n"))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "default.yaml").write_text(content)
    monkeypatch.chdir(tmp_path)


def test_the_schema_is_given_as_the_file_has_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert root.run(["policy", "schema"]) == 0
    assert capsys.readouterr().out == (POLICIES / "policy.schema.json").read_text()
    assert root.run(["policy", "schema", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "Tollhouse policy"


def test_equal_policies_end_with_0_and_different_ones_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert root.run(["policy", "diff", "a", "a"]) == 0
    assert capsys.readouterr().out == ""
    assert root.run(["policy", "diff", "a", "b"]) == 1
    assert capsys.readouterr().out == "free\trequests_per_minute\t10\t20\n"


def test_a_difference_for_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    assert root.run(["policy", "diff", "a", "b", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["changes"] == [{"tier": "free", "rule": "requests_per_minute", "old": 10, "new": 20}]
    assert found["old"] != found["new"]


def test_a_tier_that_goes_is_a_difference(capsys: pytest.CaptureFixture[str]) -> None:
    head = Path("b/default.yaml").read_text().partition("  # For a team's work.")[0]
    Path("b/default.yaml").write_text(head)
    assert root.run(["policy", "diff", "a", "b"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "pro\t(the tier)\tremoved\t" in lines
    assert root.run(["policy", "diff", "b", "a"]) == 1
    assert "pro\t(the tier)\t\tadded" in capsys.readouterr().out.splitlines()


def test_a_policy_with_mistakes_is_not_compared(capsys: pytest.CaptureFixture[str]) -> None:
    Path("b/default.yaml").write_text("version: 2\ntiers: {}\n")
    assert root.run(["policy", "diff", "a", "b"]) == 3
    assert "b/default.yaml:1:10: " in capsys.readouterr().err
