"""Embeddings of a real model, from the sidecar's socket: those of plain Transformers, in every shape of OpenAI's."""

import base64
import http.client
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch
import yaml
from transformers import AutoModel, AutoTokenizer

from tests.e2e.house import BIN, MODEL, House, Process

EMBEDDER = "all-minilm-l6-v2"
TEXTS = ["A cat sits on the mat.", "A kitten rests on a rug.", "The central bank raised interest rates.", "Hi"]


class Sidecar:
    """A client of a sidecar's socket."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "run" / "sidecar.sock"

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("sidecar")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(60)
        connection.sock.connect(str(self.path))
        with connection.sock:
            connection.request(method, path, None if body is None else json.dumps(body))
            answer = connection.getresponse()
            return answer.status, answer.read()

    def get(self, path: str) -> Any:
        return json.loads(self.ask("GET", path)[1])

    def embed(self, **told: Any) -> Any:
        status, answer = self.ask("POST", "/v1/embeddings", {"model": EMBEDDER, **told})
        assert status == 200, answer
        return json.loads(answer)

    def log(self) -> list[dict[str, Any]]:
        lines = (self.folder / "log").read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    folder = tmp_path_factory.mktemp("embeddings")
    settings = {
        "model": {"id": MODEL, "source": MODEL},
        "embedding": {"id": EMBEDDER, "source": EMBEDDER},
        "socket": str(folder / "run" / "sidecar.sock"),
        "engine": {"threads": 1},
    }
    (folder / "sidecar.yaml").write_text(yaml.safe_dump(settings))
    with (folder / "log").open("wb") as log:
        popen = subprocess.Popen(
            [BIN / "tollhouse-sidecar", "serve", "--config", folder / "sidecar.yaml"], stderr=log, stdout=log
        )
    process = Process(popen, folder / "log")
    try:
        client = Sidecar(folder)
        while len([line for line in client.log() if line["event"] == "ready"]) < 2:
            assert popen.poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
        yield client
        assert process.stop() == 0
    finally:
        popen.kill()
        popen.wait()


def vectors(document: Any) -> np.ndarray[Any, Any]:
    return np.array([one["embedding"] for one in document["data"]], dtype="<f4")


@torch.inference_mode()
def plain(texts: list[str]) -> np.ndarray[Any, Any]:
    """Mean pooling by the formula of the model's card, each text alone."""
    (folder,) = Path("~/.cache/tollhouse/models").expanduser().glob(f"{EMBEDDER}-*[!k]")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    found = []
    for text in texts:
        states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        mean = states.mean(0)
        found.append((mean / mean.norm()).numpy())
    return np.stack(found)


def test_vectors_are_those_of_plain_transformers(sidecar: Sidecar) -> None:
    document = sidecar.embed(input=TEXTS)
    found = vectors(document)
    assert [one["index"] for one in document["data"]] == [0, 1, 2, 3]
    assert np.abs(found - plain(TEXTS)).max() < 1e-5
    # What is alike in meaning is close.
    assert found[0] @ found[1] > 0.5
    assert found[0] @ found[2] < 0.2
    assert document["usage"]["prompt_tokens"] == document["usage"]["total_tokens"] > 20
    alone = vectors(sidecar.embed(input=TEXTS[0]))
    assert np.abs(alone[0] - found[0]).max() < 1e-5


def test_every_shape_of_input_and_answer(sidecar: Sidecar) -> None:
    wanted = vectors(sidecar.embed(input=TEXTS[0]))[0]
    coded = sidecar.embed(input=TEXTS[0], encoding_format="base64")["data"][0]["embedding"]
    assert np.array_equal(np.frombuffer(base64.b64decode(coded), dtype="<f4"), wanted)
    short = vectors(sidecar.embed(input=TEXTS[0], dimensions=64))[0]
    assert short.shape == (64,)
    assert np.linalg.norm(short) == pytest.approx(1, abs=1e-5)
    assert short @ wanted[:64] / np.linalg.norm(wanted[:64]) == pytest.approx(1, abs=1e-5)
    (folder,) = Path("~/.cache/tollhouse/models").expanduser().glob(f"{EMBEDDER}-*[!k]")
    ids = AutoTokenizer.from_pretrained(folder)(TEXTS[0])["input_ids"]
    for shape in (ids, [ids]):
        assert np.abs(vectors(sidecar.embed(input=shape))[0] - wanted).max() < 1e-5


