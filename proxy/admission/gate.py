"""Who may run what, now: the order of the checks, and the taking. A refused request has consumed nothing.

Looking and taking happen with no `await` between, so fifty at once against a quota for ten are ten. What each limit
says comes from its own module; what a refusal says from `refusal`.
"""

import contextlib
from collections.abc import Awaitable, Callable, Collection

import msgspec

from proxy.admission import refusal, shedding
from proxy.admission.estimate import Sizing
from proxy.admission.fleet import Alone, Fleet, OverLimitError, Part
from proxy.admission.grant import Books, Grant, Terms
from proxy.admission.meters import NO_SIZE, Meters, Pass, Size, Subject, remarks
from proxy.admission.rate import RateLook
from proxy.admission.refusal_log import RefusalLog
from proxy.admission.rules import Limit, Rulebook, Rules
from proxy.admission.turn import QueueWatch, Turn, Unwatched, wait
from proxy.clock import Clock, month_of
from proxy.exchange import Arrival, Call, Estimate, NotRecordedError, Principal, Question
from proxy.load import Load
from proxy.policy.schema import Policy, Tier
from proxy.store.claims import Claim
from proxy.store.database import StorageError
from proxy.store.posting import Entry
from proxy.verdict import RefusedError
from sidecar.wire.errors import ApiError
from sidecar.wire.internal import Count, Endpoint, ModelState

Counter = Callable[[Call], Awaitable[Count]]


class _Asked(msgspec.Struct, frozen=True):
    """A call that is to be let in, as `Admission.admit` is told of it."""

    principal: Principal
    sizing: Sizing
    arrival: Arrival
    turn: Turn
    upstream: str | None
    claims: tuple[Claim, ...]


