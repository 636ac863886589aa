"""Exchanges that break off: what the client is told, what the sidecar is told, and what the books say."""

import asyncio

from proxy.settings import Timeouts
from tests.fakes.sidecar import ABORT, FINISH, FakeSidecar, delta, usage_comment
from tests.wire.proxy.conftest import Build
from tests.wire.proxy.house import House, chat


async def test_f2_a_broken_off_stream_is_told_and_charged_what_was_produced(house: House) -> None:
    seen = asyncio.Event()
    house.sidecar.script = [delta("Hel"), seen, ABORT]
    house.sidecar.always_produced = 2
    wire = await house.ask(await house.key())
    status, _ = await wire.head()
    assert (status, await wire.chunk()) == (200, delta("Hel"))
    seen.set()
    told = await wire.chunk()
    assert told is not None
    assert told.startswith(b'data: {"error":')
    assert b"upstream_unavailable" in told
    # Neither [DONE] nor the end of the chunked body.
    assert await wire.chunk() is None
    row = await house.row("settled")
    assert (row["reason"], row["completion_tokens"], row["error_code"]) == (
        "upstream_failed",
        2,
        "upstream_unavailable",
    )


async def test_f2_a_stream_that_ends_without_its_closing_event_is_broken_off(house: House) -> None:
    house.sidecar.script = [delta("a"), usage_comment(1), FINISH]
    house.sidecar.always_produced = 1
    answer = await (await house.ask(await house.key())).answer()
    assert not answer.whole
    assert b"[DONE]" not in answer.body
    assert (await house.row("settled"))["reason"] == "upstream_failed"


async def test_the_sidecar_s_own_error_event_is_passed_on_once(house: House) -> None:
    error = b'data: {"error":{"message":"gone","type":"server_error","param":null,"code":null}}\n\n'
    seen = asyncio.Event()
    house.sidecar.script = [delta("a"), seen, error, ABORT]
    house.sidecar.always_produced = 1
    wire = await house.ask(await house.key())
    await wire.head()
    assert await wire.chunk() == delta("a")
    seen.set()
    assert await wire.chunk() == error
    assert await wire.chunk() is None


async def test_a_client_that_leaves_stops_the_sidecar_and_pays_for_what_was_produced(house: House) -> None:
    never = asyncio.Event()
    house.sidecar.script = [delta("a"), never]
    house.sidecar.always_produced = 4
    wire = await house.ask(await house.key())
    await wire.head()
    await wire.chunk()
    await wire.close()
    async with asyncio.timeout(30):
        await house.sidecar.left.wait()
    row = await house.row("settled")
    assert (row["reason"], row["status"], row["completion_tokens"]) == ("client_gone", 499, 4)
    assert house.sidecar.cancelled == [row["request_id"]]
    line = await house.line()
    assert (line["ending"], line["status"]) == ("client_gone", 499)


async def test_a_client_that_leaves_before_its_answer_pays_nothing_if_nothing_ran(house: House) -> None:
    never = asyncio.Event()
    house.sidecar.script = [never]
    wire = await house.ask(await house.key(), chat(stream=False))
    await house.until(lambda: house.sidecar.received)
    await wire.close()
    row = await house.row("void")
    assert (row["reason"], row["completion_tokens"]) == ("client_gone", 0)


async def test_f2_an_absent_sidecar_is_a_503_to_be_tried_again(house: House) -> None:
    key = await house.key()
    await house.sidecar.stop()
    answer = await (await house.ask(key)).answer()
    assert (answer.status, answer.error["code"]) == (503, "upstream_unavailable")
    assert (answer.headers["retry-after"], answer.headers["x-should-retry"]) == ("1", "true")


async def test_a_model_that_is_being_loaded_is_a_503(build: Build) -> None:
    def loading(sidecar: FakeSidecar) -> None:
        sidecar.ready, sidecar.reason, sidecar.models = False, "loading", []

    async with build(prepare=loading) as house:
        answer = await (await house.ask(await house.key())).answer()
        assert (answer.status, answer.error["code"]) == (503, "model_loading")
        assert house.rows() == []


async def test_a_sidecar_that_goes_silent_times_out(build: Build) -> None:
    async with build(timeouts=Timeouts(between_bytes_s=1.0, drain_s=5.0)) as house:
        house.sidecar.script = [delta("a"), asyncio.Event()]
        house.sidecar.always_produced = 1
        answer = await (await house.ask(await house.key())).answer()
        assert not answer.whole
        assert b'"code":"timeout"' in answer.body
        assert (await house.row("settled"))["error_code"] == "timeout"


async def test_a_sidecar_that_never_answers_times_out_before_the_head(build: Build) -> None:
    async with build(timeouts=Timeouts(first_byte_s=0.2, drain_s=5.0)) as house:
        house.sidecar.script = [asyncio.Event()]
        answer = await (await house.ask(await house.key(), chat(stream=False))).answer()
        assert (answer.status, answer.error["code"]) == (504, "timeout")


async def test_when_nobody_knows_what_was_produced_the_estimate_is_charged_and_marked(house: House) -> None:
    seen = asyncio.Event()
    house.sidecar.script = [delta("a"), seen, ABORT]
    wire = await house.ask(await house.key())
    await wire.head()
    await wire.chunk()
    house.sidecar.socket.with_suffix(".slots").unlink()
    house.sidecar.deaf = True
    seen.set()
    row = await house.row("forced")
    assert row["prompt_tokens"] + row["completion_tokens"] == row["est_tokens"] == 7 + 8


async def test_a12_a_revoked_key_ends_its_running_stream(house: House) -> None:
    house.sidecar.script = [delta("a"), asyncio.Event()]
    house.sidecar.always_produced = 1
    key = await house.key()
    wire = await house.ask(key)
    await wire.head()
    await wire.chunk()
    await house.revoke(key)
    told = await wire.chunk()
    assert told is not None
    assert b'"code":"invalid_api_key"' in told
    assert await wire.chunk() is None
    assert (await house.row("settled"))["reason"] == "revoked"
    refused = await (await house.ask(key)).answer()
    assert (refused.status, refused.error["code"]) == (401, "invalid_api_key")


async def test_w3_a_client_that_does_not_read_is_let_go_of(build: Build) -> None:
    async with build(timeouts=Timeouts(client_write_s=0.3, drain_s=5.0)) as house:
        house.sidecar.script = [delta("x" * 60_000)] * 400
        house.sidecar.always_produced = 400
        wire = await house.ask(await house.key(), chat(max_tokens=400))
        await wire.head()
        row = await house.row("settled")
        assert (row["reason"], row["completion_tokens"]) == ("client_stalled", 400)
