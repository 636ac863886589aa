"""How much each sequence may produce, what is refused before anything runs, and the seeds of the choices."""

import dataclasses
import re
from typing import Any

import msgspec
import pytest

from sidecar.protocol.plan import Limits, Plan, check_model, encode, make_plan
from sidecar.protocol.requests import ChatRequest, CompletionRequest, Demand, Options, ToolUse
from sidecar.protocol.speech.dialect import Dialect, Speech
from sidecar.protocol.ticket import Ticket
from sidecar.tokenizer.messages import PLAIN, Message, Rendering, Tool
from sidecar.wire.errors import ApiError

THINKS = Dialect(thinks=True)
LIMITS = Limits("m", max_context=100, vocab_size=1000, stop_token_ids=(2,))
OPTIONS = Options(
    model="m",
    choices=1,
    max_tokens=None,
    max_tokens_param="max_tokens",
    temperature=1.0,
    top_p=1.0,
    top_k=0,
    seed=7,
    stop=(),
    stream=False,
    include_usage=False,
    continuous_usage=False,
    echo_service_tier=False,
    ignored=(),
)


class WordEncoder:
    """A token for each word of a whole text."""

    def encode_text(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        if add_special_tokens:
            return list(range(len(text.split())))
        # A part of a text: a token for each letter, and for a space and the letter behind it; none for a hyphen.
        return [ord(part[-1]) + 100 * part.startswith(" ") for part in re.findall(" ?[^ -]", text)]

    def decode_text(self, ids: list[int]) -> tuple[str, list[int]]:
        return " ".join("w" for _ in ids), [2 * at for at in range(len(ids))]

    def text_offsets(self, text: str) -> list[int]:
        return [3 * at for at in range(len(text.split()))]

    def decode(self, ids: list[int]) -> str:
        """As if the third word began thoughts."""
        return "".join("<think>" if token == 2 else "w" for token in ids)

    def encode_chat(self, messages: tuple[Message, ...], rendering: Rendering = PLAIN) -> list[int]:
        return self.encode_text(" ".join(message.content for message in messages))


def text(*prompts: str | tuple[int, ...], **options: Any) -> CompletionRequest:
    best_of = options.pop("best_of", options.get("choices", 1))
    echo = options.pop("echo", False)
    return CompletionRequest(msgspec.structs.replace(OPTIONS, **options), prompts, best_of, echo)


def chat(content: str, **options: Any) -> ChatRequest:
    return ChatRequest(msgspec.structs.replace(OPTIONS, **options), (Message("user", content),))


def plan(request: ChatRequest | CompletionRequest, **ticket: Any) -> Plan:
    prompts = encode(request, WordEncoder(), LIMITS)
    return make_plan(request, prompts, Ticket("req_1", **ticket), LIMITS, WordEncoder())


def outputs(request: ChatRequest | CompletionRequest, **ticket: Any) -> list[int]:
    return [submit.max_new_tokens for submit in plan(request, **ticket).submits]


def test_a_chat_s_default_is_what_is_left_of_the_context() -> None:
    assert outputs(chat("a b c")) == [97]


def test_a_completion_s_default_is_sixteen_tokens_or_what_is_left() -> None:
    assert outputs(text("a b c", " ".join("a" * 90))) == [16, 10]


def test_the_proxy_s_default_stands_where_the_client_asks_for_nothing() -> None:
    assert outputs(chat("a"), max_output_tokens=5) == [5]
    assert outputs(text("a"), max_output_tokens=40) == [40]


def test_a_reservation_is_a_ceiling_shared_by_all_sequences() -> None:
    assert outputs(text("a b", "c", choices=2), max_total_tokens=3 + 22) == [5, 5, 5, 5]


def test_a_prompt_beyond_its_reservation_is_refused() -> None:
    with pytest.raises(ApiError) as caught:
        plan(chat("a b c"), max_total_tokens=3)
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, "messages", "reservation_exceeded")


