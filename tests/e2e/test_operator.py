"""What an operator meets: a wrong policy, the metrics page, an environment without torch."""

import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

ROOT = Path(__file__).parents[2]
PROMTOOL = shutil.which("promtool")
MISTAKES = """\
version: 1
tiers:
  free:
    requests_per_minute: no
    tokens_per_minute: -5
    concurrency: 2
    monthly_requests: 010
    monthly_tokens: unlimited
    max_output_tokens: 512
    default_output_tokens: 256
    models: []
    priorty: 0
    priority: 0
"""
POSITIONS = [(4, 26), (5, 24), (7, 23), (11, 13), (12, 5)]


def test_a_policy_with_five_mistakes_gives_five_messages_and_no_server(build_house: Callable[..., Any]) -> None:
    house = build_house()
    (house.folder / "policies/default.yaml").write_text(MISTAKES)
    problems = house.command("policy", "check", code=3)["problems"]
    assert [(problem["line"], problem["column"]) for problem in problems] == POSITIONS
    server = house.start("tollhouse", "serve")
    assert server.popen.wait(30) == 3
    said = server.log.read_text()
    for line, column in POSITIONS:
        assert f"policies/default.yaml:{line}:{column}: " in said


@pytest.mark.skipif(PROMTOOL is None, reason="promtool (Debian's prometheus) is not installed")
def test_both_metrics_pages_pass_promtool(build_house: Callable[..., Any], sidecars: Callable[[str], Any]) -> None:
    house = build_house(beside=sidecars("int8"))
    house.start_proxy()
    client = house.client(house.key("open"))
    client.completions.create(model="smollm2-135m-instruct", prompt="One, two,", max_tokens=4)
    for path in ("/metrics", "/metrics/sidecar/local"):
        page = httpx2.get(f"http://127.0.0.1:{house.admin_port}{path}")
        assert page.status_code == 200
        assert b"tollhouse_" in page.content
        checked = subprocess.run(
            [str(PROMTOOL), "check", "metrics"], input=page.content, capture_output=True, check=False
        )
        assert (checked.returncode, checked.stderr, checked.stdout) == (0, b"", b"")


def test_a_plain_install_imports_the_proxy_without_torch(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(
        ROOT,
        source,
        ignore=shutil.ignore_patterns(
            ".venv", ".git", "run", "data", "build", "__pycache__", ".hypothesis", "*.egg-info", ".*_cache"
        ),
    )
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv/bin/python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", source], check=True, timeout=280, cwd=tmp_path)
    code = (
        "import importlib.util, pkgutil, proxy\n"
        "for module in pkgutil.walk_packages(proxy.__path__, 'proxy.'):\n"
        "    if not module.name.endswith('__main__'):\n"
        "        importlib.import_module(module.name)\n"
        "print(importlib.util.find_spec('torch'))\n"
    )
    done = subprocess.run([python, "-c", code], check=False, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "None\n"), done.stderr
    assert sys.executable != str(python)
