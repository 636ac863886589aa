"""The hallway: every request ends once, with one answer and one line, whatever a room raises."""

import asyncio
import contextlib
import io
from collections.abc import Iterator
from typing import Any

import pytest

from proxy.admission.turn import Turn
from proxy.asked import UpstreamLostError, UpstreamRefusedError
from proxy.clock import Clock
from proxy.exchange import Ending, Principal, TextEndpoint
from proxy.pipeline import Pipeline
from proxy.policy.schema import CacheScope
from proxy.record import Ended
from proxy.running import Running
from proxy.settings import Limits
from proxy.verdict import RefusedError, Remark
from sidecar.jsonlog import JsonLog
from sidecar.wire.errors import ApiError, unavailable
from sidecar.wire.internal import Endpoint, RequestState
from tests.fakes.proxy import ARRIVAL, PRINCIPAL, FakeClient, FakeClock, FakeGrant, FakeUpstream, principal
from tests.fakes.sidecar import DONE, FINISH, delta, model_state, usage_comment

BODY = b'{"model":"org/tiny","messages":[],"stream":true}'
SCRIPT = [delta("a"), usage_comment(3), FINISH + DONE]


class FakeIdentify:
    error: Exception | None = None
    gate: asyncio.Event | None = None
    principal = PRINCIPAL

    async def identify(self, _authorization: str | None, _address: str) -> Principal:
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        return self.principal


class FakePass:
    """The right to ask a tokenizer; counts its proper ends."""

    def __init__(self, admission: "FakeAdmission") -> None:
        self.admission = admission
        self.remarks = admission.remarks

    def __enter__(self) -> dict[str, str]:
        return {"x-ratelimit-limit-requests": "10"}

    def __exit__(self, kind: object, *_: object) -> None:
        self.admission.passed += kind is None


class FakeAdmission:
    def __init__(self) -> None:
        self.grant = FakeGrant()
        self.error: Exception | None = None
        self.gate: asyncio.Event | None = None
        self.turn_gate: asyncio.Event | None = None
        self.remarks: tuple[Remark, ...] = ()
        self.upstreams: list[str] = []
        self.refusals: list[str] = []
        # Questions that were let in, and those of them that were answered.
        self.passes = self.passed = 0

    def check(self, _principal: Any, call: Any, model: Any) -> Any:
        if model is None:
            raise ApiError(404, f"no {call.model}", code="model_not_found", param="model")
        return model

    async def admit_question(self, _principal: Any, question: Any, _arrival: Any, model: Any) -> FakePass:
        self.check(_principal, question, model)
        if self.error is not None:
            raise self.error
        self.passes += 1
        return FakePass(self)

    def headers(self, _principal: Any, _model: str | None) -> dict[str, str]:
        return {"x-ratelimit-limit-requests": "10"}

    def refused(self, _principal: Any, _call: Any, _arrival: Any, _model: Any, error: RefusedError) -> None:
        self.refusals.append(error.rule)

    async def turn(self, _principal: Any, _model: str) -> Turn:
        if self.turn_gate is not None:
            await self.turn_gate.wait()
        return Turn()

    async def admit(self, *_: Any, turn: Turn, upstream: str, claims: Any) -> FakeGrant:
        self.upstreams.append(upstream)
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        return self.grant


class FakeResponses:
    """The room of stored responses: `error` is what it raises."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.kept: list[bytes] = []

    async def continued(self, _principal: Any, call: Any) -> Any:
        if self.error is not None:
            raise self.error
        return call

    def keeping(self, _principal: Any, call: Any) -> Any:
        return self._keep if call.store else None

    async def _keep(self, answer: bytes) -> None:
        self.kept.append(answer)


class FakeAbuse:
    """Lets everybody in: `error` is what it raises of a prompt, `barred` of an address."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.barred: Exception | None = None
        self.remarks: tuple[Remark, ...] = ()
        self.counted = self.given_back = 0

    def came(self, _principal: Any, address: str) -> None:
        assert address == ARRIVAL.address
        if self.barred is not None:
            raise self.barred

    @contextlib.contextmanager
    def asked(self, *_: Any) -> Iterator[tuple[Remark, ...]]:
        if self.error is not None:
            raise self.error
        self.counted += 1
        try:
            yield self.remarks
        except ApiError:
            self.given_back += 1
            raise


class FakeOnce:
    """Guards nothing, until it is given a guard."""

    guard: Any = None

    def read(self, *_: Any) -> None:
        return None

    async def expect(self, *_: Any) -> Any:
        return self.guard


