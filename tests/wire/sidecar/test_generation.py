"""Chats and completions over the socket: streams and whole answers, their ends, and what a proxy is told."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from sidecar.settings import Api, Timeouts
from sidecar.wire.errors import unavailable
from sidecar.wire.frames import Finish, Submit
from tests.fakes.engine import FakeEngine, LetterTokenizer

Serve = Callable[..., Awaitable[Any]]
CHAT: dict[str, Any] = {"model": "org/m", "messages": [{"role": "user", "content": "Hi"}]}
STREAM: dict[str, Any] = {**CHAT, "stream": True}
TEXT: dict[str, Any] = {"model": "org/m", "prompt": "Once"}
PROXY = {"x_tollhouse_request_id": "req_proxy"}


def echo(submit: Submit) -> str:
    return f"{submit.index}:ok"


def documents(frames: list[str]) -> list[dict[str, Any]]:
    return [json.loads(frame.removeprefix("data: ")) for frame in frames if frame.startswith("data: {")]


async def test_a_chat_is_answered_whole(serve: Serve) -> None:
    desk = await serve(FakeEngine(echo))
    reply = await desk.ask("POST", "/v1/chat/completions", CHAT)
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    assert reply.json["choices"][0]["message"]["content"] == "0:ok"
    assert reply.json["choices"][0]["finish_reason"] == "stop"
    # "u:Hi." is the prompt; four letters and the end of sequence are the answer.
    assert (reply.json["usage"]["prompt_tokens"], reply.json["usage"]["completion_tokens"]) == (5, 5)
    assert reply.headers["x-tollhouse-prompt-tokens"] == "5"
    assert reply.json["id"] == f"chatcmpl-{reply.headers['x-request-id'].removeprefix('req_')}"
    assert reply.json["system_fingerprint"] == "fp_1"


async def test_a_chat_is_streamed_frame_by_frame_to_its_done(serve: Serve) -> None:
    desk = await serve(FakeEngine(echo))
    reply = await desk.ask("POST", "/v1/chat/completions", STREAM)
    assert (reply.status, reply.headers["content-type"], reply.clean) == (200, "text/event-stream", True)
    assert reply.headers["cache-control"] == "no-cache"
    assert reply.headers["x-tollhouse-prompt-tokens"] == "5"
    assert reply.headers["x-request-id"].startswith("req_")
    assert reply.frames[-1] == "data: [DONE]"
    chunks = documents(reply.frames)
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "0:ok"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert b"tollhouse" not in reply.body


async def test_completions_are_numbered_by_prompt_then_choice(serve: Serve) -> None:
    desk = await serve(FakeEngine(echo))
    reply = await desk.ask("POST", "/v1/completions", {**TEXT, "prompt": ["a", [66, 67]], "n": 2})
    assert [(one["index"], one["text"]) for one in reply.json["choices"]] == [(n, f"{n}:ok") for n in range(4)]
    assert reply.json["usage"]["prompt_tokens"] == 3


async def test_the_head_is_here_before_the_first_token(serve: Serve) -> None:
    desk = await serve()
    connection = await desk.connect()
    await connection.ask("POST", "/v1/chat/completions", json.dumps(STREAM).encode(), **PROXY)
    status, headers = await connection.head()
    assert (status, headers["x-tollhouse-prompt-tokens"], headers["x-request-id"]) == (200, "5", "req_proxy")
    sequences = await desk.engine.opened.get()
    sequences.give_all("x")
    assert b'"role":"assistant"' in await connection.chunk()


async def test_a_proxy_gets_the_usage_before_the_finish_and_a_client_does_not(serve: Serve) -> None:
    desk = await serve(FakeEngine(echo))
    reply = await desk.ask("POST", "/v1/chat/completions", {**STREAM, "n": 2}, **PROXY)
    (at,) = [at for at, frame in enumerate(reply.frames) if frame.startswith(": tollhouse-usage")]
    assert json.loads(reply.frames[at].removeprefix(": tollhouse-usage ")) == {
        "prompt_tokens": 5,
        "completion_tokens": 10,
        "cached_tokens": 0,
        "finish_reason": "stop",
        "reasoning_tokens": 0,
    }
    assert [chunk["choices"][0]["finish_reason"] for chunk in documents(reply.frames[at:])] == ["stop", "stop"]
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in documents(reply.frames[:at]))


async def test_silence_is_filled_with_comments(serve: Serve) -> None:
    desk = await serve(timeouts=Timeouts(keep_alive_comment_s=0.01))
    connection = await desk.connect()
    await connection.ask("POST", "/v1/chat/completions", json.dumps(STREAM).encode())
    await connection.head()
    assert [await connection.chunk() for _ in range(2)] == [b": keep-alive\n\n"] * 2


async def test_a_stop_string_ends_the_row_and_only_its_tokens_count(serve: Serve) -> None:
    desk = await serve()
    connection = await desk.connect()
    await connection.ask("POST", "/v1/chat/completions", json.dumps({**CHAT, "stop": "END"}).encode())
    sequences = await desk.engine.opened.get()
    sequences.give("aE", 2)
    sequences.give("NDxyz", 7)
    reply = await connection.reply()
    assert reply.json["choices"][0]["message"]["content"] == "a"
    assert (reply.json["choices"][0]["finish_reason"], reply.json["usage"]["completion_tokens"]) == ("stop", 4)
    assert sequences.cancels == [(0, 4)]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_string_before_enough_tokens_is_text(serve: Serve, stream: bool) -> None:
    desk = await serve(FakeEngine(lambda _: "aENDbENDc"))
    reply = await desk.ask("POST", "/v1/completions", {**TEXT, "stop": "END", "min_tokens": 4, "stream": stream})
    choices = [one["choices"][0] for one in (documents(reply.frames) if stream else [reply.json])]
    assert ("".join(one["text"] for one in choices), choices[-1]["finish_reason"]) == ("aENDb", "stop")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_string_is_part_of_the_text_where_that_is_wanted(serve: Serve, stream: bool) -> None:
    desk = await serve(FakeEngine(lambda _: "aENDb"))
    body = {**TEXT, "stop": "END", "include_stop_str_in_output": True, "stream": stream}
    reply = await desk.ask("POST", "/v1/completions", body)
    choices = [one["choices"][0] for one in (documents(reply.frames) if stream else [reply.json])]
    assert ("".join(one["text"] for one in choices), choices[-1]["finish_reason"]) == ("aEND", "stop")


@pytest.mark.parametrize(("fields", "text"), [({}, "ab"), ({"skip_special_tokens": False}, "a\0b")])
async def test_special_tokens_are_text_where_they_are_not_to_be_skipped(
    serve: Serve, fields: dict[str, Any], text: str
) -> None:
    desk = await serve(FakeEngine(lambda _: "a\0b"))
    body = {**CHAT, "logprobs": True, **fields}
    for stream in (False, True):
        reply = await desk.ask("POST", "/v1/chat/completions", {**body, "stream": stream})
        choices = [one["choices"][0] for one in (documents(reply.frames) if stream else [reply.json])]
        assert "".join(one["delta" if stream else "message"].get("content", "") for one in choices) == text
        told = [each for one in choices if one["logprobs"] for each in one["logprobs"]["content"]]
        # The end of sequence that ended it stays without text.
        assert b"".join(bytes(each["bytes"]) for each in told).decode() == text


@pytest.mark.parametrize("body", [CHAT, STREAM])
async def test_a_client_that_leaves_frees_its_rows(serve: Serve, body: dict[str, Any]) -> None:
    desk = await serve()
    connection = await desk.connect()
    await connection.ask("POST", "/v1/chat/completions", json.dumps(body).encode())
    sequences = await desk.engine.opened.get()
    sequences.give("a", 1)
    if body.get("stream"):
        await connection.head()
        await connection.chunk()
    connection.leave()
    async with asyncio.timeout(30):
        await sequences.left.wait()
        await desk.front.landed()
    assert [event["ending"] for event in desk.events() if event["event"] == "request"] == ["client_gone"]


async def test_an_engine_lost_in_a_stream_is_an_error_event_and_no_proper_end(serve: Serve) -> None:
    desk = await serve()
    connection = await desk.connect()
    await connection.ask("POST", "/v1/chat/completions", json.dumps(STREAM).encode())
    sequences = await desk.engine.opened.get()
    sequences.give("a", 1)
    sequences.lose()
    reply = await connection.reply()
    assert (reply.status, reply.clean) == (200, False)
    assert documents(reply.frames)[-1]["error"]["code"] == "upstream_unavailable"
    assert b"[DONE]" not in reply.body


async def test_an_engine_lost_in_a_whole_answer_is_an_error_for_a_client(serve: Serve) -> None:
    desk = await serve()
    connection = await desk.connect()
    await connection.ask("POST", "/v1/chat/completions", json.dumps(CHAT).encode())
    (await desk.engine.opened.get()).lose()
    reply = await connection.reply()
    assert (reply.status, reply.json["error"]["code"]) == (503, "upstream_unavailable")


async def test_an_engine_lost_in_a_whole_answer_breaks_a_proxy_s_connection_off(serve: Serve) -> None:
    desk = await serve()
    connection = await desk.connect()
    await connection.ask("POST", "/v1/chat/completions", json.dumps(CHAT).encode(), **PROXY)
    (await desk.engine.opened.get()).lose()
    reply = await connection.reply()
    assert (reply.status, reply.body, reply.clean) == (0, b"", False)


async def test_a_sequence_that_fails_ends_its_stream_with_an_error(serve: Serve) -> None:
    desk = await serve()
    connection = await desk.connect()
    await connection.ask("POST", "/v1/chat/completions", json.dumps(STREAM).encode())
    (await desk.engine.opened.get()).give("a", 1, Finish.ERROR)
    reply = await connection.reply()
    assert not reply.clean
    assert documents(reply.frames)[-1]["error"]["type"] == "server_error"


async def test_tokens_are_timed_when_the_engine_gives_them_whoever_is_slow_to_take_them(serve: Serve) -> None:
    desk = await serve()
    connection = await desk.connect()
    await connection.ask("POST", "/v1/chat/completions", json.dumps(STREAM).encode())
    sequences = await desk.engine.opened.get()
    sequences.flows.clear()
    sequences.give("a", 1)
    sequences.give("bc", 3)
    lines = (await desk.ask("GET", "/metrics")).body.decode().splitlines()
    assert "tollhouse_sidecar_time_to_first_token_seconds_count 1.0" in lines
    assert "tollhouse_sidecar_inter_token_latency_seconds_count 2.0" in lines
    assert "tollhouse_sidecar_generation_tokens_total 0.0" in lines
    sequences.flows.set()
    sequences.give("", 4, Finish.STOP)
    assert (await connection.reply()).clean


@pytest.mark.parametrize(
    ("finish", "reason"),
    [(Finish.DEADLINE, "deadline"), (Finish.CANCELLED, "cancelled"), (Finish.ERROR, "engine_error")],
)
async def test_an_answer_that_is_cut_short_is_counted_by_why(serve: Serve, finish: Finish, reason: str) -> None:
    desk = await serve()
    connection = await desk.connect()
    await connection.ask("POST", "/v1/chat/completions", json.dumps(STREAM).encode())
    (await desk.engine.opened.get()).give("a", 1, finish)
    await connection.reply()
    assert [event["ending"] for event in desk.events() if event["event"] == "request"] == [reason]
    lines = (await desk.ask("GET", "/metrics")).body.decode().splitlines()
    aborts = [
        line for line in lines if line.startswith("tollhouse_sidecar_aborts_total{") and not line.endswith(" 0.0")
    ]
    assert aborts == [f'tollhouse_sidecar_aborts_total{{reason="{reason}"}} 1.0']


async def test_nothing_is_opened_for_a_refused_request(serve: Serve) -> None:
    desk = await serve()
    for path, body, param in [
        ("/v1/chat/completions", {**STREAM, "temperature": 3}, "temperature"),
        ("/v1/chat/completions", {**STREAM, "messages": [{"role": "user", "content": "x" * 98}]}, "messages"),
        ("/v1/completions", {**TEXT, "max_tokens": 97}, "prompt"),
        ("/v1/chat/completions", {**CHAT, "model": "gpt-9"}, "model"),
    ]:
        reply = await desk.ask("POST", path, body)
        assert reply.status in {400, 404}
        assert reply.headers["content-type"] == "application/json"
        assert reply.json["error"]["param"] == param
        assert reply.headers["x-request-id"].startswith("req_")
    assert desk.engine.opened.empty()


async def test_f15_a_full_queue_is_told_with_the_time_to_wait(serve: Serve) -> None:
    engine = FakeEngine()
    engine.refusal = unavailable("Full.", code="server_is_overloaded", retry_after_s=3.2)
    reply = await (await serve(engine)).ask("POST", "/v1/chat/completions", STREAM)
    assert (reply.status, reply.json["error"]["code"]) == (503, "server_is_overloaded")
    assert (reply.headers["retry-after"], reply.headers["x-should-retry"]) == ("4", "true")


@pytest.mark.parametrize(
    ("reason", "code"),
    [("loading", "model_loading"), ("draining", "shutting_down"), ("restarting", "upstream_unavailable")],
)
async def test_an_engine_that_is_not_ready_says_why(serve: Serve, reason: str, code: str) -> None:
    engine = FakeEngine()
    engine.ready, engine.reason = False, reason
    desk = await serve(engine)
    for path in ("/v1/chat/completions", "/internal/count"):
        reply = await desk.ask("POST", path, CHAT)
        assert (reply.status, reply.json["error"]["code"]) == (503, code)
        assert int(reply.headers["retry-after"]) >= 1


async def test_while_the_tokenizer_loads_so_does_the_model(serve: Serve) -> None:
    desk = await serve()
    desk.front.language = None
    reply = await desk.ask("POST", "/v1/chat/completions", CHAT)
    assert reply.json["error"]["code"] == "model_loading"


async def test_the_reservation_is_a_ceiling(serve: Serve) -> None:
    desk = await serve(FakeEngine(echo))
    headers = {**PROXY, "x_tollhouse_max_total_tokens": "12", "x_tollhouse_max_output_tokens": "9"}
    await desk.ask("POST", "/v1/chat/completions", CHAT, **headers)
    (submit,) = (await desk.engine.opened.get()).submits
    assert submit.max_new_tokens == 7
    refused = await desk.ask("POST", "/v1/chat/completions", CHAT, **PROXY, x_tollhouse_max_total_tokens="5")
    assert (refused.status, refused.json["error"]["code"]) == (400, "reservation_exceeded")


async def test_ignored_fields_are_named_in_the_head_without_their_odd_characters(serve: Serve) -> None:
    desk = await serve(FakeEngine(echo), api=Api(unknown_fields="ignore"))
    reply = await desk.ask("POST", "/v1/chat/completions", {**CHAT, "plain": 1, "a\r\nb,c": 2})
    assert reply.headers["x-tollhouse-ignored"] == "plain, a??b?c"


async def test_a_counted_body_is_not_tokenised_again(serve: Serve) -> None:
    desk = await serve(FakeEngine(echo))
    counted = await desk.ask("POST", "/internal/count", CHAT)
    assert counted.json == {"prompt_tokens": 5, "max_context": 100}
    assert (await desk.ask("POST", "/v1/chat/completions", CHAT)).status == 200
    tokenizer = desk.front.language.tokenizer
    assert isinstance(tokenizer, LetterTokenizer)
    assert tokenizer.encoded == 1


async def test_what_reaches_the_template_is_counted_as_it_is_run(serve: Serve) -> None:
    desk = await serve(FakeEngine(echo))
    opened = {"messages": [{"role": "assistant", "content": "One"}], "continue_final_message": True}
    for fields, prompt in (({"chat_template_kwargs": {"thinking": 1}}, "thinking=1.u:Hi."), (opened, "a:One")):
        body = {**CHAT, **fields}
        counted = await desk.ask("POST", "/internal/count", body)
        assert counted.json["prompt_tokens"] == len(prompt)
        for stream in (False, True):
            reply = await desk.ask("POST", "/v1/chat/completions", {**body, "stream": stream})
            assert (reply.status, reply.headers["x-tollhouse-prompt-tokens"]) == (200, str(len(prompt)))
            (submit,) = (await desk.engine.opened.get()).submits
            assert "".join(map(chr, submit.prompt_ids)) == prompt


async def test_what_the_settings_do_not_allow_is_refused_when_it_is_counted_too(serve: Serve) -> None:
    desk = await serve(api=Api(chat_template_kwargs=()))
    for path in ("/internal/count", "/v1/chat/completions"):
        reply = await desk.ask("POST", path, {**CHAT, "chat_template_kwargs": {"thinking": True}})
        assert (reply.status, reply.json["error"]["param"]) == (400, "chat_template_kwargs.thinking")


async def test_a4_one_line_is_logged_for_each_request_with_no_word_of_it(serve: Serve) -> None:
    desk = await serve(FakeEngine(echo))
    await desk.ask("POST", "/v1/chat/completions", {**CHAT, "messages": [{"role": "user", "content": "secret words"}]})
    (line,) = desk.events()
    assert (line["event"], line["ending"], line["finish_reason"]) == ("request", "complete", "stop")
    assert (line["prompt_tokens"], line["completion_tokens"]) == (15, 5)
    assert "secret" not in desk.log.getvalue()


async def test_a_chat_s_log_probabilities_are_the_same_streamed_and_not(serve: Serve) -> None:
    desk = await serve(FakeEngine(lambda _: "hé"))
    wanted = {**CHAT, "logprobs": True, "top_logprobs": 2}
    whole = (await desk.ask("POST", "/v1/chat/completions", wanted)).json["choices"][0]["logprobs"]
    chunks = documents((await desk.ask("POST", "/v1/chat/completions", {**wanted, "stream": True})).frames)
    streamed = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert [told for one in streamed if one for told in one["content"]] == whole["content"]
    assert whole["content"][1] == {
        "token": "é",
        "logprob": -2.0,
        "bytes": [0xC3, 0xA9],
        "top_logprobs": [
            {"token": "ê", "logprob": -1.0, "bytes": [0xC3, 0xAA]},
            {"token": "ë", "logprob": -2.0, "bytes": [0xC3, 0xAB]},
        ],
    }
    # The end of sequence has no entry in a chat.
    assert len(whole["content"]) == 2
    submits = [(await desk.engine.opened.get()).submits[0] for _ in range(2)]
    assert {(submit.logprobs, submit.prompt_logprobs) for submit in submits} == {(2, None)}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_is_scored_without_an_answer(serve: Serve, stream: bool) -> None:
    """What an evaluation harness sends: token ids, the prompt echoed with its log-probabilities, nothing produced."""
    desk = await serve(FakeEngine(echo))
    body = {"model": "org/m", "prompt": [[97, 98, 99], [100]], "echo": True, "max_tokens": 0, "logprobs": 1}
    reply = await desk.ask("POST", "/v1/completions", {**body, "stream": stream})
    choices = (
        [one for document in documents(reply.frames) for one in document["choices"]]
        if stream
        else reply.json["choices"]
    )
    told = {one["index"]: (one["text"], one["logprobs"]) for one in choices if one["text"]}
    assert told == {
        0: (
            "abc",
            {
                "tokens": ["a", "b", "c"],
                "token_logprobs": [None, -1.0, -2.0],
                "top_logprobs": [None, {"c": -1.0, "b": -1.0}, {"d": -1.0, "c": -2.0}],
                "text_offset": [0, 1, 2],
            },
        ),
        1: ("d", {"tokens": ["d"], "token_logprobs": [None], "top_logprobs": [None], "text_offset": [0]}),
    }
    assert [one["finish_reason"] for one in choices if one["finish_reason"]] == ["length", "length"]
    if not stream:
        usage = reply.json["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (4, 0, 4)


async def test_an_echoed_answer_goes_on_with_its_offsets_to_the_end_of_sequence(serve: Serve) -> None:
    desk = await serve(FakeEngine(lambda _: "xy"))
    body = {**TEXT, "prompt": "abc", "echo": True, "logprobs": 0}
    (choice,) = (await desk.ask("POST", "/v1/completions", body)).json["choices"]
    assert choice["text"] == "abcxy"
    assert choice["logprobs"]["tokens"] == ["a", "b", "c", "x", "y", "\x00"]
    assert choice["logprobs"]["text_offset"] == [0, 1, 2, 3, 4, 5]
    assert choice["logprobs"]["token_logprobs"] == [None, -1.0, -2.0, -1.0, -2.0, -3.0]
    (silent,) = (await desk.ask("POST", "/v1/completions", {**body, "echo": False})).json["choices"]
    # Offsets count from the start of the prompt, also where it is not given back.
    assert (silent["text"], silent["logprobs"]["text_offset"]) == ("xy", [3, 4, 5])


async def test_many_log_probabilities_do_not_change_the_stream(serve: Serve) -> None:
    desk = await serve(FakeEngine(lambda _: "xy"))
    body = {**TEXT, "prompt": "p" * 60, "echo": True, "logprobs": 3, "stream": True}
    chunks = documents((await desk.ask("POST", "/v1/completions", body)).frames)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "p" * 60 + "xy"
    told = [one for chunk in chunks if (one := chunk["choices"][0]["logprobs"])]
    assert [offset for one in told for offset in one["text_offset"]] == list(range(63))


async def test_the_best_of_several_is_given_and_all_are_paid_for(serve: Serve) -> None:
    # Longer answers are less likely here, token by token.
    desk = await serve(FakeEngine(lambda submit: "abcdef"[: 5 - submit.index]))
    reply = await desk.ask("POST", "/v1/completions", {**TEXT, "n": 2, "best_of": 4})
    assert [(one["index"], one["text"]) for one in reply.json["choices"]] == [(0, "ab"), (1, "abc")]
    assert reply.json["choices"][0]["logprobs"] is None
    assert (reply.json["usage"]["prompt_tokens"], reply.json["usage"]["completion_tokens"]) == (4, 6 + 5 + 4 + 3)
    submits = (await desk.engine.opened.get()).submits
    assert [submit.counts_prompt for submit in submits] == [True, False, False, False]


async def test_what_the_prefix_cache_had_is_told_to_client_and_proxy(serve: Serve) -> None:
    engine = FakeEngine(echo)
    engine.cached_tokens = 3
    desk = await serve(engine)
    reply = await desk.ask("POST", "/v1/completions", {**TEXT, "n": 2})
    assert reply.json["usage"]["prompt_tokens_details"]["cached_tokens"] == 3
    reply = await desk.ask("POST", "/v1/chat/completions", {**STREAM, "n": 2}, **PROXY)
    (comment,) = [frame for frame in reply.frames if frame.startswith(": tollhouse-usage")]
    assert json.loads(comment.removeprefix(": tollhouse-usage "))["cached_tokens"] == 3


@pytest.mark.parametrize("stream", [False, True])
async def test_log_probabilities_may_call_tokens_by_their_ids(serve: Serve, stream: bool) -> None:
    desk = await serve(FakeEngine(lambda _: "ab"))
    asked = {"return_tokens_as_token_ids": True, "stream": stream}
    for path, body in [
        ("/v1/completions", {**TEXT, "logprobs": 0, **asked}),
        ("/v1/chat/completions", {**CHAT, "logprobs": True, **asked}),
    ]:
        reply = await desk.ask("POST", path, body)
        told = [one["choices"][0]["logprobs"] for one in (documents(reply.frames) if stream else [reply.json])]
        names = [
            name
            for one in told
            if one
            for name in one.get("tokens", [entry["token"] for entry in one.get("content", ())])
        ]
        assert names[:2] == ["token_id:97", "token_id:98"]


async def test_a_prompt_is_cut_and_counted_as_it_is_kept(serve: Serve) -> None:
    desk = await serve(FakeEngine(echo))
    asked = {"truncate_prompt_tokens": 3}
    for path, body in [("/v1/completions", {**TEXT, **asked}), ("/v1/chat/completions", {**CHAT, **asked})]:
        assert (await desk.ask("POST", "/internal/count", body)).json["prompt_tokens"] == 3
        reply = await desk.ask("POST", path, body)
        assert (reply.headers["x-tollhouse-prompt-tokens"], reply.json["usage"]["prompt_tokens"]) == ("3", 3)
        (submit,) = (await desk.engine.opened.get()).submits
        assert bytes(submit.prompt_ids) in {b"nce", b"Hi."}


async def test_token_ids_are_told_of_the_choices_that_are_given(serve: Serve) -> None:
    # Longer answers are less likely here, token by token.
    desk = await serve(FakeEngine(lambda submit: "abcd"[: 4 - submit.index % 3]))
    body = {**TEXT, "prompt": ["x", [66, 67]], "n": 2, "best_of": 3, "return_token_ids": True}
    reply = await desk.ask("POST", "/v1/completions", body)
    assert [(one["prompt_token_ids"], one["token_ids"]) for one in reply.json["choices"]] == [
        *[([120], [97, 98, 0]), ([120], [97, 98, 99, 0])],
        *[([66, 67], [97, 98, 0]), ([66, 67], [97, 98, 99, 0])],
    ]


@pytest.mark.parametrize("end", [{}, {"stop": "cd"}, {"stop": "b", "min_tokens": 2}, {"stop": ["c", "zz"]}])
async def test_a_stream_tells_the_token_ids_of_the_whole_answer(serve: Serve, end: dict[str, Any]) -> None:
    desk = await serve(FakeEngine(lambda _: "abcd"))
    body = {**CHAT, "return_token_ids": True, **end}
    whole = (await desk.ask("POST", "/v1/chat/completions", body)).json
    chunks = documents((await desk.ask("POST", "/v1/chat/completions", {**body, "stream": True})).frames)
    assert whole["prompt_token_ids"] == chunks[0]["prompt_token_ids"] == [*b"u:Hi."]
    ids = whole["choices"][0]["token_ids"]
    assert [token for chunk in chunks for token in chunk["choices"][0]["token_ids"]] == ids
    assert len(ids) == whole["usage"]["completion_tokens"]


async def test_the_engine_is_told_how_to_sample(serve: Serve) -> None:
    desk = await serve(FakeEngine(echo))
    asked = {
        "presence_penalty": 1,
        "frequency_penalty": -2,
        "repetition_penalty": 1.5,
        "min_p": 0.25,
        "logit_bias": {"98": -100},
        "ignore_eos": True,
        "stop_token_ids": [99],
        "min_tokens": 2,
        "allowed_token_ids": [98, 97],
        "bad_words": ["xy"],
    }
    assert (await desk.ask("POST", "/v1/chat/completions", {**CHAT, **asked})).status == 200
    (submit,) = (await desk.engine.opened.get()).submits
    sampling = submit.sampling
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (1, -2, 1.5)
    assert (sampling.min_p, sampling.logit_bias, submit.stop_token_ids) == (0.25, {98: -100}, [99])
    assert (sampling.min_tokens, sampling.end_token_ids) == (2, [0, 99])
    assert (sampling.allowed_token_ids, sampling.bad_words) == ([97, 98], [[120, 121], [32, 120, 121]])
    reply = await desk.ask("POST", "/v1/chat/completions", {**CHAT, "logit_bias": {str(0x110000): 1}})
    assert (reply.status, reply.json["error"]["param"]) == (400, "logit_bias")
