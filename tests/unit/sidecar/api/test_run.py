"""A request is timed by its tokens, and ends once: one count, one line."""

import io
import json
from typing import Any

import pytest

from sidecar.api.run import Run
from sidecar.jsonlog import JsonLog
from sidecar.metrics import Metrics
from sidecar.protocol.choices import Choices
from sidecar.protocol.fields import Fields
from sidecar.protocol.options import read_options
from sidecar.protocol.plan import Plan
from sidecar.protocol.ticket import Ticket
from sidecar.settings import Api
from sidecar.tokenizer.text import Detokenizer
from sidecar.wire.errors import ApiError
from sidecar.wire.frames import Delta, Finish
from sidecar.wire.internal import Endpoint


class Book:
    """A run with a clock that the test sets, its metrics and its log."""

    def __init__(self, count: int = 1, stops: tuple[str, ...] = ()) -> None:
        self.now_s = 10.0
        self.metrics = Metrics("m")
        self.output = io.StringIO()
        options = read_options(Fields({"model": "m", "stream": True}), Api(), (None, "max_tokens"), None)
        plan = Plan(Ticket("req_1"), options, Endpoint.CHAT, 5, (), 1, ())
        choices = Choices(count, lambda _: Detokenizer(lambda ids: "x" * len(ids), frozenset()), stops, ())
        self.run = Run(plan, choices, self.metrics, JsonLog(self.output), lambda: self.now_s)

    def token(self, at_s: float, generated: int, finish: Finish | None = None, index: int = 0) -> None:
        self.now_s = at_s
        delta = Delta("req_1", index, [1], generated, finish)
        self.run.note(delta)
        self.run.take(delta)

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"tollhouse_sidecar_{name}", labels)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.output.getvalue().splitlines()]


def test_a_whole_answer_is_timed_from_its_acceptance() -> None:
    book = Book()
    book.token(10.5, 1)
    book.token(10.6, 2)
    book.token(11.0, 3, Finish.STOP)
    book.now_s = 12.0
    book.run.complete()
    assert book.value("time_to_first_token_seconds_sum") == pytest.approx(0.5)
    assert book.value("inter_token_latency_seconds_sum") == pytest.approx(0.5)
    assert book.value("inter_token_latency_seconds_count") == 2
    assert book.value("decode_seconds_sum") == pytest.approx(0.5)
    assert book.value("request_duration_seconds_sum") == pytest.approx(2.0)
    assert book.value("generation_tokens_total") == 3
    assert book.value("requests_total", model="m", finish_reason="stop") == 1
    (line,) = book.lines()
    assert (line["ttft_ms"], line["duration_ms"], line["completion_tokens"]) == (500, 2000, 3)
    assert (line["finish_reason"], line["ending"], line["endpoint"]) == ("stop", "complete", "/v1/chat/completions")


def test_tokens_are_counted_as_they_come() -> None:
    book = Book(count=2)
    counted = []
    for generated, index in ((1, 0), (2, 0), (1, 1)):
        book.token(10.5, generated, index=index)
        counted.append(book.value("generation_tokens_total"))
    assert counted == [1, 2, 3]
    assert book.value("request_output_tokens_count") == 0
    book.run.abort("client_gone")
    assert book.value("generation_tokens_total") == book.value("request_output_tokens_sum") == 3


def test_what_ran_past_a_stop_string_is_not_counted() -> None:
    book = Book(stops=("xx",))
    book.run.take(Delta("req_1", 0, [1, 1, 1, 1], 4))
    book.run.take(Delta("req_1", 0, [1], 5, Finish.LENGTH))
    book.run.complete()
    assert book.value("generation_tokens_total") == book.value("request_output_tokens_sum") == 2


def test_tokens_of_a_sequence_that_failed_are_counted() -> None:
    book = Book()
    with pytest.raises(ApiError):
        book.run.take(Delta("req_1", 0, [1, 1], 2, Finish.DEADLINE))
    book.run.abort("engine_error")
    assert book.value("generation_tokens_total") == book.value("request_output_tokens_sum") == 2


def test_tokens_of_two_choices_are_not_timed_against_each_other() -> None:
    book = Book(count=2)
    book.token(10.5, 1, index=0)
    book.token(10.5, 1, index=1)
    assert book.value("inter_token_latency_seconds_count") == 0


def test_what_the_engine_gives_after_the_end_is_not_timed() -> None:
    book = Book()
    book.token(10.5, 1)
    book.run.abort("client_gone")
    book.run.note(Delta("req_1", 0, [1], 2))
    assert book.value("inter_token_latency_seconds_count") == 0


def test_a_request_ends_once() -> None:
    book = Book()
    book.run.abort("client_gone")
    book.run.abort("engine_lost")
    book.run.complete()
    assert book.value("aborts_total", reason="client_gone") == 1
    assert book.value("aborts_total", reason="engine_lost") == 0
    assert book.value("requests_total", model="m", finish_reason="aborted") == 1
    (line,) = book.lines()
    assert (line["finish_reason"], line["ending"]) == ("aborted", "client_gone")
    assert "ttft_ms" not in line


def test_a_client_that_leaves_after_the_end_changes_nothing() -> None:
    book = Book()
    book.token(10.1, 1, Finish.LENGTH)
    book.run.complete()
    book.run.abort("client_gone")
    assert book.value("aborts_total", reason="client_gone") == 0
    assert len(book.lines()) == 1