def test_c1_a_request_that_does_not_fit_is_refused_and_not_cut() -> None:
    assert outputs(chat("a b c", max_tokens=97)) == [97]
    with pytest.raises(ApiError, match=r"length is 100 tokens.*101 tokens \(3 in the messages") as caught:
        plan(chat("a b c", max_tokens=98))
    assert (caught.value.param, caught.value.code) == ("messages", "context_length_exceeded")


@pytest.mark.parametrize("content", [" ".join("a" * 100), "x" * 801])
def test_c2_a_prompt_longer_than_the_context_is_refused(content: str) -> None:
    for request, param in ((chat(content), "messages"), (text(content), "prompt")):
        with pytest.raises(ApiError, match="maximum context length is 100 tokens") as caught:
            encode(request, WordEncoder(), LIMITS)
        assert (caught.value.param, caught.value.code) == (param, "context_length_exceeded")


def test_all_that_a_chat_template_is_given_counts_against_the_context() -> None:
    def given(content: str, **rendering: Any) -> ChatRequest:
        return ChatRequest(OPTIONS, (Message("user", content),), Rendering(**rendering))

    fits = given("x" * 400, documents=({"text": "ü" * 100},), variables={"thinking": "x" * 188})
    assert encode(fits, WordEncoder(), LIMITS) == ((0,),)
    for request, param in (
        (given("x" * 401, documents=({"text": "ü" * 100},), variables={"thinking": "x" * 188}), "messages"),
        (given("x", documents=({"text": "x" * 797},)), "documents"),
    ):
        with pytest.raises(ApiError, match=r"80[01] bytes") as caught:
            encode(request, WordEncoder(), LIMITS)
        assert (caught.value.param, caught.value.code) == (param, "context_length_exceeded")


def test_an_answer_that_goes_on_follows_its_prompt_and_one_that_begins_follows_nothing() -> None:
    opened = ChatRequest(OPTIONS, (Message("assistant", "a b"),), Rendering(False, continue_final_message=True))
    assert [telling.before for telling in plan(opened).tellings] == [(0, 1)]
    assert [telling.before for telling in plan(chat("a b")).tellings] == [()]


def test_c1_a_prompt_without_tokens_or_outside_the_vocabulary_is_refused() -> None:
    for request in (text(""), text((5, 1000))):
        with pytest.raises(ApiError) as caught:
            encode(request, WordEncoder(), LIMITS)
        assert (caught.value.param, caught.value.code) == ("prompt", "invalid_value")


def test_token_ids_are_used_as_they_are() -> None:
    assert plan(text((999, 0, 5))).submits[0].prompt_ids == [999, 0, 5]


def test_sequences_are_numbered_by_prompt_then_choice() -> None:
    made = plan(text("a", "b c", choices=2))
    assert [(submit.index, len(submit.prompt_ids)) for submit in made.submits] == [(0, 1), (1, 1), (2, 2), (3, 2)]
    assert made.prompt_tokens == 3


def test_a_seed_gives_a_prompt_the_same_choices_whatever_stands_beside_it() -> None:
    alone = plan(text("a", choices=2))
    beside = plan(text("b", "a", choices=2))
    seeds = [submit.sampling.seed for submit in alone.submits]
    assert seeds[0] != seeds[1]
    assert [submit.sampling.seed for submit in beside.submits] == seeds * 2


def test_without_a_seed_every_sequence_has_its_own() -> None:
    seeds = {submit.sampling.seed for submit in plan(text("a", "a", choices=8, seed=None)).submits}
    assert len(seeds) == 16


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"top_p": 0.0}])
def test_no_temperature_and_no_mass_are_greedy(options: dict[str, float]) -> None:
    sampling = plan(text("a", **options)).submits[0].sampling
    assert (sampling.temperature, sampling.top_p) == (0.0, 1.0)


def test_the_engine_is_told_whose_request_it_is_and_what_ends_it() -> None:
    submit = plan(
        text("a", top_k=5), tenant="acct_1", weight=2.0, priority=3, deadline_ms=9, cache_scope="a:1"
    ).submits[0]
    assert submit.cache_scope == "a:1"
    assert (submit.request_id, submit.tenant, submit.weight, submit.priority) == ("req_1", "acct_1", 2.0, 3)
    assert (submit.deadline_ms, submit.stop_token_ids, submit.sampling.top_k) == (9, [2], 5)


