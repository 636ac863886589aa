"""One request on its way through the house: identify → admit → forward → settle → record. Read this first.

Each room takes what the one before it made (see `proxy.exchange`). A request ends exactly once, here: with one answer,
one charge and one line in the log, whatever was raised on the way. Who listens on which path is `proxy.routes`'s.
"""

import contextlib
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from proxy import scopes
from proxy.admission.turn import Turn
from proxy.asked import UpstreamRefusedError
from proxy.body import read_call, read_question
from proxy.client import Client, LeftError
from proxy.clock import Clock
from proxy.exchange import Arrival, Call, Ending, Outcome, Principal, Question, TextEndpoint
from proxy.forward import CLIENT_CLOSED, Delivery, Forward, Run, Timings, told_on_leaving
from proxy.idempotency import REPLAYED
from proxy.notes import Notes, ended
from proxy.once import Guard, answered, claims_of, held, keeping, spent
from proxy.policy.schema import CacheScope
from proxy.record import Record
from proxy.responses import own_place
from proxy.rooms import Admits, Granted, Guards, Identifies, Misuse, Pass, Stores
from proxy.running import Running
from proxy.settings import Limits
from proxy.settle import Settlement
from proxy.ticket import Ticket
from proxy.upstream import Sidecar, Upstreams
from proxy.verdict import RefusedError
from sidecar.jsonlog import JsonLog
from sidecar.wire.errors import ApiError, internal_error
from sidecar.wire.internal import IGNORED, Endpoint, ModelState

# The codes of our own 503s that are not a sidecar's fault.
OURS: Final = frozenset({"replay_store_unavailable", "storage_unavailable"})


class Admitted(msgspec.Struct, frozen=True):
    """A call that may run, and where."""

    call: Call
    sidecar: Sidecar
    grant: Granted


