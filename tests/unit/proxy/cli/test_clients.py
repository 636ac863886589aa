"""The environment of `tollhouse test clients` is made once, of what is pinned, and anew when that changes."""

import io
import platform
import sys
from pathlib import Path

import pytest

from proxy.cli import clients
from proxy.cli.exits import CommandError
from proxy.cli.screen import Screen

BUILD = "+cpu" if platform.system() == "Linux" else ""


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The commands that were run; in their place a folder is made."""
    commands: list[tuple[str, ...]] = []

    def run(*command: str) -> None:
        commands.append(command)
        if command[:3] == (sys.executable, "-m", "venv"):
            Path(command[3]).mkdir()

    monkeypatch.setattr(clients, "_run", run)
    (tmp_path / clients.PINS).mkdir(parents=True)
    for name in clients.LOCKS:
        (tmp_path / clients.PINS / name).write_text(f"{name}==1\n")
    (tmp_path / "tollhouse").write_text("#!/bin/sh\nset -u\n\nTORCH=9.1.0\nCPU_INDEX=https://torch.example/cpu\n")
    return commands


@pytest.fixture
def screen() -> Screen:
    return Screen(io.StringIO(), io.StringIO())


def test_it_is_made_once(tmp_path: Path, asked: list[tuple[str, ...]], screen: Screen) -> None:
    python = clients.prepare(tmp_path, screen)
    assert python == tmp_path / ".venv-clients/bin/python"
    assert asked[0] == (sys.executable, "-m", "venv", str(tmp_path / ".venv-clients"))
    assert [command[0] for command in asked[1:]] == [str(python)] * 3
    assert [Path(command[-1]).name for command in asked[1:3]] == ["build.txt", "clients.txt"]
    assert all("--require-hashes" in command for command in asked[1:3])
    assert asked[3][-2:] == ("--no-deps", f"torch==9.1.0{BUILD}")
    asked.clear()
    assert clients.prepare(tmp_path, screen) == python
    assert asked == []


@pytest.mark.parametrize("what", ["pins", "folder", "torch", "unfinished"])
def test_it_is_made_anew(tmp_path: Path, asked: list[tuple[str, ...]], screen: Screen, what: str) -> None:
    clients.prepare(tmp_path, screen)
    (tmp_path / ".venv-clients/left-over").touch()
    asked.clear()
    root = tmp_path
    if what == "pins":
        (root / clients.PINS / "clients.txt").write_text("other==1\n")
    elif what == "torch":
        (root / "tollhouse").write_text("TORCH=9.2.0\n")
    elif what == "folder":
        root = tmp_path.rename(tmp_path.with_name("moved"))
    else:
        (root / ".venv-clients/tollhouse.stamp").unlink()
    clients.prepare(root, screen)
    assert len(asked) == 4
    assert not (root / ".venv-clients/left-over").exists()


def test_torch_comes_from_its_own_index_where_the_configured_one_has_no_cpu_build(
    tmp_path: Path, asked: list[tuple[str, ...]], screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = clients._run

    def refuse(*command: str) -> None:
        run(*command)
        if command[-1].startswith("torch"):
            raise CommandError("no such build")

    monkeypatch.setattr(clients, "_run", refuse)
    clients.prepare(tmp_path, screen)
    first, second = asked[-2:]
    assert second[: len(first)] == first
    assert second[len(first) :][:2] == ("--extra-index-url", "https://torch.example/cpu")


def test_a_failed_installation_is_told_in_its_own_words() -> None:
    with pytest.raises(CommandError, match="no such package") as failed:
        clients._run(sys.executable, "-c", "import sys; sys.exit('no such package')")
    assert "index" in failed.value.hint
