"""Tokens of texts and back over the socket: answers, refusals, and which model's tokenizer it is."""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from sidecar.settings import Api
from tests.fakes.engine import READY, FakeEngine

Serve = Callable[..., Awaitable[Any]]


async def test_a_text_becomes_tokens_and_a_text_again(serve: Serve) -> None:
    desk = await serve()
    reply = await desk.ask("POST", "/tokenize", {"model": "org/m", "prompt": "Hi", "return_token_strs": True})
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    assert reply.json == {"count": 2, "max_model_len": 100, "tokens": [72, 105], "token_strs": ["<H>", "<i>"]}
    back = await desk.ask("POST", "/detokenize", {"model": "org/m", "tokens": reply.json["tokens"]})
    assert (back.status, back.json) == (200, {"prompt": "Hi"})
    assert desk.engine.opened.empty()


async def test_a_chat_is_tokenised_as_it_is_counted(serve: Serve) -> None:
    desk = await serve()
    body: dict[str, Any] = {"model": "org/m", "messages": [{"role": "user", "content": "Hi"}]}
    reply = await desk.ask("POST", "/tokenize", body)
    counted = await desk.ask("POST", "/internal/count", body)
    assert reply.json["count"] == counted.json["prompt_tokens"] == len("u:Hi.")
    body["messages"].append({"role": "assistant", "content": "Yes"})
    continued = await desk.ask("POST", "/tokenize", {**body, "continue_final_message": True})
    assert continued.json["count"] == len("u:Hi.a:Yes")


async def test_each_model_has_its_own_tokenizer_and_must_be_named_beside_another(serve: Serve) -> None:
    encoder = FakeEngine()
    encoder.info = msgspec.structs.replace(READY, max_context=50)
    desk = await serve(encoder=encoder)
    for model, context in (("org/m", 100), ("org/e", 50)):
        reply = await desk.ask("POST", "/tokenize", {"model": model, "prompt": "Hi"})
        assert reply.json["max_model_len"] == context
    for path, body in (("/tokenize", {"prompt": "Hi"}), ("/detokenize", {"tokens": [72]})):
        reply = await desk.ask("POST", path, body)
        assert (reply.status, reply.json["error"]["param"]) == (400, "model")
        reply = await desk.ask("POST", path, {**body, "model": "nobody"})
        assert (reply.status, reply.json["error"]["code"]) == (404, "model_not_found")


async def test_the_only_model_need_not_be_named(serve: Serve) -> None:
    desk = await serve()
    assert (await desk.ask("POST", "/tokenize", {"prompt": "Hi"})).json["count"] == 2
    assert (await desk.ask("POST", "/detokenize", {"tokens": [72], "model": None})).json == {"prompt": "H"}


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("/tokenize", {"prompt": "a" * 801}, "context_length_exceeded"),
        ("/detokenize", {"tokens": [0x110000]}, "invalid_value"),
        ("/detokenize", b"[]", None),
    ],
)
async def test_what_cannot_be_answered_is_refused(serve: Serve, path: str, body: Any, code: str | None) -> None:
    desk = await serve()
    reply = await desk.ask("POST", path, body)
    assert (reply.status, reply.json["error"]["code"]) == (400, code)


async def test_a_model_that_is_not_loaded_has_no_tokens_yet(serve: Serve) -> None:
    desk = await serve()
    desk.front.language = None
    reply = await desk.ask("POST", "/tokenize", {"prompt": "Hi"})
    assert (reply.status, reply.json["error"]["code"]) == (503, "model_loading")


async def test_fields_that_nobody_knows_are_named_where_they_may_pass(serve: Serve) -> None:
    desk = await serve(api=Api(unknown_fields="ignore"))
    reply = await desk.ask("POST", "/tokenize", {"prompt": "Hi", "truncate": True})
    assert (reply.status, reply.headers["x-tollhouse-ignored"]) == (200, "truncate")
    plain = await desk.ask("POST", "/tokenize", {"prompt": "Hi"})
    assert "x-tollhouse-ignored" not in plain.headers


@pytest.mark.parametrize("path", ["/v1/tokenize", "/v1/detokenize", "/tokenize/"])
async def test_there_is_one_path_for_each(serve: Serve, path: str) -> None:
    desk = await serve()
    assert (await desk.ask("POST", path, {"prompt": "Hi"})).status == 404