class Pipeline:
    """The hallway. What runs in it is noted in `running`. Stateless."""

    def __init__(
        self,
        identify: Identifies,
        admission: Admits,
        upstreams: Upstreams,
        responses: Stores,
        record: Record,
        *,
        abuse: Misuse,
        once: Guards,
        running: Running,
        clock: Clock,
        log: JsonLog,
        limits: Limits,
        storage_s: float,
    ) -> None:
        self._identify = identify
        self._admission = admission
        self._upstreams = upstreams
        self._responses = responses
        self._forward = Forward(clock)
        self._record = record
        self._abuse = abuse
        self._once = once
        self._running = running
        self._clock = clock
        self._log = log
        self._limits = limits
        self._storage_s = storage_s

    async def run(self, client: Client, endpoint: Endpoint, authorization: str | None) -> None:
        """Serve a request that reaches a model, to its end."""
        notes, timings = Notes(), Timings()
        rooms = self._through_the_rooms(client, endpoint, authorization, notes, timings)
        await self._end(client, endpoint.value, rooms, notes, timings)

    async def show(
        self, client: Client, template: str, authorization: str | None, page: Callable[[Principal], Awaitable[bytes]]
    ) -> None:
        """Serve a request for what a key may see, to its end."""
        notes, timings = Notes(), Timings()
        await self._end(client, template, self._shown(client, template, authorization, page, notes), notes, timings)

    async def ask(
        self,
        client: Client,
        endpoint: TextEndpoint,
        authorization: str | None,
        usable: Callable[[Principal], list[ModelState]],
    ) -> None:
        """Serve a request that a model's tokenizer answers, to its end. Nothing runs, so nothing is in the ledger."""
        notes, timings = Notes(), Timings()
        work = self._answered(client, endpoint, authorization, usable, notes)
        await self._end(client, endpoint.value, work, notes, timings)

    async def tell(self, client: Client, template: str, status: int, headers: dict[str, str]) -> None:
        """Serve a request that is no secret and has no body, to its end."""
        notes, timings = Notes(), Timings()
        await self._end(client, template, self._told(client, status, headers), notes, timings)

    async def refuse(self, client: Client, template: str, error: ApiError) -> None:
        """Serve a request that is refused before anything is read of it."""
        notes, timings = Notes(), Timings()
        await self._end(client, template, _raised(error), notes, timings)

    async def _end(
        self, client: Client, template: str, work: Awaitable[Outcome], notes: Notes, timings: Timings
    ) -> None:
        """The one end of a request, whatever `work` raises."""
        try:
            outcome = await work
        except LeftError as left:
            outcome = await self._left(client, left.ending, notes)
        except ApiError as error:
            self._refused(client.arrival, error, notes)
            outcome = await self._tell(client, own_place(error, notes.call), _ending_of(error), notes)
        except Exception as exc:  # noqa: BLE001 - the boundary: what nobody expected is told as a 500 and logged
            self._log.exception("request_failed", exc, **client.arrival.named())
            outcome = await self._tell(client, internal_error(), Ending.INTERNAL, notes)
        self._record.finish(ended(client.arrival, template, outcome, notes, timings))

    def _refused(self, arrival: Arrival, error: ApiError, notes: Notes) -> None:
        """What a rule refuses is in the request log, too."""
        principal, call = notes.principal, notes.call
        if isinstance(error, RefusedError) and principal is not None and call is not None:
            self._admission.refused(principal, call, arrival, self._upstreams.find(call.model), error)

    async def _through_the_rooms(
        self, client: Client, endpoint: Endpoint, authorization: str | None, notes: Notes, timings: Timings
    ) -> Outcome:
        async with client.present():
            principal = await self._identified(client, endpoint.value, authorization, notes)
        with self._running.at_work(principal, client):
            async with client.present():
                body = await _body(client, principal, notes)
                if (given := await answered(notes.guard, endpoint.value, body)) is not None:
                    client.announce(self._limits_of(notes))
                    await client.answer(200, given, REPLAYED)
                    return Outcome(200, Ending.COMPLETE, None, "")
                admitted = await self._admitted(client, endpoint, principal, body, notes)
            self._record.begin(client.arrival, principal, admitted.call, notes.model or "")
            client.announce(admitted.grant.headers())
            async with admitted.grant, held(notes.guard, admitted.grant):
                delivery = await self._forwarded(client, principal, admitted, timings, notes.guard)
        if delivery.error is not None:
            await self._tell(client, delivery.error, delivery.outcome.ending, notes)
        return delivery.outcome

    async def _shown(
        self,
        client: Client,
        template: str,
        authorization: str | None,
        page: Callable[[Principal], Awaitable[bytes]],
        notes: Notes,
    ) -> Outcome:
        async with client.present():
            principal = await self._identified(client, template, authorization, notes)
            if notes.guard is not None:
                await _body(client, principal, notes)
                await notes.guard.spend()
            shown = await page(principal)
            client.announce(self._limits_of(notes))
            await client.answer(200, shown)
        return Outcome(200, Ending.COMPLETE, None, "")

    async def _answered(
        self,
        client: Client,
        endpoint: TextEndpoint,
        authorization: str | None,
        usable: Callable[[Principal], list[ModelState]],
        notes: Notes,
    ) -> Outcome:
        async with client.present():
            principal = await self._identified(client, endpoint.value, authorization, notes)
        with self._running.at_work(principal, client):
            async with client.present():
                body = await _body(client, principal, notes)
                question = read_question(endpoint, body, [model.id for model in usable(principal)])
                with await self._let_in(client.arrival, principal, question, notes) as headers:
                    client.announce(headers)
                    await spent(notes.guard)
                    sidecar = notes.sidecar = self._upstreams.choose(question.model)
                    answer, ignored = await sidecar.tokenizer(question, client.arrival.request_id)
                if ignored is not None:
                    client.announce({IGNORED: ignored})
                await client.answer(200, answer)
        return Outcome(200, Ending.COMPLETE, None, "")

    async def _told(self, client: Client, status: int, headers: dict[str, str]) -> Outcome:
        async with client.present():
            await client.answer(status, b"", headers)
        return Outcome(status, Ending.COMPLETE, None, "")

    async def _identified(self, client: Client, template: str, authorization: str | None, notes: Notes) -> Principal:
        begun_s = self._clock.monotonic()
        try:
            signature = self._once.read(client, authorization, client.arrival)
            principal = await self._identify.identify(authorization, client.arrival.address)
        finally:
            notes.identify_s = self._clock.monotonic() - begun_s
        if not principal.signed:
            # A public id proves nothing: a signature does, which comes later.
            notes.principal = principal
            client.known()
        # Before any other header: what the policy adds never takes the place of ours.
        if principal.response_headers:
            client.announce({name.lower(): value for name, value in principal.response_headers})
        self._abuse.came(principal, client.arrival.address)
        scopes.check(principal, scopes.ROUTES[template])
        notes.guard = await self._once.expect(principal, client, signature, client.arrival)
        return principal

    async def _admitted(
        self, client: Client, endpoint: Endpoint, principal: Principal, body: bytes, notes: Notes
    ) -> Admitted:
        begun_s, waited_s = self._clock.monotonic(), 0.0
        try:
            call = notes.call = read_call(
                endpoint, body, max_choices=self._limits.max_choices, max_prompts=self._limits.max_prompts
            )
            with self._abuse.asked(principal, call) as remarks:
                model = await self._allowed(principal, call, notes)
                call = notes.call = await self._responses.continued(principal, call)
                # A wait comes before the choice: who has waited has not chosen yesterday's sidecar.
                waits_s = self._clock.monotonic()
                try:
                    turn = await self._admission.turn(principal, model.id)
                finally:
                    waited_s = self._clock.monotonic() - waits_s
                with turn:
                    admitted = await self._granted(client, principal, model, turn, notes=notes, call=call)
        finally:
            # A wait is no work of ours.
            ended_s = self._clock.monotonic()
            notes.admit_s = ended_s - begun_s - waited_s
        notes.called_s = ended_s
        notes.admitted, notes.remarks = True, (*remarks, *admitted.grant.remarks)
        return admitted

    async def _allowed(self, principal: Principal, call: Call, notes: Notes) -> ModelState:
        found = self._served(call.model, notes)
        # The key's rights come before the choice: a stranger to a model is not told whether it is up.
        model = self._admission.check(principal, call, found)
        notes.model = model.id
        if call.previous_id is not None:
            # A key at its limits reads no conversations.
            await self._admission.check_limits(principal, model.id)
        return model

    def _served(self, name: str, notes: Notes) -> ModelState | None:
        """The model of that name. Raises ApiError 503 while it may be one of a sidecar that has not spoken."""
        found = self._upstreams.find(name)
        if found is None:
            self._upstreams.check_known(name)
        else:
            notes.served = found.id
        return found

    async def _granted(
        self, client: Client, principal: Principal, model: ModelState, turn: Turn, *, call: Call, notes: Notes
    ) -> Admitted:
        sidecar = notes.sidecar = self._upstreams.choose(model.id)
        grant = await self._admission.admit(
            principal,
            call,
            client.arrival,
            model,
            sidecar.count,
            turn=turn,
            upstream=sidecar.name,
            claims=claims_of(notes.guard),
        )
        return Admitted(call, sidecar, grant)

    async def _let_in(self, arrival: Arrival, principal: Principal, question: Question, notes: Notes) -> Pass:
        begun_s = self._clock.monotonic()
        try:
            found = self._served(question.model, notes)
            passed = await self._admission.admit_question(principal, question, arrival, found)
        finally:
            notes.admit_s = self._clock.monotonic() - begun_s
        notes.model, notes.admitted, notes.remarks = question.model, True, passed.remarks
        return passed

    async def _forwarded(
        self, client: Client, principal: Principal, admitted: Admitted, timings: Timings, guard: Guard | None
    ) -> Delivery:
        call, sidecar, grant = admitted.call, admitted.sidecar, admitted.grant
        ticket = Ticket(
            request_id=client.arrival.request_id,
            tenant=principal.account_id,
            weight=grant.weight,
            priority=grant.priority,
            cache_scope=_scope(grant.cache_scope, principal),
            max_total_tokens=grant.estimate.total,
            max_output_tokens=grant.estimate.output_tokens,
            trace=client.arrival.trace,
            stored=bool(call.store),
            previous_id=call.previous_id,
        )
        settlement = Settlement(grant, client.arrival, timings, self._clock, self._storage_s)
        keep = keeping(guard, self._responses.keeping(principal, call), stream=call.stream)
        run = Run(call, ticket, sidecar, grant, client, settlement, timings, keep)
        if not call.stream:
            return await self._forward.run(run)
        with self._record.streaming():
            return await self._forward.run(run)

    async def _left(self, client: Client, ending: Ending, notes: Notes) -> Outcome:
        error = told_on_leaving(ending)
        if error is None:
            return Outcome(CLIENT_CLOSED, ending, None, "")
        return await self._tell(client, error, ending, notes)

    async def _tell(self, client: Client, error: ApiError, ending: Ending, notes: Notes) -> Outcome:
        """The boundary: the one place where an error becomes an answer, or an event in one that has begun."""
        notes.error = error
        if client.answered:
            await client.fail(client.arrival.error_event(error))
            return Outcome(200, ending, None, "", error.code)
        client.announce(self._limits_of(notes))
        with contextlib.suppress(LeftError):
            await client.answer(error.status, client.arrival.error_body(error), error.headers())
        return Outcome(error.status, ending, None, "", error.code)

    def _limits_of(self, notes: Notes) -> dict[str, str]:
        """The rate limit headers of an answer that no grant stands behind; of a key, once it is known whose it is."""
        if notes.principal is not None:
            with contextlib.suppress(RefusedError):  # of a key whose tier is gone there is nothing to tell
                return self._admission.headers(notes.principal, notes.model)
        return {}


async def _body(client: Client, principal: Principal, notes: Notes) -> bytes:
    body = await client.body(None if notes.guard is None else notes.guard.check)
    notes.principal = principal
    client.known()
    return body


def _scope(kind: CacheScope, principal: Principal) -> str:
    """What the sidecar is told: no id of one kind is ever one of another."""
    if kind == "key":
        return f"k:{principal.key_id}"
    return f"a:{principal.account_id}" if kind == "account" else "g:"


async def _raised(error: ApiError) -> Outcome:
    raise error


def _ending_of(error: ApiError) -> Ending:
    if isinstance(error, UpstreamRefusedError):
        return Ending.UPSTREAM_REFUSED
    if isinstance(error, RefusedError) or error.status < 500:
        return Ending.REFUSED
    return Ending.INTERNAL if error.code is None or error.code in OURS else Ending.UPSTREAM_FAILED
