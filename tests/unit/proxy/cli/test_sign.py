"""`tollhouse sign`: headers for one request, for people and for curl, by a key that is on no command line."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from proxy.cli import root
from proxy.signature import read_signature
from proxy.signing import content_digest, make_secret, public_key

SECRET = make_secret("0123456789")
URL = "http://localhost:8000/v1/chat/completions?x=1"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOLLHOUSE_KEY", SECRET)
    (tmp_path / "body.json").write_bytes(b'{"model": "m"}\n')


def check(method: str, headers: dict[str, str], body: bytes) -> None:
    """As the server does."""
    told = {"host": "localhost:8000", **headers}
    signature = read_signature(method, "/v1/chat/completions?x=1", lambda name: (told[name],) if name in told else ())
    signature.check(body, [public_key(SECRET)])


def headers_of(lines: str) -> dict[str, str]:
    return {name: value for name, _, value in (line.partition(": ") for line in lines.splitlines())}


def test_the_headers_are_good_for_the_request(capsys: pytest.CaptureFixture[str]) -> None:
    assert root.run(["sign", URL, "--body", "body.json", "-H", "Idempotency-Key: order-7"]) == 0
    headers = headers_of(capsys.readouterr().out)
    check("POST", headers, b'{"model": "m"}\n')
    assert headers["content-type"] == "application/json"
    assert headers["authorization"] == "Bearer thp_0123456789"


def test_without_a_body_it_is_a_get(capsys: pytest.CaptureFixture[str]) -> None:
    assert root.run(["sign", URL, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["method"] == "GET"
    check("GET", told["headers"], b"")


def test_a_command_for_curl_sends_the_file_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert root.run(["sign", URL, "--body", "body.json", "--curl"]) == 0
    words = shlex.split(capsys.readouterr().out)
    assert words[:4] == ["curl", "-X", "POST", URL]
    assert words[-2:] == ["--data-binary", "@body.json"]
    headers = headers_of("\n".join(words[5:-2:2]))
    check("POST", headers, b'{"model": "m"}\n')
    assert SECRET not in words


def test_the_key_may_be_in_a_file(capsys: pytest.CaptureFixture[str], monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.delenv("TOLLHOUSE_KEY")
    assert root.run(["sign", URL]) == 2
    assert "TOLLHOUSE_KEY" in capsys.readouterr().err
    (tmp_path / "key").write_text(SECRET + "\n")
    assert root.run(["sign", URL, "--key-file", "key"]) == 0
    (tmp_path / "key").write_text("sk-th_nothing")
    assert root.run(["sign", URL, "--key-file", "key"]) == 2
    assert "sk-th_nothing" not in capsys.readouterr().err


def test_standard_input_is_a_body(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    class Standard:
        class buffer:  # noqa: N801  as sys.stdin has it
            @staticmethod
            def read() -> bytes:
                return b"abc"

    monkeypatch.setattr("sys.stdin", Standard)
    assert root.run(["sign", URL, "--body", "-"]) == 0
    assert headers_of(capsys.readouterr().out)["content-digest"] == content_digest(b"abc")
    assert root.run(["sign", URL, "--body", "-", "--curl"]) == 2


@pytest.mark.parametrize("header", ["nothing", ": x"])
def test_a_header_that_is_none_is_refused(header: str) -> None:
    assert root.run(["sign", URL, "-H", header]) == 2