class Admission:
    """The room. `policy` gives the policy of now; `storage_s` is how long a reservation may take to reach the disk."""

    def __init__(
        self,
        policy: Callable[[], Policy],
        meters: Meters,
        books: Books,
        clock: Clock,
        *,
        storage_s: float,
        queue: QueueWatch | None = None,
        refusals: RefusalLog | None = None,
        fleet: Fleet | None = None,
        load: Callable[[str], Load] | None = None,
    ) -> None:
        self._fleet = fleet or Alone()
        self._alone = fleet is None
        self._rulebook = Rulebook(policy, lambda: self._fleet.share)
        self._meters = meters
        self._books = books
        self._clock = clock
        self._storage_s = storage_s
        self._queue = queue or Unwatched()
        self._refusals = refusals
        self._load = load

    def allows(self, principal: Principal, model: str) -> bool:
        """Whether the key may use the model. Raises ApiError 403 if its tier is gone."""
        return _allows(principal, self._rulebook.of(principal, model).tier, model)

    def headers(self, principal: Principal, model: str | None = None) -> dict[str, str]:
        """The rate limit headers of a key, on a model if one is known, for answers that no grant stands behind.

        Raises ApiError 403 if its tier is gone.
        """
        return self._meters.headers(self._subject(principal, model))

    def check(self, principal: Principal, call: Call, model: ModelState | None) -> ModelState:
        """What needs no counting: the model and the output asked for. Raises ApiError 403, 404 or 400.

        `admit` does this too; on its own it tells a stranger to a model 404 before a sidecar is chosen for it.
        """
        return _checked(self._rulebook.of(principal, call.model), principal, call, model)

    async def check_limits(self, principal: Principal, model: str) -> None:
        """What needs no size: whether a key's limits let anything more in now. Raises ApiError 403, 429 or 503.

        `admit` does this too; on its own it comes before work that a key at its limits is not to cause.
        """
        placed = self._rulebook.of(principal, model).may_wait
        subject = self._subject(principal, model, placed=placed)
        await self._prime(subject)
        self._shadows(subject, NO_SIZE)

    async def turn(self, principal: Principal, model: str) -> Turn:
        """Wait for the request's turn, if others of its key run and its tier lets it wait.

        Raises ApiError 403, 429 or 503. Who waits holds nothing else, and whatever else does not fit is not waited for.
        """
        rules = self._rulebook.of(principal, model)
        limit = rules.concurrency
        if limit is None or not rules.may_wait:
            return Turn()
        subject = self._subject(principal, model, placed=True)
        await self._prime(subject)
        self._shadows(subject, NO_SIZE)
        leases, cell = self._meters.leases, subject.cell(limit)
        leases.limited(cell, limit.most)
        if leases.fits(cell, limit.most):
            return Turn(leases.take(cell))
        lease = None
        if leases.waiting(cell) < rules.tier.max_waiting:
            lease = await self._queue.waiting(wait(leases, cell, limit.most, rules.tier.max_wait_s))
        if lease is None:
            raise self._refusal(subject, limit, 0)
        return Turn(lease)

    async def admit(
        self,
        principal: Principal,
        call: Call,
        arrival: Arrival,
        model: ModelState | None,
        counter: Counter,
        *,
        turn: Turn | None = None,
        upstream: str | None = None,
        claims: tuple[Claim, ...] = (),
    ) -> Grant:
        """Raises ApiError: 403, 404, 400, 429, or 503 if storage or the sidecar that counts is away.

        `upstream` names the sidecar that will run the call, if it is chosen already, for the ledger. `claims` are
        written with the reservation, which fails if another request has one of them. Of a `turn` it takes the lease.
        """
        # The model first: nothing of a key's limits is anybody's business who may not use it.
        turn = turn or Turn()
        subject = self._subject(principal, call.model, placed=turn.held)
        known = _checked(subject.rules, principal, call, model)
        await self._prime(subject)
        sizing = Sizing(call, known, subject.rules.tier)
        asked = _Asked(principal, sizing, arrival, turn, upstream, claims)
        # From a look to the taking no `await`: whatever else asks sees either both or neither.
        bounded = sizing.bounded()
        if self._alone and bounded is not None:
            size = Size(bounded.total, bounded.total)
            if not self._meters.unfit(subject, size):
                self._shed(subject, sizing)
                return self._take(asked, subject, bounded, size, ())
        estimate = await self._size(subject, sizing, counter)
        estimate, part = await self._part(subject, sizing, estimate, counter, arrival.request_id)
        if part is None and self._rulebook.of(principal, call.model) is not subject.rules:
            # Who counts for all has gone away just now: then this proxy decides by its share.
            subject = self._subject(principal, call.model, placed=turn.held)
        with part or contextlib.nullcontext():
            if estimate.exact or part is not None:
                # That took its time.
                self._shed(subject, sizing)
            size = _size_of(subject, sizing, estimate)
            return self._take(asked, subject, estimate, size, self._shadows(subject, size), part=part)

    def refused(
        self, principal: Principal, call: Call, arrival: Arrival, model: ModelState | None, error: RefusedError
    ) -> None:
        """Keep in the request log what was not let in, whoever refused it, as far as the log bears it.

        Nothing is kept of a model that is not there: its name is the client's own.
        """
        if self._refusals is None or model is None:
            return
        with contextlib.suppress(RefusedError):  # its tier is gone: then there is nothing to say of it
            subject = self._subject(principal, call.model)
            sizing = Sizing(call, model, subject.rules.tier)
            bounded = sizing.bounded()
            tokens = 0 if bounded is None else bounded.total
            entry = _entry(principal, sizing, arrival, period=subject.period, tokens=tokens, upstream=None)
            self._refusals.note(entry, error, arrival.monotonic_s)

    async def admit_question(
        self, principal: Principal, question: Question, arrival: Arrival, model: ModelState | None
    ) -> Pass:
        """Let in what runs nothing: it counts for the minute and among those at once, and is in no ledger.

        Raises ApiError 403, 404 or 429.
        """
        subject = self._subject(principal, question.model)
        if model is None or not _allows(principal, subject.rules.tier, question.model):
            raise refusal.model_not_found(question.model)
        try:
            part = await self._fleet.take(subject, None, arrival.request_id)
        except OverLimitError as over:
            raise self._told(subject, over) from over
        if part is None:
            subject = self._subject(principal, question.model)
        with part or contextlib.nullcontext():
            shadows = self._passed(subject, self._meters.unfit_pass(subject), NO_SIZE)
            return self._meters.take_pass(subject, shadows, part=part and part.keep())

    def _take(
        self,
        asked: "_Asked",
        subject: Subject,
        estimate: Estimate,
        size: Size,
        shadows: Collection[Limit],
        *,
        part: Part | None = None,
    ) -> Grant:
        """What was looked at just now. Raises ApiError 503; then nothing was taken."""
        sizing, arrival, rules = asked.sizing, asked.arrival, subject.rules
        entry = _entry(
            asked.principal, sizing, arrival, period=subject.period, tokens=estimate.total, upstream=asked.upstream
        )
        # The ledger first: it may refuse, the meters do not.
        reserved = self._books.reserve(entry, asked.claims, rules.monthly)
        if reserved.done() and reserved.exception() is not None:
            raise NotRecordedError from reserved.exception()
        hold = self._meters.take(subject, size, shadows, lease=asked.turn.use(), part=part and part.keep())
        warned = self._meters.warnings(subject) if rules.soft else ()
        said = remarks(shadows, warned) if shadows or warned else ()
        terms = Terms(sizing, arrival, self._clock, self._storage_s, rules.revision, said)
        return Grant(terms, estimate, hold, self._books, reserved)

    async def _part(
        self, subject: Subject, sizing: Sizing, estimate: Estimate, counter: Counter, request_id: str
    ) -> tuple[Estimate, Part | None]:
        """A request's part of what all proxies together allow. The exact number is asked for only if the bound is too
        much, as in `_size`.
        """
        try:
            return estimate, await self._fleet.take(subject, _size_of(subject, sizing, estimate), request_id)
        except OverLimitError as over:
            if over.limit.sized and not estimate.exact:
                return await self._part(subject, sizing, await _counted(sizing, counter), counter, request_id)
            raise self._told(subject, over) from over

    async def _size(self, subject: Subject, sizing: Sizing, counter: Counter) -> Estimate:
        """The bound costs nothing. Only if it does not fit is the exact number worth a round trip to the sidecar.

        Raises what refuses a request of any size, or one more at all: that is not worth counting.
        """
        bounded = sizing.bounded()
        unfit = [] if bounded is None else self._meters.unfit(subject, Size(bounded.total, bounded.total))
        if unfit or bounded is None:
            self._shadows(subject, NO_SIZE)
        self._shed(subject, sizing)
        sized = [limit for limit in unfit if limit.sized]
        if bounded is None:
            return await _counted(sizing, counter)
        if not sized:
            return bounded
        if all(limit.shadow for limit in sized):
            # What is only tried keeps nobody out: not by a sidecar that cannot count, either.
            with contextlib.suppress(ApiError):
                return await _counted(sizing, counter)
            return bounded
        return await _counted(sizing, counter)

    def _subject(self, principal: Principal, model: str | None, *, placed: bool = False) -> Subject:
        """Raises ApiError 403 if its tier is gone."""
        rules, month = self._rulebook.of(principal, model), month_of(self._clock.now())
        return Subject(principal.key_id, principal.account_id, rules, month, placed)

    async def _prime(self, subject: Subject) -> None:
        try:
            await self._meters.quotas.prime(subject)
        except StorageError as exc:
            raise NotRecordedError from exc

    def _shadows(self, subject: Subject, size: Size) -> list[Limit]:
        """The limits in shadow that a request of this size does not fit. Raises the refusal of the first in force."""
        return self._passed(subject, self._meters.unfit(subject, size), size)

    def _shed(self, subject: Subject, sizing: Sizing) -> None:
        """Raises ApiError 503 if the sidecars have so much to do that the tier's priority must give way.

        What is embedded does not wait for the engine.
        """
        if self._load is None or sizing.call.endpoint is Endpoint.EMBEDDINGS:
            return
        wait_s = shedding.wait_s(self._load(sizing.model.id), subject.rules.queue_share)
        if wait_s is not None:
            raise refusal.overloaded(wait_s, self._meters.headers(subject))

    def _passed(self, subject: Subject, unfit: list[Limit], size: Size) -> list[Limit]:
        """The same of limits that are known not to fit."""
        for limit in unfit:
            if not limit.shadow:
                raise self._refusal(subject, limit, size.tokens)
        return unfit

    def _refusal(self, subject: Subject, limit: Limit, tokens: int) -> RefusedError:
        meters, headers = self._meters, self._meters.headers(subject)
        if limit.rule in {"requests_per_minute", "tokens_per_minute"}:
            return refusal.rate(limit, meters.rate_look(subject, limit, tokens), headers)
        if limit.rule == "concurrency":
            return refusal.concurrency(limit, meters.concurrency_look(subject, limit), headers)
        return refusal.quota(limit, meters.quota_look(subject, limit, tokens), headers, self._clock.now())

    def _told(self, subject: Subject, over: OverLimitError) -> RefusedError:
        """The refusal of what all proxies together allow."""
        headers = self._meters.headers(subject)
        if isinstance(over.look, RateLook):
            return refusal.rate(over.limit, over.look, headers)
        return refusal.concurrency(over.limit, over.look, headers)


