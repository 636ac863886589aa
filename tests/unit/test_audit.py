"""`conf/requirements/audit` fails for whatever is not known to be well, by a stand-in for pip-audit."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "conf/requirements/audit"
WELL = {"name": "a", "version": "1", "vulns": []}
STAND_IN = """#!/bin/sh
echo "$@" >>"$ASKED"
while [ "$1" != --output ]; do shift; done
[ -z "$REPORT" ] || echo "$REPORT" >"$2"
exit "$CODE"
"""


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder with a pip-audit that does as its environment says."""
    (tmp_path / "pip-audit").write_text(STAND_IN)
    (tmp_path / "pip-audit").chmod(0o755)
    return tmp_path


def audit(programs: Path, packages: list[dict[str, Any]] | None, code: int = 0) -> subprocess.CompletedProcess[str]:
    environ = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "REPORT": "" if packages is None else json.dumps({"dependencies": packages}),
        "CODE": str(code),
        "ASKED": str(programs / "asked"),
    }
    return subprocess.run([SCRIPT], env=environ, capture_output=True, text=True, check=False)


def test_f16_every_lock_is_audited_with_its_hashes_and_torch_by_its_version(programs: Path) -> None:
    assert audit(programs, [WELL]).returncode == 0
    asked = (programs / "asked").read_text().splitlines()
    assert all("--strict" in line for line in asked)
    locks = {path.name for path in SCRIPT.parent.glob("*.txt")}
    audited = {word.rsplit("/", 1)[-1] for line in asked[:-1] for word in line.split() if word.endswith(".txt")}
    assert audited == locks
    assert all("--require-hashes" in line for line in asked[:-1])
    assert "--no-deps" in asked[-1]


@pytest.mark.parametrize(
    ("packages", "said"),
    [
        ([WELL, {"name": "b", "skip_reason": "Dependency not found"}], "could not be audited: b"),
        ([WELL, {"name": "b", "version": "1"}], "could not be audited: b"),
        ([], "could not be audited: there is no package"),
        ([WELL, {"name": "c", "version": "1", "vulns": [{"id": "PYSEC-1"}]}], "vulnerable: c"),
    ],
    ids=["skipped", "without a finding", "empty", "vulnerable"],
)
def test_f16_an_audit_that_says_nothing_fails(programs: Path, packages: list[dict[str, Any]], said: str) -> None:
    done = audit(programs, packages)
    assert done.returncode != 0
    assert said in done.stderr


def test_f16_an_audit_that_breaks_off_fails(programs: Path) -> None:
    assert audit(programs, [WELL], code=1).returncode != 0
    # It has written no report.
    assert audit(programs, None).returncode != 0


def test_f16_without_the_tool_there_is_no_audit(tmp_path: Path) -> None:
    for tool in ("sh", "dirname", "env"):
        (tmp_path / tool).symlink_to(f"/usr/bin/{tool}")
    done = subprocess.run([SCRIPT], env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install pip-audit" in done.stderr