@pytest.mark.parametrize(
    ("told", "status", "code"),
    [
        ({"input": ""}, 400, "invalid_value"),
        ({"input": []}, 400, "empty_array"),
        ({"input": ["a", ""]}, 400, "invalid_value"),
        ({}, 400, "missing_required_parameter"),
        ({"input": "word " * 600}, 400, "context_length_exceeded"),
        ({"input": "a", "dimensions": 385}, 400, "invalid_value"),
        ({"input": "a", "dimensions": 0}, 400, "integer_below_min_value"),
        ({"input": "a", "encoding_format": "hex"}, 400, "invalid_value"),
        ({"input": [10**6]}, 400, "invalid_value"),
        ({"input": "a", "truncate": True}, 400, "unknown_parameter"),
        ({"input": ["a"] * 2049}, 400, "array_above_max_length"),
        ({"input": "a", "model": MODEL}, 400, "unsupported_endpoint"),
        ({"input": "a", "model": "nobody"}, 404, "model_not_found"),
    ],
)
def test_what_cannot_be_embedded_is_told(sidecar: Sidecar, told: dict[str, Any], status: int, code: str) -> None:
    found, answer = sidecar.ask("POST", "/v1/embeddings", {"model": EMBEDDER, **told})
    assert (found, json.loads(answer)["error"]["code"]) == (status, code), answer


def test_both_models_are_there(sidecar: Sidecar) -> None:
    assert [model["id"] for model in sidecar.get("/v1/models")["data"]] == [MODEL, EMBEDDER]
    state = sidecar.get("/internal/state")
    assert [model["capabilities"] for model in state["models"]] == [["chat", "completions"], ["embeddings"]]
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "temperature": 0}
    assert sidecar.ask("POST", "/v1/chat/completions", chat)[0] == 200
    _, wrong = sidecar.ask("POST", "/v1/chat/completions", {**chat, "model": EMBEDDER})
    assert json.loads(wrong)["error"]["code"] == "model_not_found"
    _, count = sidecar.ask("POST", "/internal/count", {"model": EMBEDDER, "input": TEXTS})
    assert json.loads(count)["prompt_tokens"] == sidecar.embed(input=TEXTS)["usage"]["prompt_tokens"]
    page = sidecar.ask("GET", "/metrics")[1]
    assert b'tollhouse_sidecar_embedding_requests_total{outcome="complete"}' in page


def test_a_lost_encoder_comes_back_and_the_chat_model_stays(sidecar: Sidecar) -> None:
    def ready(model: str) -> list[int]:
        return [line["engine_pid"] for line in sidecar.log() if line["event"] == "ready" and line["model"] == model]

    before, chats = ready(EMBEDDER), ready(MODEL)
    os.kill(before[-1], signal.SIGKILL)
    while ready(EMBEDDER) == before:
        time.sleep(0.1)
    assert len(sidecar.embed(input=TEXTS)["data"]) == 4
    assert ready(MODEL) == chats


def test_a_key_s_embeddings_are_those_of_the_sidecar_and_in_the_ledger(build_house: Callable[..., House]) -> None:
    house = build_house({"open": {}, "few": {"monthly_tokens": 30}}, embedding={"id": EMBEDDER, "source": EMBEDDER})
    sidecar = house.start_sidecar()
    for model in (MODEL, EMBEDDER):
        sidecar.wait_for("ready", model=model)
    house.start_proxy()
    answer = house.client(house.key("open")).embeddings.create(model=EMBEDDER, input=TEXTS)
    found = np.array([one.embedding for one in answer.data], dtype="<f4")
    assert np.abs(found - plain(TEXTS)).max() < 1e-5
    (row,) = house.ledger().values()
    assert (row["state"], row["endpoint"], row["completion_tokens"]) == ("settled", "/v1/embeddings", 0)
    assert row["prompt_tokens"] == answer.usage.prompt_tokens == answer.usage.total_tokens
    few = house.client(house.key("few"))
    assert few.embeddings.create(model=EMBEDDER, input="word " * 20).usage.total_tokens > 15
    with pytest.raises(openai.RateLimitError) as over:
        few.embeddings.create(model=EMBEDDER, input="word " * 20)
    assert over.value.code == "insufficient_quota"
    with pytest.raises(openai.BadRequestError) as too_long:
        few.embeddings.create(model=EMBEDDER, input="word " * 600)
    assert (too_long.value.code, too_long.value.param) == ("context_length_exceeded", "input")
