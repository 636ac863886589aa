"""Log lines: every one parses, none holds a stranger's bytes."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from sidecar.jsonlog import MAX_CHARS, MAX_FRAMES, JsonLog, capture_stdlib

CANARY = "sk-th_canary"


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def root_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    logging.captureWarnings(capture=False)
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_line_is_one_json_object_with_time_level_and_event(stream: io.StringIO) -> None:
    JsonLog(stream, model="m").info("ready", port=8000, stream=True, ttft_ms=None)
    (line,) = lines(stream)
    assert line.pop("time").endswith("+00:00")
    assert line == {"level": "info", "event": "ready", "model": "m", "port": 8000, "stream": True}


def test_levels_below_the_chosen_one_are_silent(stream: io.StringIO) -> None:
    log = JsonLog(stream, "warning")
    log.debug("a")
    log.info("b")
    log.warning("c")
    log.error("d")
    assert [line["event"] for line in lines(stream)] == ["c", "d"]


def test_unknown_names_are_left_out_and_named(stream: io.StringIO) -> None:
    JsonLog(stream).info("event", authorization=CANARY, status=200)
    (line,) = lines(stream)
    assert line["refused"] == "authorization"
    assert line["status"] == 200
    assert CANARY not in stream.getvalue()


def test_a5_strings_are_cut_and_escaped_onto_one_ascii_line(stream: io.StringIO) -> None:
    JsonLog(stream).info("event", model='x\n{"event":"forged"}\u2028é' + "y" * 1000)
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().isascii()
    assert len(lines(stream)[0]["model"]) == MAX_CHARS


def test_numbers_that_json_lacks_become_text(stream: io.StringIO) -> None:
    JsonLog(stream).info("event", seconds=float("nan"), delay_s=float("inf"))
    line = lines(stream)[0]
    assert (line["seconds"], line["delay_s"]) == ("nan", "inf")


def test_an_exception_is_its_type_and_places_never_its_message(stream: io.StringIO) -> None:
    def deep(depth: int) -> None:
        if depth:
            deep(depth - 1)
        raise ValueError(CANARY)

    try:
        try:
            deep(20)
        except ValueError as exc:
            raise ConnectionRefusedError(111, CANARY) from exc
    except OSError as exc:
        JsonLog(stream).exception("failed", exc, request_id="req_1")
    (line,) = lines(stream)
    assert (line["exception"], line["cause"], line["errno"]) == ("ConnectionRefusedError", "ValueError", "ECONNREFUSED")
    assert line["frames"][-1].startswith("unit/sidecar/test_jsonlog.py:")
    assert len(line["frames"]) <= MAX_FRAMES
    assert CANARY not in stream.getvalue()


def test_a_group_names_what_is_inside(stream: io.StringIO) -> None:
    JsonLog(stream).exception("failed", ExceptionGroup(CANARY, [KeyError(CANARY), OSError()]))
    assert lines(stream)[0]["exceptions"] == ["KeyError", "OSError"]
    assert CANARY not in stream.getvalue()


def test_bound_fields_travel_and_keep_the_level(stream: io.StringIO) -> None:
    log = JsonLog(stream, "error", model="m").bind(request_id="req_1")
    log.info("quiet")
    log.error("loud")
    (line,) = lines(stream)
    assert (line["model"], line["request_id"]) == ("m", "req_1")


def test_a_stream_that_takes_nothing_costs_a_line_not_a_request() -> None:
    stream = io.StringIO()
    stream.close()
    log = JsonLog(stream)
    log.info("event")
    assert log.dropped == 1


@pytest.mark.usefixtures("root_logging")
def test_library_records_lose_their_words(stream: io.StringIO) -> None:
    capture_stdlib(JsonLog(stream))
    logger = logging.getLogger("aiohttp.server")
    try:
        {}[CANARY]
    except KeyError:
        logger.exception("Error handling request %s", CANARY)
    logger.warning(CANARY)
    logger.info("not asked for")
    first, second = lines(stream)
    assert (first["event"], first["level"], first["logger"]) == ("library_log", "error", "aiohttp.server")
    assert first["exception"] == "KeyError"
    assert "test_library_records_lose_their_words" in first["at"]
    assert second["level"] == "warning"
    assert CANARY not in stream.getvalue()
