"""All limits of a key side by side: look at all of them, take from all of them, and give back what was not used.

Everything here is synchronous, so between a look and the taking nothing else runs. What to refuse is `gate`'s business.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final

from proxy.admission.concurrency import ConcurrencyLook, Lease, Leases
from proxy.admission.quota import QuotaBook, QuotaLook
from proxy.admission.rate import Cells, Charge, RateLook
from proxy.admission.refusal import REQUESTS, TOKENS, duration
from proxy.admission.rules import Limit, Rules

# What holds for something that runs nothing, too.
PASSED: Final = frozenset({"requests_per_minute", "concurrency"})


@dataclass(frozen=True, slots=True)
class Subject:
    """Whose limits: a key under its rules, in a month."""

    key_id: str
    rules: Rules
    period: str

    def cell(self, limit: Limit) -> str:
        """What a limit counts for."""
        return self.key_id + limit.apart if limit.apart else self.key_id


@dataclass(frozen=True, slots=True)
class Meters:
    """One of each kind. Requests and tokens have their own cells: equal limits must not share one."""

    requests: Cells
    tokens: Cells
    leases: Leases
    quotas: QuotaBook

    def unfit(self, subject: Subject, tokens: int) -> Sequence[Limit]:
        """The limits that a request of so many tokens does not fit, in the order in which they refuse.

        Changes nothing. The quota book must be primed for the subject.
        """
        return [limit for limit in subject.rules.limits if not self._fits(subject, limit, tokens)]

    def unfit_pass(self, subject: Subject) -> Sequence[Limit]:
        """The same for what runs nothing: it is one of the minute's requests, and of those at once."""
        limits = subject.rules.limits
        return [limit for limit in limits if limit.rule in PASSED and not self._fits(subject, limit, 0)]

    def rate_look(self, subject: Subject, limit: Limit, tokens: int) -> RateLook:
        """What a limit a minute says, for its refusal."""
        if limit.rule == "requests_per_minute":
            return self.requests.peek(subject.cell(limit), limit.rate, 1)
        return self.tokens.peek(subject.cell(limit), limit.rate, tokens)

    def concurrency_look(self, subject: Subject, limit: Limit) -> ConcurrencyLook:
        return self.leases.peek(subject.cell(limit), limit.most)

    def quota_look(self, subject: Subject, limit: Limit, tokens: int) -> QuotaLook:
        if limit.rule == "monthly_requests":
            return self.quotas.peek_requests(subject.key_id, subject.period, limit.most)
        return self.quotas.peek_tokens(subject.key_id, subject.period, limit.most, tokens)

    def take(self, subject: Subject, tokens: int) -> "Hold":
        """Take one request and its tokens from every limit. The caller has looked, and not awaited since."""
        rules = subject.rules
        tokens_taken = None
        if rules.tokens is not None:
            tokens_taken = self.tokens.commit(subject.cell(rules.tokens), rules.tokens.rate, tokens)
        self.quotas.commit(subject.key_id, subject.period, tokens)
        return Hold(self, subject, tokens, Taken(self._take_request(subject), tokens_taken, self._take_lease(subject)))

    def take_pass(self, subject: Subject) -> "Pass":
        """Take one request from the limits that hold for what runs nothing. The caller has looked, as above."""
        charge, lease = self._take_request(subject), self._take_lease(subject)
        return Pass(self.requests, charge, lease, self.headers(subject))

    def headers(self, subject: Subject) -> dict[str, str]:
        """OpenAI's rate limit headers as they stand now, and the IETF pair for requests.

        draft-ietf-httpapi-ratelimit-headers has no unit for tokens, so there the pair is only for requests.
        """
        headers: dict[str, str] = {}
        rules = subject.rules
        if (limit := rules.requests) is not None:
            look = self.requests.peek(subject.cell(limit), limit.rate, 0)
            headers |= _openai(REQUESTS, look)
            headers["ratelimit-policy"] = f'"{REQUESTS}";q={look.limit};w={limit.rate.period_s}'
            headers["ratelimit"] = f'"{REQUESTS}";r={look.remaining};t={-int(-look.reset_s // 1)}'
        if (limit := rules.tokens) is not None:
            headers |= _openai(TOKENS, self.tokens.peek(subject.cell(limit), limit.rate, 0))
        return headers

    def _fits(self, subject: Subject, limit: Limit, tokens: int) -> bool:
        rule = limit.rule
        if rule == "requests_per_minute":
            return self.requests.fits(subject.cell(limit), limit.rate, 1)
        if rule == "tokens_per_minute":
            return self.tokens.fits(subject.cell(limit), limit.rate, tokens)
        if rule == "concurrency":
            return self.leases.fits(subject.cell(limit), limit.most)
        return self.quota_look(subject, limit, tokens).fits

    def _take_request(self, subject: Subject) -> Charge | None:
        limit = subject.rules.requests
        return None if limit is None else self.requests.commit(subject.cell(limit), limit.rate, 1)

    def _take_lease(self, subject: Subject) -> Lease:
        limit = subject.rules.concurrency
        return self.leases.take(subject.key_id if limit is None else subject.cell(limit))