def test_c7_another_model_is_not_found() -> None:
    check_model(OPTIONS.model, "m")
    with pytest.raises(ApiError) as caught:
        check_model(OPTIONS.model, "gpt-9")
    assert (caught.value.status, caught.value.code, caught.value.param) == (404, "model_not_found", "model")


def test_the_best_of_several_run_all_and_a_prompt_counts_once() -> None:
    made = plan(text("a b", "c", choices=1, best_of=3), max_total_tokens=3 + 60)
    assert [submit.counts_prompt for submit in made.submits] == [True, False, False] * 2
    assert [submit.max_new_tokens for submit in made.submits] == [10] * 6
    # Only log-probabilities tell which one is the best; nobody else asked for them.
    assert {submit.logprobs for submit in made.submits} == {0}
    assert not any(telling.logprobs for telling in made.tellings)


def test_an_echo_is_the_prompt_as_it_was_given() -> None:
    made = plan(text("a  b", (5, 6, 7), echo=True, logprobs=2, max_tokens=0))
    assert [submit.max_new_tokens for submit in made.submits] == [0, 0]
    assert [submit.prompt_logprobs for submit in made.submits] == [2, 2]
    echoes = [telling.echo for telling in made.tellings]
    assert [(echo.text, echo.tokens, echo.offsets) for echo in echoes if echo] == [
        ("a  b", (0, 1), (0, 3)),
        ("w w w", (5, 6, 7), (0, 2, 4)),
    ]
    assert [telling.offset for telling in made.tellings] == [4, 5]


def test_without_an_answer_the_prompt_may_fill_the_context() -> None:
    whole = " ".join("a" * 100)
    assert outputs(text(whole, echo=True, max_tokens=0)) == [0]
    with pytest.raises(ApiError, match="maximum context length"):
        plan(text(whole, echo=True, max_tokens=1))


def test_c1_a_bias_outside_the_vocabulary_is_refused() -> None:
    assert plan(chat("a", logit_bias={999: 1.0})).submits[0].sampling.logit_bias == {999: 1.0}
    with pytest.raises(ApiError, match="token 1000 is outside the vocabulary of 1000"):
        plan(chat("a", logit_bias={1000: 1.0}))


def test_an_ignored_end_ends_nothing_and_the_client_s_own_do() -> None:
    assert plan(chat("a", ignore_eos=True)).submits[0].stop_token_ids == []
    assert plan(chat("a", ignore_eos=True, stop_token_ids=(9,))).submits[0].stop_token_ids == [9]
    assert plan(chat("a", stop_token_ids=(9,))).submits[0].stop_token_ids == [2, 9]
    with pytest.raises(ApiError, match="token 1000 is outside the vocabulary of 1000"):
        plan(chat("a", stop_token_ids=(1000,)))


def test_the_least_length_holds_back_every_end_also_the_ignored() -> None:
    sampling = plan(chat("a", min_tokens=3, stop_token_ids=(9,), ignore_eos=True)).submits[0].sampling
    assert (sampling.min_tokens, sampling.end_token_ids) == (3, [2, 9])
    assert plan(chat("a", stop_token_ids=(9,))).submits[0].sampling.end_token_ids == []