def _checked(rules: Rules, principal: Principal, call: Call, model: ModelState | None) -> ModelState:
    if model is None or not _allows(principal, rules.tier, call.model):
        raise refusal.model_not_found(call.model)
    asked, limit = call.max_output_tokens, rules.tier.max_output_tokens
    if asked is not None and limit is not None and asked > limit:
        raise refusal.too_much_output(call.max_output_param, limit, rules.output_whose)
    return model


def _size_of(subject: Subject, sizing: Sizing, estimate: Estimate) -> Size:
    return Size(estimate.total, sizing.tried(estimate, subject.rules.tried))


async def _counted(sizing: Sizing, counter: Counter) -> Estimate:
    """Raises ApiError 400 for a prompt that leaves no room, and what the counter raises."""
    count = await counter(sizing.call)
    if sizing.one_prompt and count.prompt_tokens + sizing.least_output > sizing.model.max_context:
        param = sizing.call.endpoint.prompt_field
        raise refusal.context_exceeded(count.prompt_tokens, sizing.model.max_context, param)
    return sizing.exact(count.prompt_tokens)


def _allows(principal: Principal, tier: Tier, model: str) -> bool:
    return tier.allows(model) and (principal.models is None or model in principal.models)


def _entry(
    principal: Principal, sizing: Sizing, arrival: Arrival, *, period: str, tokens: int, upstream: str | None
) -> Entry:
    tier, call = sizing.tier, sizing.call
    return Entry(
        request_id=arrival.request_id,
        key_id=principal.key_id,
        account_id=principal.account_id,
        tier=tier.name,
        period=period,
        endpoint=call.endpoint.value,
        model=call.model,
        upstream=upstream,
        stream=call.stream,
        choices=call.choices,
        priority=tier.priority,
        est_tokens=tokens,
        created=arrival.utc,
        client_request_id=arrival.client_request_id,
        trace_id=arrival.trace.trace_id,
        asked_output_tokens=call.max_output_tokens,
        bound_prompt_tokens=sizing.prompt_bound,
        max_context=sizing.model.max_context,
        prompts=sizing.prompts,
    )
