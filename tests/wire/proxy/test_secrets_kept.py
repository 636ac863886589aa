"""Keys, prompts and answers are where they have to be, and nowhere else: not in the files, not in the log, not in an
answer to somebody's mistake.
"""

import asyncio
import base64
import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.sidecar import ABORT, DONE, FINISH, delta, usage_comment
from tests.wire.proxy.conftest import Build
from tests.wire.proxy.house import House, chat, request

CANARY = "canary4711"


def every_form(secret: bytes) -> set[bytes]:
    """How a secret may be written."""
    return {secret, secret.hex().encode(), base64.b64encode(secret).rstrip(b"="), base64.urlsafe_b64encode(secret)}


async def test_a3_no_file_of_the_database_has_a_key_or_the_root_secret(house: House, tmp_path: Path) -> None:
    keys = [await house.key(), await house.key("one")]
    for key in keys:
        assert (await (await house.ask(key)).answer()).status == 200
    await house.revoke(keys[1])
    await house.line(count=2)
    found = await asyncio.to_thread(lambda: {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()})
    root = found.pop("root.secret")
    assert len(root) == 32
    assert {"t.db", "t.db-wal"} <= set(found)
    written = b"".join(found.values())
    # What is public of a key is there, or the test would look at nothing.
    assert keys[0][6:16].encode() in written
    for key in keys:
        # The secret half, with its checksum and without, and any part of it worth guessing from.
        for form in (key[17:], key[17:49], key[17:33], key[33:49]):
            assert form.encode() not in written
    assert not [form for form in every_form(root) if form in written]


MISTAKES: list[Any] = [
    {"path": f"/v1/{CANARY}"},
    {"path": f"/v1/models/{CANARY}", "method": "GET"},
    {"path": f"/v1/chat/completions?key={CANARY}"},
    {"headers": {f"x-{CANARY}": CANARY, "cookie": CANARY, "user-agent": CANARY, "referer": CANARY}},
    {"headers": {"content-encoding": CANARY}},
    {"headers": {"expect": CANARY}},
    {"headers": {"traceparent": CANARY, "tracestate": CANARY}},
    {"headers": {"authorization": f"Bearer sk-th_{CANARY}"}},
    {"headers": {"authorization": f"Basic {CANARY}"}},
    {"body": CANARY.encode()},
    {"body": chat(model=CANARY)},
    {"body": chat(n=CANARY)},
    {"body": chat(max_tokens=CANARY)},
    {"body": chat(stream_options=CANARY, **{CANARY: CANARY})},
    {"body": chat(messages=[{"role": "user", "content": CANARY}])},
]


async def test_a4_nothing_of_a_client_s_is_in_the_log(house: House) -> None:
    key = await house.key()
    for number, mistake in enumerate(MISTAKES, start=1):
        asked = {"body": chat(stream=False), **mistake}
        wire = await house.ask(key, asked.pop("body"), **asked)
        answer = await wire.answer()
        await house.line(count=number)
        told = house.log.getvalue()
        assert CANARY not in told, mistake
        assert key[17:] not in told, mistake
        # And no answer has the key. A mistake's own words it may have: they are the client's.
        assert key[17:].encode() not in answer.body, mistake


async def test_a4_nothing_of_bytes_that_are_no_request_is_told_or_logged(house: House) -> None:
    for sent in (
        f"GET /v1/models HTTP/1.1\r\nauthorization: Bearer {CANARY}\r\nbad\x00header: {CANARY}\r\n\r\n",
        f"{CANARY} {CANARY} {CANARY}\r\nauthorization: Bearer {CANARY}\r\n\r\n",
        f"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: {CANARY}\r\n\r\n",
    ):
        wire = await house.connect()
        await wire.send(sent.encode())
        assert CANARY.encode() not in await wire.reader.read()
    assert CANARY not in house.log.getvalue()


@pytest.mark.parametrize(
    "script",
    [
        [delta(CANARY), ABORT],
        [delta(CANARY), b": tollhouse-usage " + CANARY.encode() + b"\n\n"],
        [delta(CANARY), usage_comment(1), FINISH + DONE],
        [b'data: {"error": {"message": "' + CANARY.encode() + b'"}}\n\n', ABORT],
        [CANARY.encode(), ABORT],
    ],
    ids=["broken off", "usage that is none", "whole", "the sidecar's error", "no events"],
)
async def test_a4_nothing_of_an_answer_is_in_the_log(house: House, script: list[Any]) -> None:
    house.sidecar.script = script
    wire = await house.ask(await house.key(), chat(messages=[{"role": "user", "content": CANARY}]))
    await wire.answer()
    await house.line()
    assert CANARY not in house.log.getvalue()


async def test_a4_a_fault_of_ours_is_logged_by_its_place_and_not_by_its_words(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        secret_of_ours = CANARY
        raise RuntimeError(secret_of_ours)

    async with build() as house:
        key = await house.key()
        monkeypatch.setattr("proxy.pipeline.read_call", broken)
        answer = await (await house.ask(key)).answer()
        assert answer.status == 500
        assert CANARY.encode() not in answer.body
        line = await house.line("request_failed")
        assert (line["exception"], line["frames"][-1].split(":")[-1]) == ("RuntimeError", "broken")
        assert CANARY not in house.log.getvalue()


def test_a4_the_process_makes_no_core_file_and_is_not_traced() -> None:
    asked = (
        "import ctypes, io\n"
        "from proxy.process import harden\n"
        "from sidecar.jsonlog import JsonLog\n"
        "harden(JsonLog(io.StringIO()))\n"
        "print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))\n"
    )
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"
    # PR_GET_DUMPABLE of a process that was not hardened.
    assert ctypes.CDLL(None).prctl(3, 0, 0, 0, 0) == 1


async def test_a4_the_environment_s_and_the_settings_words_are_not_told(house: House) -> None:
    """Neither the address of the database nor a path of this machine is any client's business."""
    for path in ("/v1/models", "/v1/none", "/metrics", "/healthz"):
        wire = await house.connect()
        await wire.send(request(None, method="GET", path=path))
        answer = await wire.answer()
        assert answer.status in {401, 404}
        assert os.fsencode(Path(house.settings.secret_file).parent) not in answer.body
        assert set(json.loads(answer.body)["error"]) == {"message", "type", "param", "code"}