def test_the_allowed_tokens_are_of_this_vocabulary_and_leave_something() -> None:
    def allowed(*tokens: int, **options: Any) -> list[int]:
        return plan(chat("a", allowed_token_ids=tokens, **options)).submits[0].sampling.allowed_token_ids

    assert allowed(999, 5, 5) == [5, 999]
    assert allowed(2) == [2]
    assert allowed(2, 9, 5, min_tokens=1, stop_token_ids=(9,)) == [2, 5, 9]
    with pytest.raises(ApiError, match="token 1000 is outside the vocabulary of 1000") as caught:
        allowed(1000)
    assert caught.value.param == "allowed_token_ids"
    with pytest.raises(ApiError, match="leave no token") as caught:
        allowed(2, 9, min_tokens=1, stop_token_ids=(9,))
    assert (caught.value.param, caught.value.code) == ("allowed_token_ids", "invalid_value")


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"truncate_prompt_tokens": 2}, [118, 119]),
        ({"truncate_prompt_tokens": 1}, [119]),
        ({"truncate_prompt_tokens": -1}, list(range(21, 120))),
        ({"truncate_prompt_tokens": -1, "max_tokens": 40}, list(range(60, 120))),
        ({"truncate_prompt_tokens": 500}, None),
        ({"truncate_prompt_tokens": 100}, None),
        ({"truncate_prompt_tokens": 70, "max_tokens": 40}, None),
        ({"truncate_prompt_tokens": -1, "max_tokens": 100}, None),
    ],
)
def test_the_end_of_a_prompt_is_kept(options: dict[str, int], kept: list[int] | None) -> None:
    long = " ".join("a" * 120)
    for request in (chat(long, **options), text(long, **options), text(tuple(range(120)), **options)):
        if kept is None:
            with pytest.raises(ApiError, match="maximum context length is 100 tokens"):
                plan(request)
        else:
            assert plan(request).submits[0].prompt_ids == kept
            assert plan(request).prompt_tokens == len(kept)


def test_what_is_echoed_is_what_was_kept() -> None:
    made = plan(text("a  b  c", "d", (5, 6, 7), echo=True, logprobs=0, max_tokens=0, truncate_prompt_tokens=2))
    echoes = [telling.echo for telling in made.tellings]
    assert [(echo.text, echo.tokens, echo.offsets) for echo in echoes if echo] == [
        ("b  c", (1, 2), (0, 3)),
        ("d", (0,), (0,)),
        ("w w", (6, 7), (0, 2)),
    ]
    assert [telling.offset for telling in made.tellings] == [4, 1, 3]
    assert [telling.before for telling in made.tellings] == [(1, 2), (0,), (6, 7)]


def test_bad_words_are_forbidden_at_a_beginning_and_behind_a_space() -> None:
    def words(*bad: str, **options: Any) -> list[list[int]]:
        return plan(chat("a", bad_words=bad, **options)).submits[0].sampling.bad_words

    assert words("ab", " ab", "c") == [[97, 98], [197, 98], [99], [199]]
    # What has no tokens, or one that the model has not, is never said.
    assert words("-", chr(950)) == [[950]]
    assert words("a", allowed_token_ids=(97, 98)) == [[97], [197]]
    with pytest.raises(ApiError, match="leave no token") as caught:
        words("a", allowed_token_ids=(97, 2), min_tokens=1)
    assert (caught.value.param, caught.value.code) == ("allowed_token_ids", "invalid_value")
    tiny = msgspec.structs.replace(OPTIONS, bad_words=("\x01", "\0"))
    with pytest.raises(ApiError, match="leave no token") as caught:
        make_plan(ChatRequest(tiny, ()), ((0,),), Ticket("req_1"), Limits("m", 9, 2, ()), WordEncoder())
    assert caught.value.param == "bad_words"


@pytest.mark.parametrize(
    ("request_", "ticket", "most"),
    [
        (chat("a", max_tokens=5, min_tokens=6), {}, 5),
        (chat("a", min_tokens=100), {}, 99),
        (text("a", min_tokens=17), {}, 16),
        (text("a", min_tokens=9), {"max_output_tokens": 8}, 8),
        (text("a", echo=True, max_tokens=0, min_tokens=1), {}, 0),
    ],
)
def test_a_least_length_above_the_most_is_refused(
    request_: ChatRequest | CompletionRequest, ticket: dict[str, int], most: int
) -> None:
    with pytest.raises(ApiError, match=f"may have {most} tokens at most") as caught:
        plan(request_, **ticket)
    assert (caught.value.param, caught.value.code) == ("min_tokens", "invalid_value")
    least = msgspec.structs.replace(request_, options=msgspec.structs.replace(request_.options, min_tokens=most))
    assert outputs(least, **ticket) == [most]


