"""Signed requests and idempotency keys against running processes and a real model, with a proxy that is killed."""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from typing import Any

import httpx2
import openai
import pytest

from proxy.signing import Signer

MODEL = "smollm2-135m-instruct"
QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY: Any = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 12}
BODY = json.dumps(GREEDY).encode()
# Not a port, which is another one after a restart.
HOST = "api.example.com"
PATH = "/v1/chat/completions"


@pytest.fixture(scope="module")
def house(build_house: Callable[..., Any], sidecars: Callable[[str], Any]) -> Any:
    tiers = {"signed": {"replay": "signed"}, "keeping": {"idempotency_bodies": True}}
    built = build_house(tiers, sidecars("int8"), public_authorities=[HOST])
    built.start_proxy()
    return built


@pytest.fixture(scope="module")
def secret(house: Any) -> str:
    house.command("accounts", "create", "signers")
    made = house.command("keys", "create", "--account", "signers", "--tier", "signed", "--name", "s", "--signed")
    return str(made["secret"])


def post(house: Any, headers: dict[str, str], body: bytes = BODY) -> httpx2.Response:
    return httpx2.post(f"http://127.0.0.1:{house.port}{PATH}", content=body, headers=headers, timeout=60)


def restart(house: Any) -> None:
    """As the power does it."""
    house.proxy.stop(signal.SIGKILL)
    house.start_proxy()


def test_r_the_stock_sdk_is_served_through_the_hook(house: Any, secret: str) -> None:
    signer = Signer(secret)

    def address(request: Any) -> None:
        """As a TLS terminator hands a request on."""
        request.headers["host"] = HOST

    http = openai.DefaultHttpxClient(event_hooks={"request": [address, signer.sign]})
    with openai.OpenAI(base_url=house.base_url, api_key=signer.bearer, http_client=http) as client:
        answer = client.chat.completions.create(**GREEDY)
        assert "Paris" in str(answer.choices[0].message.content)
        chunks = list(client.chat.completions.create(**GREEDY, stream=True))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == answer.choices[0].message.content


def test_r_the_command_signs_for_curl(house: Any, secret: str) -> None:
    (house.folder / "question.json").write_bytes(BODY)
    command = [house.programs / "tollhouse", "--json", "sign", f"https://{HOST}{PATH}", "--body", "question.json"]
    environment = {**os.environ, "TOLLHOUSE_KEY": secret}
    done = subprocess.run(command, cwd=house.folder, capture_output=True, check=True, env=environment)
    headers = json.loads(done.stdout)["headers"] | {"host": HOST}
    assert post(house, headers).status_code == 200
    assert post(house, headers).json()["error"]["code"] == "nonce_replayed"


def test_r_a_replay_is_refused_by_a_proxy_that_was_killed_in_between(house: Any, secret: str) -> None:
    headers = {"host": HOST, **Signer(secret).headers("POST", f"https://{HOST}{PATH}", BODY)}
    assert post(house, headers).status_code == 200
    before = len(house.ledger())
    restart(house)
    replayed = post(house, headers)
    assert (replayed.status_code, replayed.json()["error"]["code"]) == (401, "nonce_replayed")
    assert len(house.ledger()) == before


def test_an_answer_is_given_again_by_a_proxy_that_was_killed_in_between(house: Any) -> None:
    headers = {"authorization": f"Bearer {house.key('keeping')}", "idempotency-key": "order-7"}
    first = post(house, headers)
    assert first.status_code == 200
    before = len(house.ledger())
    restart(house)
    again = post(house, headers)
    assert (again.json(), again.headers["idempotent-replayed"]) == (first.json(), "true")
    assert len(house.ledger()) == before
    assert post(house, headers, BODY.replace(b"France", b"Spain")).status_code == 422