class FakeUpstreams:
    def __init__(self) -> None:
        self.sidecar = FakeUpstream()
        self.sidecar.script = SCRIPT
        self.absent: ApiError | None = None

    def find(self, model: str) -> Any:
        return model_state() if model == "org/tiny" else None

    def check_known(self, _model: str) -> None:
        if self.absent is not None:
            raise self.absent

    def choose(self, _model: str) -> FakeUpstream:
        if self.absent is not None:
            raise self.absent
        return self.sidecar


class FakeRecord:
    def __init__(self) -> None:
        self.ended: list[Ended] = []

    def begin(self, *_: object) -> None:
        """Nobody watches."""

    def finish(self, ended: Ended) -> None:
        self.ended.append(ended)

    def streaming(self) -> Any:
        return contextlib.nullcontext()


class Hall:
    def __init__(self) -> None:
        self.identify, self.admission, self.upstreams = FakeIdentify(), FakeAdmission(), FakeUpstreams()
        self.record, self.client, self.log = FakeRecord(), FakeClient(), io.StringIO()
        self.client.posted = BODY
        clock: Clock = FakeClock()
        self.responses, self.once, self.abuse = FakeResponses(), FakeOnce(), FakeAbuse()
        rooms: Any = (self.identify, self.admission, self.upstreams, self.responses, self.record)
        log = JsonLog(self.log)
        self.running = Running()
        beside = {"abuse": self.abuse, "once": self.once, "running": self.running}
        self.pipeline = Pipeline(*rooms, **beside, clock=clock, log=log, limits=Limits(), storage_s=1.0)

    def cut(self, key_id: str) -> None:
        self.running.cut(key_id, lambda _: None)

    async def run(self) -> Ended:
        client: Any = self.client
        await self.pipeline.run(client, Endpoint.CHAT, "Bearer k")
        return self.end

    @property
    def end(self) -> Ended:
        (ended,) = self.record.ended
        return ended

    async def ask(self, usable: tuple[str, ...] = ("org/tiny",)) -> Ended:
        client: Any = self.client
        models = [model_state(name) for name in usable]
        await self.pipeline.ask(client, TextEndpoint.TOKENIZE, "Bearer k", lambda _: models)
        return self.end

    async def run_until_it_waits(self) -> "asyncio.Task[Ended]":
        task = asyncio.create_task(self.run())
        for _ in range(20):
            await asyncio.sleep(0)
        assert not task.done()
        return task


async def test_a_request_goes_through_all_rooms_and_ends_once() -> None:
    hall = Hall()
    ended = await hall.run()
    assert (ended.outcome.ending, ended.outcome.status, ended.error) == (Ending.COMPLETE, 200, None)
    assert (ended.principal, ended.known_model, ended.upstream, ended.admitted) == (
        PRINCIPAL,
        "org/tiny",
        "local",
        True,
    )
    assert hall.client.sent == delta("a") + FINISH + DONE
    assert hall.client.announced["x-ratelimit-limit-requests"] == "10"
    assert len(hall.admission.grant.settled) == hall.admission.grant.entered == hall.admission.grant.left == 1
    assert hall.admission.upstreams == ["local"]


@pytest.mark.parametrize(
    ("room", "error", "ending"),
    [
        ("identify", ApiError(401, "no", code="invalid_api_key"), Ending.REFUSED),
        ("identify", unavailable("no", code="storage_unavailable", retry_after_s=1), Ending.INTERNAL),
        ("admit", ApiError(429, "no", code="rate_limit_exceeded", type="requests"), Ending.REFUSED),
        ("admit", UpstreamRefusedError(400, "no"), Ending.UPSTREAM_REFUSED),
        ("choose", unavailable("no", code="model_loading", retry_after_s=1), Ending.UPSTREAM_FAILED),
        ("forward", UpstreamRefusedError(503, "no", code="server_is_overloaded"), Ending.UPSTREAM_REFUSED),
    ],
)
async def test_what_a_room_refuses_is_answered_and_recorded_once(room: str, error: ApiError, ending: Ending) -> None:
    hall = Hall()
    if room == "identify":
        hall.identify.error = error
    elif room == "admit":
        hall.admission.error = error
    elif room == "choose":
        hall.upstreams.absent = error
    else:
        hall.upstreams.sidecar.refusal = error
    ended = await hall.run()
    assert hall.client.answers == [(error.status, error.body())]
    assert (ended.outcome.ending, ended.outcome.status, ended.error) == (ending, error.status, error)
    assert hall.admission.grant.settled == []
    assert hall.admission.grant.entered == hall.admission.grant.left