def test_a_completion_goes_on_from_its_prompt_and_a_chat_begins() -> None:
    assert [telling.before for telling in plan(text("a b", (5,), choices=2)).tellings] == [(0, 1), (0, 1), (5,), (5,)]
    assert plan(chat("a b")).tellings[0].before == ()


def test_offsets_count_from_the_start_of_the_prompt_echoed_or_not() -> None:
    made = plan(text("a  b", (5, 6), logprobs=0))
    assert [(telling.offset, telling.end_token, telling.echo) for telling in made.tellings] == [
        (4, True, None),
        (3, True, None),
    ]
    assert {submit.prompt_logprobs for submit in made.submits} == {None}


def test_an_echo_without_log_probabilities_scores_nothing() -> None:
    made = plan(text("a b", echo=True))
    assert (made.submits[0].prompt_logprobs, made.submits[0].logprobs) == (None, None)
    assert made.tellings[0].echo is not None
    assert made.tellings[0].echo.text == "a b"


def test_how_an_answer_is_read_is_found_by_the_model_s_ways_and_the_prompt_s_end() -> None:
    def speech(request: ChatRequest | CompletionRequest, dialect: Dialect = THINKS) -> Speech | None:
        encoder, limits = WordEncoder(), dataclasses.replace(LIMITS, dialect=dialect)
        return make_plan(request, encode(request, encoder, limits), Ticket("req_1"), limits, encoder).speech

    assert speech(chat("a b")) == Speech(thinks=True)
    assert speech(chat("a b c")) == Speech(thinks=True, inside=True)
    assert speech(text("a b c")) is None
    assert speech(chat("a b c"), Dialect()) is None
    rendering = Rendering(continue_final_message=True)
    for words, inside in [("<think>so", True), ("<think>so</think> and", False)]:
        continued = ChatRequest(OPTIONS, (Message("assistant", words),), rendering)
        assert speech(continued) == Speech(thinks=True, inside=inside)


def test_a_call_cannot_be_asked_for_where_none_are_read() -> None:
    tools = (Tool("f"),)
    for use, param in [
        (ToolUse(tools, tools, Demand.SOME), "tool_choice"),
        (ToolUse(tools, tools, Demand.THIS, legacy=True), "function_call"),
    ]:
        request = msgspec.structs.replace(chat("a b"), tool_use=use)
        with pytest.raises(ApiError) as caught:
            plan(request)
        assert (caught.value.param, caught.value.code) == (param, "unsupported_value")
    free = msgspec.structs.replace(chat("a b"), tool_use=ToolUse(tools, tools))
    assert plan(free).speech is None


def test_the_grammar_of_calls_goes_to_every_choice_and_allows_nothing_beside_it() -> None:
    tools = (Tool("f"),)
    limits = dataclasses.replace(LIMITS, dialect=Dialect(tools="hermes"))
    use = ToolUse(tools, tools, Demand.SOME)

    def made(**options: Any) -> Plan:
        request = msgspec.structs.replace(chat("a b", **options), tool_use=use)
        return make_plan(request, encode(request, WordEncoder(), limits), Ticket("req_1"), limits, WordEncoder())

    two = made(choices=2)
    assert two.options.grammar is not None
    assert [submit.grammar for submit in two.submits] == [two.options.grammar.key] * 2
    with pytest.raises(ApiError) as caught:
        made(min_tokens=2)
    assert (caught.value.param, caught.value.code) == ("min_tokens", "invalid_value")
    tools_and_more = Rendering(tools=(Tool("f", "x" * 8 * 100),))
    with pytest.raises(ApiError) as caught:
        encode(ChatRequest(OPTIONS, (Message("user", "a"),), tools_and_more), WordEncoder(), LIMITS)
    assert (caught.value.param, caught.value.code) == ("tools", "context_length_exceeded")
