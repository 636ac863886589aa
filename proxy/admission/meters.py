"""All limits of a key side by side: look at all of them, take from all of them, and give back what was not used.

Everything here is synchronous, so between a look and the taking nothing else runs. What to refuse is `gate`'s business.
"""

from dataclasses import dataclass
from types import TracebackType

from proxy.admission.concurrency import ConcurrencyLook, Lease, Leases
from proxy.admission.quota import QuotaBook, QuotaLook
from proxy.admission.rate import Cells, Charge, Rate, RateLook
from proxy.admission.refusal import REQUESTS, TOKENS, duration
from proxy.policy.schema import Tier


@dataclass(frozen=True, slots=True)
class Subject:
    """Whose limits: a key under a tier, in a month."""

    key_id: str
    tier: Tier
    period: str


@dataclass(frozen=True, slots=True)
class Looks:
    """What each limit says to one request. None where there is no limit."""

    requests: RateLook | None
    tokens: RateLook | None
    concurrency: ConcurrencyLook
    monthly_requests: QuotaLook
    monthly_tokens: QuotaLook

    @property
    def tokens_fit(self) -> bool:
        return (self.tokens is None or self.tokens.fits) and self.monthly_tokens.fits

    @property
    def others_fit(self) -> bool:
        """Whether everything fits that does not depend on the size of the request."""
        return (self.requests is None or self.requests.fits) and self.concurrency.fits and self.monthly_requests.fits


@dataclass(frozen=True, slots=True)
class Meters:
    """One of each kind. Requests and tokens have their own cells: equal limits must not share one."""

    requests: Cells
    tokens: Cells
    leases: Leases
    quotas: QuotaBook

    def peek(self, subject: Subject, tokens: int) -> Looks:
        """Changes nothing. The quota book must be primed for the subject."""
        key_id, tier = subject.key_id, subject.tier
        return Looks(
            requests=_look(self.requests, key_id, tier.requests_per_minute, 1),
            tokens=_look(self.tokens, key_id, tier.tokens_per_minute, tokens),
            concurrency=self.leases.peek(key_id, tier.concurrency),
            monthly_requests=self.quotas.peek_requests(key_id, subject.period, tier.monthly_requests),
            monthly_tokens=self.quotas.peek_tokens(key_id, subject.period, tier.monthly_tokens, tokens),
        )

    def take(self, subject: Subject, tokens: int) -> "Hold":
        """Take one request and its tokens from every limit. The caller has looked, and not awaited since."""
        key_id, tier = subject.key_id, subject.tier
        requests = tokens_taken = None
        if tier.requests_per_minute is not None:
            requests = self.requests.commit(key_id, Rate(tier.requests_per_minute), 1)
        if tier.tokens_per_minute is not None:
            tokens_taken = self.tokens.commit(key_id, Rate(tier.tokens_per_minute), tokens)
        self.quotas.commit(key_id, subject.period, tokens)
        taken = Taken(requests, tokens_taken, self.leases.take(key_id))
        return Hold(self, subject, tokens, taken)

    def peek_pass(self, key_id: str, tier: Tier) -> tuple[RateLook | None, ConcurrencyLook]:
        """What the limits say that also hold for what runs nothing: requests a minute, and requests at once."""
        return _look(self.requests, key_id, tier.requests_per_minute, 1), self.leases.peek(key_id, tier.concurrency)

    def take_pass(self, key_id: str, tier: Tier) -> "Pass":
        """Take one request from these two. The caller has looked, and not awaited since."""
        limit = tier.requests_per_minute
        charge = None if limit is None else self.requests.commit(key_id, Rate(limit), 1)
        return Pass(self.requests, charge, self.leases.take(key_id), self.headers(key_id, tier))

    def headers(self, key_id: str, tier: Tier) -> dict[str, str]:
        """OpenAI's rate limit headers as they stand now, and the IETF pair for requests.

        draft-ietf-httpapi-ratelimit-headers has no unit for tokens, so there the pair is only for requests.
        """
        headers: dict[str, str] = {}
        looks = (
            (REQUESTS, _look(self.requests, key_id, tier.requests_per_minute, 0)),
            (TOKENS, _look(self.tokens, key_id, tier.tokens_per_minute, 0)),
        )
        for kind, look in looks:
            if look is not None:
                headers[f"x-ratelimit-limit-{kind}"] = str(look.limit)
                headers[f"x-ratelimit-remaining-{kind}"] = str(look.remaining)
                headers[f"x-ratelimit-reset-{kind}"] = duration(look.reset_s)
        if (look := looks[0][1]) is not None:
            headers["ratelimit-policy"] = f'"{REQUESTS}";q={look.limit};w={Rate(look.limit).period_s}'
            headers["ratelimit"] = f'"{REQUESTS}";r={look.remaining};t={-int(-look.reset_s // 1)}'
        return headers


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
        """The rate limit headers of the key it belongs to, as they stand now."""
        return self._meters.headers(self._subject.key_id, self._subject.tier)

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
            self._meters.tokens.commit(key_id, self._taken.tokens.rate, used - self.reserved_tokens)
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


def _look(cells: Cells, key_id: str, limit: int | None, units: int) -> RateLook | None:
    return None if limit is None else cells.peek(key_id, Rate(limit), units)