@pytest.mark.parametrize(("scope", "told"), [("key", "k:key1"), ("account", "a:acct_1"), ("global", "g:")])
async def test_a15_the_sidecar_is_told_the_tier_s_weight_and_whose_prompts_may_be_shared(
    scope: CacheScope, told: str
) -> None:
    hall = Hall()
    hall.admission.grant.cache_scope = scope
    await hall.run()
    (ticket,) = hall.upstreams.sidecar.tickets
    assert (ticket.tenant, ticket.weight, ticket.priority, ticket.cache_scope) == ("acct_1", 2.5, 3, told)


async def test_c2_nothing_is_read_for_a_stranger() -> None:
    hall = Hall()
    hall.identify.error = ApiError(401, "no")

    async def body() -> bytes:
        raise AssertionError("the body was read")

    hall.client.body = body
    assert (await hall.run()).outcome.status == 401


async def test_a_key_without_the_scope_of_a_path_is_refused_before_its_body_is_read() -> None:
    hall = Hall()
    hall.identify.principal = principal(scopes=frozenset({"models"}))

    async def body() -> bytes:
        raise AssertionError("the body was read")

    hall.client.body = body
    ended = await hall.run()
    assert (ended.outcome.status, ended.outcome.error_code) == (403, "insufficient_scope")
    assert ended.principal is hall.identify.principal
    assert hall.upstreams.sidecar.opened == 0


async def test_a_tier_s_own_headers_are_on_answers_and_errors_and_never_in_place_of_ours() -> None:
    headers = (("X-Served-By", "acme"), ("X-RateLimit-Limit-Requests", "a lie"))
    for error in (None, ApiError(429, "no", code="rate_limit_exceeded")):
        hall = Hall()
        hall.identify.principal = principal(response_headers=headers)
        hall.admission.error = error
        await hall.run()
        assert hall.client.announced["x-served-by"] == "acme"
        if error is None:
            assert hall.client.announced["x-ratelimit-limit-requests"] == "10"


async def test_an_unknown_model_is_a_404_unless_a_sidecar_has_not_spoken() -> None:
    hall = Hall()
    hall.client.posted = b'{"model":"gpt-9","messages":[]}'
    assert (await hall.run()).outcome.status == 404
    assert hall.end.known_model == "_other"
    waiting = Hall()
    waiting.client.posted = b'{"model":"gpt-9","messages":[]}'
    waiting.upstreams.absent = unavailable("no", code="model_loading", retry_after_s=5)
    assert (await waiting.run()).outcome.status == 503


async def test_a_refusal_of_a_served_model_is_recorded_by_its_name_and_tells_the_client_nothing_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hall, told = Hall(), list[str | None]()

    def refused(*_: Any) -> None:
        raise RefusedError("max_output_tokens", 400, "too much")

    def headers(_principal: Any, model: str | None) -> dict[str, str]:
        told.append(model)
        return {}

    monkeypatch.setattr(hall.admission, "check", refused)
    monkeypatch.setattr(hall.admission, "headers", headers)
    ended = await hall.run()
    assert (ended.outcome.status, ended.known_model, told) == (400, "org/tiny", [None])


async def test_an_error_after_the_relay_is_answered_after_the_grant_is_closed() -> None:
    hall = Hall()
    hall.upstreams.sidecar.script = [UpstreamLostError()]
    hall.upstreams.sidecar.cancel_answer = RequestState(True, False, 7, 1)
    ended = await hall.run()
    assert [status for status, _ in hall.client.answers] == [503]
    assert (ended.outcome.ending, ended.outcome.error_code) == (Ending.UPSTREAM_FAILED, "upstream_unavailable")
    assert ended.outcome.usage is not None
    assert ended.error is not None


async def test_a_bug_is_a_500_that_says_nothing_and_a_line_that_says_where() -> None:
    hall = Hall()
    hall.admission.error = ZeroDivisionError("secret")
    ended = await hall.run()
    ((status, body),) = hall.client.answers
    assert status == ended.outcome.status == 500
    assert b"secret" not in body
    assert ended.outcome.ending is Ending.INTERNAL
    assert '"exception":"ZeroDivisionError"' in hall.log.getvalue()
    assert "secret" not in hall.log.getvalue()


async def test_a_bug_in_a_stream_breaks_it_off_and_settles() -> None:
    hall = Hall()
    hall.upstreams.sidecar.script = [delta("a"), ZeroDivisionError()]
    hall.upstreams.sidecar.cancel_answer = RequestState(True, False, 7, 1)
    ended = await hall.run()
    assert (ended.outcome.status, ended.outcome.ending) == (200, Ending.INTERNAL)
    assert hall.client.last == "fail"
    assert [outcome.ending for outcome, _ in hall.admission.grant.settled] == [Ending.INTERNAL]