@dataclass(frozen=True, slots=True)
class Taken:
    """What a request took beside its quota; a charge of None is a limit that is not there."""

    requests: Charge | None
    tokens: Charge | None
    lease: Lease


class Hold:
    """What one request has taken. It ends once, by `settle` or `void`. Mutable: `reserved_tokens`, what it still holds.

    What ends it is the caller's to ensure; what it gives back is never more than it took.
    """

    def __init__(self, meters: Meters, subject: Subject, tokens: int, taken: Taken) -> None:
        self._meters = meters
        self._subject = subject
        self._taken = taken
        self.reserved_tokens = tokens

    def headers(self) -> dict[str, str]:
        """The rate limit headers of the key and the model it belongs to, as they stand now."""
        return self._meters.headers(self._subject)

    def shrink(self, tokens: int) -> None:
        """Hold only `tokens` from now on."""
        given_back = self.reserved_tokens - tokens
        self._meters.quotas.shrink(self._subject.key_id, self._subject.period, given_back)
        self._refund(given_back)
        self.reserved_tokens = tokens

    def settle(self, used: int) -> None:
        """The request is over and used this many tokens."""
        key_id, period = self._subject.key_id, self._subject.period
        self._meters.quotas.settle(key_id, period, reserved=self.reserved_tokens, used=used)
        if used <= self.reserved_tokens:
            self._refund(self.reserved_tokens - used)
        elif self._taken.tokens is not None:
            # A foreign upstream may go over; what was produced is owed, by the next ones if need be.
            charge = self._taken.tokens
            self._meters.tokens.commit(charge.subject, charge.rate, used - self.reserved_tokens)
        self._taken.lease.release()

    def void(self) -> None:
        """Nothing of the request ran: it is as if it had never been let in."""
        self._meters.quotas.void(self._subject.key_id, self._subject.period, reserved=self.reserved_tokens)
        self._refund(self.reserved_tokens)
        if self._taken.requests is not None:
            self._meters.requests.refund(self._taken.requests, 1)
        self._taken.lease.release()

    def _refund(self, tokens: int) -> None:
        if self._taken.tokens is not None:
            self._meters.tokens.refund(self._taken.tokens, tokens)


class Pass:
    """The right to ask something that runs nothing. Used as `with`: who is refused after all gets the request back.

    Entering it gives the key's rate limit headers, with this request taken.
    """

    def __init__(self, requests: Cells, charge: Charge | None, lease: Lease, headers: dict[str, str]) -> None:
        self._requests = requests
        self._charge = charge
        self._lease = lease
        self._headers = headers

    def __enter__(self) -> dict[str, str]:
        return self._headers

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if exc is not None and self._charge is not None:
            self._requests.refund(self._charge, 1)
        self._lease.release()


def _openai(kind: str, look: RateLook) -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{kind}": str(look.limit),
        f"x-ratelimit-remaining-{kind}": str(look.remaining),
        f"x-ratelimit-reset-{kind}": duration(look.reset_s),
    }
