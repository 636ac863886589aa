"""A frozen engine behind the proxy: noticed by the default patience, told to the client, charged, and replaced."""

import os
import signal
import time
from typing import Any

import httpx2
import openai
import pytest

from tests.fakes.waiting import until

MODEL = "smollm2-135m-instruct"
NOTICED_S = 30.0
LONG: Any = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Tell me a very long story about a lighthouse."}],
    "temperature": 0,
    "max_tokens": 2000,
    "stream": True,
}


@pytest.fixture
def house(own_house: Any) -> Any:
    return own_house


def test_f3_a_frozen_engine_is_noticed_told_charged_and_replaced(house: Any) -> None:
    client = house.client(house.key("open"))
    engine = house.state()["engine_pid"]
    stream = client.chat.completions.create(**LONG)
    seen = sum(1 for _, _ in zip(range(6), stream, strict=False))
    os.kill(engine, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(openai.APIError) as told:
        list(stream)
    assert time.monotonic() - began < NOTICED_S
    assert told.value.code == "upstream_unavailable"
    with pytest.raises(openai.InternalServerError) as meanwhile:
        client.chat.completions.create(**LONG)
    assert meanwhile.value.status_code == 503
    assert int(meanwhile.value.response.headers["retry-after"]) >= 1
    request_id = stream.response.headers["x-request-id"]
    settled = until(lambda: (found := house.ledger()[request_id])["state"] == "settled" and found, 20)
    # The first chunk has no text, and a token or two may be without any yet.
    assert settled["completion_tokens"] >= seen - 1
    back = until(lambda: (now := house.state())["ready"] and now, 60)
    assert (back["restarts"], back["running"], back["waiting"], back["kv_used_tokens"]) == (1, 0, 0, 0)
    assert back["engine_pid"] != engine
    until(lambda: httpx2.get(f"http://127.0.0.1:{house.admin_port}/readyz").status_code == 200, 20)
    assert list(client.chat.completions.create(**LONG | {"max_tokens": 4}))