@pytest.mark.parametrize("place", ["identify", "admit"])
@pytest.mark.parametrize(
    ("ending", "status", "answers"),
    [(Ending.CLIENT_GONE, 499, 0), (Ending.SHUTTING_DOWN, 503, 1), (Ending.REVOKED, 401, 1)],
)
async def test_who_leaves_before_anything_ran_costs_nothing(
    place: str, ending: Ending, status: int, answers: int
) -> None:
    hall = Hall()
    room: Any = hall.identify if place == "identify" else hall.admission
    room.gate = asyncio.Event()
    task = await hall.run_until_it_waits()
    hall.client.leave(ending)
    ended = await task
    assert (ended.outcome.status, ended.outcome.ending) == (status, ending)
    assert len(hall.client.answers) == answers
    assert hall.upstreams.sidecar.opened == 0


async def test_cutting_a_key_ends_its_running_requests_and_no_other() -> None:
    hall = Hall()
    hall.upstreams.sidecar.script = [delta("a"), asyncio.Event()]
    task = await hall.run_until_it_waits()
    hall.cut("other")
    await asyncio.sleep(0)
    assert not task.done()
    hall.cut("key1")
    assert (await task).outcome.ending is Ending.REVOKED
    # Nobody is left behind in the list of who runs.
    hall.cut("key1")
    assert hall.running.key_ids == set()


async def test_a_page_is_shown_to_who_is_known() -> None:
    hall = Hall()
    client: Any = hall.client

    async def page(principal: Principal) -> bytes:
        return principal.tier.encode()

    await hall.pipeline.show(client, "/v1/models", "Bearer k", page)
    assert hall.client.answers == [(200, b"pro")]
    assert (hall.end.endpoint, hall.end.outcome.ending) == ("/v1/models", Ending.COMPLETE)


async def test_a_refusal_without_a_room_is_recorded_too() -> None:
    hall = Hall()
    client: Any = hall.client
    await hall.pipeline.refuse(client, "_other", ApiError(404, "no", code="unknown_url"))
    assert (hall.end.endpoint, hall.end.outcome.status, hall.end.outcome.error_code) == ("_other", 404, "unknown_url")


async def test_a_question_is_answered_by_a_sidecar_and_charged_to_nobody() -> None:
    hall = Hall()
    hall.client.posted = b'{"prompt":"a"}'
    hall.upstreams.sidecar.ignored = "extra"
    ended = await hall.ask()
    assert hall.client.answers == [(200, b"{}")]
    assert (ended.endpoint, ended.outcome.ending, ended.outcome.usage) == ("/tokenize", Ending.COMPLETE, None)
    assert (ended.known_model, ended.upstream, ended.admitted) == ("org/tiny", "local", True)
    assert hall.client.announced == {"x-ratelimit-limit-requests": "10", "x-tollhouse-ignored": "extra"}
    assert (hall.admission.passes, hall.admission.passed) == (1, 1)
    assert hall.admission.grant.entered == 0


@pytest.mark.parametrize(
    ("room", "status", "ending", "passes"),
    [
        ("identify", 401, Ending.REFUSED, 0),
        ("body", 400, Ending.REFUSED, 0),
        ("model", 404, Ending.REFUSED, 0),
        ("admit", 429, Ending.REFUSED, 0),
        ("choose", 503, Ending.UPSTREAM_FAILED, 1),
        ("sidecar", 400, Ending.UPSTREAM_REFUSED, 1),
    ],
)
async def test_a_question_that_is_refused_ends_once_and_its_pass_is_given_up(
    room: str, status: int, ending: Ending, passes: int
) -> None:
    hall = Hall()
    if room == "identify":
        hall.identify.error = ApiError(401, "no")
    elif room == "body":
        hall.client.posted = b"[]"
    elif room == "model":
        hall.client.posted = b'{"model":"gpt-9"}'
    elif room == "admit":
        hall.admission.error = ApiError(429, "no", code="rate_limit_exceeded", type="requests")
    elif room == "choose":
        hall.upstreams.absent = unavailable("no", code="model_loading", retry_after_s=1)
    else:
        hall.upstreams.sidecar.refusal = UpstreamRefusedError(400, "no", param="tokens")
    ended = await hall.ask()
    assert [answer[0] for answer in hall.client.answers] == [status]
    assert (ended.outcome.status, ended.outcome.ending) == (status, ending)
    assert (hall.admission.passes, hall.admission.passed) == (passes, 0)


