"""An engine that is frozen, killed or raises in a step: clients are told, and service is back by itself."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.fakes.waiting import until

STALL_S = 10.0
# The watch looks every second, and a busy machine takes its time.
NOTICED_AFTER_S = 15.0
BACK_S = 60.0
ROOT = Path(__file__).parents[2]
PLANT = Path(__file__).parent / "plant"
# The tokens that planted faults react to; see `plant/sitecustomize.py`.
CURSED = 66
SLOW = 67
# Ten seconds, as a slow step takes 20 ms.
LONG = {"model": "tiny", "prompt": [5, SLOW, 7], "max_tokens": 500, "ignore_eos": True, "stream": True}
SHORT = {"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 8, "temperature": 0}


@contextmanager
def stream(client: httpx2.Client, **asked: Any) -> Iterator[Iterator[str]]:
    """An open stream after its first text; gives its further lines."""
    with client.stream("POST", "/v1/completions", json=LONG | asked) as response:
        assert response.status_code == 200
        lines = response.iter_lines()
        next(line for line in lines if line.startswith("data: "))
        yield lines


def last_words(lines: Iterator[str]) -> dict[str, Any]:
    """The error event before the broken connection."""
    events: list[str] = []
    with pytest.raises(httpx2.RemoteProtocolError):
        events.extend(line for line in lines if line.startswith("data: "))
    return dict(json.loads(events[-1].removeprefix("data: "))["error"])


def check_it_is_back(served: Any, client: httpx2.Client, wanted: str, before: dict[str, Any]) -> None:
    """By itself, in a new process, with the same answer as before and nothing left over."""
    again = before["restarts"] + 1
    state = until(lambda: (now := served.state())["ready"] and now["restarts"] == again and now, BACK_S)
    assert state["engine_pid"] not in {0, before["engine_pid"]}
    assert not Path(f"/proc/{before['engine_pid']}").exists()
    assert answer(client) == wanted
    check_nothing_is_left(served)


def check_nothing_is_left(served: Any) -> None:
    state = until(lambda: not (now := served.state())["running"] and now, BACK_S)
    assert (state["waiting"], state["kv_used_tokens"]) == (0, 0)


def answer(client: httpx2.Client) -> str:
    response = client.post("/v1/completions", json=SHORT)
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["text"])


def check_it_refuses(client: httpx2.Client) -> None:
    response = client.post("/v1/completions", json=SHORT)
    assert response.status_code == 503
    assert 1 <= int(response.headers["retry-after"]) <= 60
    assert response.json()["error"]["code"] in {"model_loading", "upstream_unavailable"}


@pytest.fixture(scope="module")
def served(serve: Callable[..., Any]) -> Any:
    """One for all the stories; a start takes seconds."""
    environ = {"PYTHONPATH": f"{PLANT}:{ROOT}"}
    return serve(environ, engine={"threads": 1}, timeouts={"stall_s": STALL_S})


@pytest.fixture
def client(served: Any) -> Iterator[httpx2.Client]:
    """Of a sidecar that is well, so that a story that failed does not take the others along."""
    until(lambda: served.state()["ready"], BACK_S)
    with served.client() as client:
        yield client


def test_f3_a_frozen_engine_is_noticed_and_replaced(served: Any, client: httpx2.Client) -> None:
    """Health is a step that happened: the processes are there all the time."""
    wanted, before = answer(client), served.state()
    with stream(client) as lines, stream(client) as others:
        began = time.monotonic()
        os.kill(before["engine_pid"], signal.SIGSTOP)
        assert served.state()["ready"]
        until(lambda: (served.state()["heartbeat_age_s"] or STALL_S) >= 0.5)
        assert last_words(lines)["code"] == "upstream_unavailable"
        # The last sign of life came a step before it.
        assert STALL_S - 0.1 <= time.monotonic() - began < STALL_S + NOTICED_AFTER_S
        assert last_words(others)["code"] == "upstream_unavailable"
    state = served.state()
    assert not state["ready"]
    assert state["reason"] in {"stalled", "restarting"}
    check_it_refuses(client)
    check_it_is_back(served, client, wanted, before)
    assert [line["reason"] for line in served.events("engine_stalled")] == ["stalled"]
    assert [line["ending"] for line in served.events("request")].count("engine_lost") == 2


def test_f3_a_pause_that_is_shorter_than_the_patience_harms_nobody(served: Any, client: httpx2.Client) -> None:
    before = served.state()
    with stream(client, max_tokens=250) as lines:
        os.kill(before["engine_pid"], signal.SIGSTOP)
        time.sleep(STALL_S / 2)
        os.kill(before["engine_pid"], signal.SIGCONT)
        assert [line for line in lines if line][-1] == "data: [DONE]"
    assert served.state()["restarts"] == before["restarts"]


def test_f2_a_killed_engine_is_replaced_at_once(served: Any, client: httpx2.Client) -> None:
    wanted, before = answer(client), served.state()
    with stream(client) as lines:
        os.kill(before["engine_pid"], signal.SIGKILL)
        began = time.monotonic()
        assert last_words(lines)["code"] == "upstream_unavailable"
        assert time.monotonic() - began < STALL_S
    check_it_refuses(client)
    check_it_is_back(served, client, wanted, before)
    assert served.events("engine_ended")[-1]["exit_code"] == -signal.SIGKILL


def test_f4_an_exception_in_a_step_fails_only_the_culprit(served: Any, client: httpx2.Client) -> None:
    wanted, before = answer(client), served.state()
    with stream(client) as lines:
        response = client.post("/v1/completions", json=SHORT | {"prompt": [5, CURSED, 7]})
        assert response.status_code == 500
        assert "planted" not in response.text
        with client.stream("POST", "/v1/completions", json=LONG | {"prompt": [CURSED]}) as broken:
            assert last_words(broken.iter_lines())["type"] == "server_error"
        assert [line for line in lines if line][-1] == "data: [DONE]"
    assert answer(client) == wanted
    assert served.state()["restarts"] == before["restarts"]
    check_nothing_is_left(served)
    # Each was in a batch with the stream, and then failed alone.
    assert len(served.events("step_failed")) == 4
    assert len(served.events("sequence_failed")) == 2


def test_an_engine_in_which_every_step_fails_is_replaced(served: Any, client: httpx2.Client) -> None:
    wanted, before = answer(client), served.state()
    for _ in range(3):
        # Not 503, also for the last one: to try it again would be no use.
        assert client.post("/v1/completions", json=SHORT | {"prompt": [CURSED]}).status_code == 500
    check_it_is_back(served, client, wanted, before)
    assert len(served.events("engine_failed")) == 1
