"""Clients that leave and processes that are killed: rows are freed, and what was produced is what is charged."""

import os
import signal
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from sidecar.wire.slots import SlotReader
from tests.fakes.waiting import until

MODEL = "smollm2-135m-instruct"
LONG: Any = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Tell me a very long story about a lighthouse."}],
    "temperature": 0,
    "max_tokens": 400,
    "stream": True,
    "extra_body": {"ignore_eos": True},
}


@pytest.fixture
def house(own_house: Any) -> Any:
    return own_house


def until_the_proxy_is_ready(house: Any) -> None:
    until(lambda: httpx2.get(f"http://127.0.0.1:{house.admin_port}/readyz").status_code == 200)


def produced(house: Any, request_id: str, *, died: bool = False) -> int:
    """What the engine says it has produced. One that was killed had no time to close its records."""
    with SlotReader(house.folder / "run/sidecar.slots") as reader:
        usage = reader.usage(request_id)
    assert usage is not None
    assert usage.running == died
    return usage.completion_tokens


def open_stream(house: Any, key: str, chunks: int = 5, **asked: Any) -> tuple[Any, str, int]:
    """A stream after some chunks of text, its request id, and how many chunks were read."""
    stream = house.client(key).chat.completions.create(**LONG | asked)
    for seen, _ in enumerate(stream, start=1):
        if seen > chunks:
            break
    return stream, stream.response.headers["x-request-id"], chunks


def check_books(house: Any) -> None:
    """The conservation laws, on the database at rest."""
    report = house.command("doctor", "--only", "ledger")
    assert [check["status"] for check in report["checks"]] == ["ok"], report


def test_a_client_that_leaves_frees_its_row_and_pays_for_what_was_produced(house: Any) -> None:
    key = house.key("open")
    stream, request_id, seen = open_stream(house, key)
    steps = house.state()["steps"]
    stream.close()
    until(lambda: house.state()["running"] == 0)
    row = until(lambda: (found := house.ledger()[request_id])["state"] == "settled" and found)
    assert row["reason"] == "client_gone"
    assert row["completion_tokens"] == produced(house, request_id)
    # One token a step: it was let go long before its end, which takes this machine ten seconds and more.
    assert seen <= row["completion_tokens"] < LONG["max_tokens"] / 2
    assert house.state()["steps"] - steps < LONG["max_tokens"] / 2
    house.proxy.stop()
    check_books(house)


def test_f1_a_killed_proxy_loses_no_row(house: Any) -> None:
    key = house.key("open")
    whole = house.client(key).chat.completions.create(**{**LONG, "stream": False, "max_tokens": 8})
    _, request_id, seen = open_stream(house, key)
    assert house.ledger()[request_id]["state"] == "reserved"
    os.kill(house.proxy.popen.pid, signal.SIGKILL)
    house.proxy.popen.wait()
    until(lambda: house.state()["running"] == 0)
    house.start_proxy()
    found = house.ledger()
    assert len(found) == 2
    assert found[whole._request_id]["state"] == "settled"
    assert found[whole._request_id]["completion_tokens"] == whole.usage.completion_tokens
    assert found[request_id]["state"] == "settled"
    assert found[request_id]["completion_tokens"] == produced(house, request_id) >= seen
    house.proxy.stop()
    check_books(house)


def test_f2_a_killed_sidecar_ends_streams_with_an_error_and_charges_what_was_produced(house: Any) -> None:
    key = house.key("open")
    stream, request_id, _ = open_stream(house, key)
    engine = house.state()["engine_pid"]
    os.kill(house.sidecar.popen.pid, signal.SIGKILL)
    with pytest.raises(openai.APIError):
        list(stream)
    until(lambda: not Path(f"/proc/{engine}").exists())
    row = until(lambda: (found := house.ledger()[request_id])["state"] == "settled" and found)
    assert row["reason"] == "upstream_failed"
    assert row["completion_tokens"] == produced(house, request_id, died=True)
    with pytest.raises(openai.InternalServerError) as unavailable:
        house.client(key).chat.completions.create(**LONG)
    assert unavailable.value.code == "upstream_unavailable"
    assert unavailable.value.response.headers["retry-after"] == "1"
    house.sidecar.popen.wait()
    house.start_sidecar()
    until_the_proxy_is_ready(house)
    list(house.client(key).chat.completions.create(**{**LONG, "max_tokens": 4}))


def test_a_killed_engine_comes_back(house: Any) -> None:
    key = house.key("open")
    stream, request_id, _ = open_stream(house, key)
    os.kill(house.state()["engine_pid"], signal.SIGKILL)
    with pytest.raises(openai.APIError):
        list(stream)
    row = until(lambda: (found := house.ledger()[request_id])["state"] == "settled" and found)
    until(lambda: house.state()["ready"], 60)
    assert row["completion_tokens"] == produced(house, request_id)
    assert house.state()["restarts"] == 1
    until_the_proxy_is_ready(house)
    list(house.client(key).chat.completions.create(**{**LONG, "max_tokens": 4}))


def test_f11_a_terminated_proxy_finishes_its_streams_first(house: Any) -> None:
    stream, request_id, _ = open_stream(house, house.key("open"), max_tokens=150)
    house.proxy.popen.send_signal(signal.SIGTERM)
    finishes = [chunk.choices[0].finish_reason for chunk in stream if chunk.choices]
    assert finishes[-1] in {"stop", "length"}
    assert house.proxy.popen.wait(40) == 0
    assert house.ledger()[request_id]["state"] == "settled"
    check_books(house)