@pytest.mark.parametrize(("ending", "status"), [(Ending.CLIENT_GONE, 499), (Ending.REVOKED, 401)])
async def test_who_leaves_while_it_waits_for_its_turn_has_chosen_no_sidecar(ending: Ending, status: int) -> None:
    hall = Hall()
    hall.admission.turn_gate = asyncio.Event()
    task = await hall.run_until_it_waits()
    if ending is Ending.REVOKED:
        hall.cut("key1")
    else:
        hall.client.leave(ending)
    ended = await task
    assert (ended.outcome.status, ended.outcome.ending, ended.upstream) == (status, ending, None)
    assert hall.admission.upstreams == []


async def test_what_a_rule_refuses_is_kept_and_what_no_rule_refuses_is_not() -> None:
    hall = Hall()
    hall.admission.error = RefusedError("concurrency", 429, "no", code="concurrency_limit_exceeded")
    await hall.run()
    assert hall.admission.refusals == ["concurrency"]
    for error in (ApiError(400, "no"), unavailable("no", code="storage_unavailable", retry_after_s=1)):
        hall = Hall()
        hall.admission.error = error
        await hall.run()
        assert hall.admission.refusals == []


async def test_what_a_rule_in_shadow_said_is_recorded() -> None:
    hall = Hall()
    said = (Remark("requests_per_minute", "shadow"),)
    hall.admission.grant.remarks = hall.admission.remarks = said
    assert (await hall.run()).remarks == said
    hall = Hall()
    hall.admission.remarks, hall.client.posted = said, b'{"prompt":"a"}'
    assert (await hall.ask()).remarks == said


async def test_who_asks_without_a_model_and_may_use_two_must_name_one() -> None:
    hall = Hall()
    hall.client.posted = b'{"prompt":"a"}'
    assert (await hall.ask(("org/tiny", "org/other"))).outcome.status == 400


@pytest.mark.parametrize(("ending", "status"), [(Ending.CLIENT_GONE, 499), (Ending.REVOKED, 401)])
async def test_who_leaves_while_the_tokenizer_works_is_let_go(ending: Ending, status: int) -> None:
    hall = Hall()
    hall.upstreams.sidecar.gate = asyncio.Event()
    task = asyncio.create_task(hall.ask())
    for _ in range(20):
        await asyncio.sleep(0)
    assert not task.done()
    if ending is Ending.REVOKED:
        hall.cut("key1")
    else:
        hall.client.leave(ending)
    ended = await task
    assert (ended.outcome.status, ended.outcome.ending) == (status, ending)
    assert (hall.admission.passes, hall.admission.passed) == (1, 0)
    assert hall.running.key_ids == set()


async def test_c2_who_comes_from_a_barred_address_is_refused_before_its_body_is_read() -> None:
    hall = Hall()
    hall.abuse.barred = ApiError(403, "not from there", code="address_not_allowed")
    hall.client.posted = b"no JSON"
    ended = await hall.run()
    assert (ended.outcome.status, ended.outcome.error_code) == (403, "address_not_allowed")
    assert ended.principal is not None


async def test_a_prompt_that_is_refused_reaches_no_other_room() -> None:
    hall = Hall()
    hall.abuse.error = ApiError(429, "again", type="requests", code="repeated_prompt")
    ended = await hall.run()
    assert (ended.outcome.status, ended.known_model, ended.admitted) == (429, "_other", False)


async def test_what_abuse_remarks_stands_beside_what_the_grant_does() -> None:
    hall = Hall()
    hall.abuse.remarks = (Remark("equal_prompts_per_minute", "shadow"),)
    hall.admission.grant.remarks = (Remark("concurrency", "shadow"),)
    ended = await hall.run()
    assert [remark.rule for remark in ended.remarks] == ["equal_prompts_per_minute", "concurrency"]
    assert (hall.abuse.counted, hall.abuse.given_back) == (1, 0)


async def test_a_prompt_that_is_not_let_in_after_all_does_not_count() -> None:
    hall = Hall()
    hall.admission.error = ApiError(429, "full", type="tokens", code="rate_limit_exceeded")
    await hall.run()
    assert (hall.abuse.counted, hall.abuse.given_back) == (1, 1)


async def test_w6_a_connection_is_known_once_its_key_is() -> None:
    hall = Hall()
    hall.identify.error = ApiError(401, "who?", code="invalid_api_key")
    await hall.run()
    assert not hall.client.is_known
    hall = Hall()
    await hall.run()
    assert hall.client.is_known
