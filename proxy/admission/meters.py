"""All limits of a key side by side: look at all of them, take from all of them, and give back what was not used.

Everything here is synchronous, so between a look and the taking nothing else runs. What to refuse is `gate`'s business.
"""

import datetime as dt
from collections.abc import Collection
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Protocol

import msgspec

from proxy.admission import refusal
from proxy.admission.concurrency import ConcurrencyLook, Lease, Leases
from proxy.admission.quota import QuotaBook, QuotaLook
from proxy.admission.rate import Cells, Charge, RateLook
from proxy.admission.refusal import REQUESTS, duration
from proxy.admission.rules import OF_ACCOUNT, Limit, Rules, SoftQuota
from proxy.store.standing import QuotaExceededError
from proxy.verdict import SHADOW, WARN, RefusedError, Remark

WARNING_HEADER: Final = "x-tollhouse-quota-warning"
# What holds for something that runs nothing, too.
PASSED: Final = frozenset({"requests_per_minute", "concurrency"})


class Subject(msgspec.Struct, frozen=True):
    """Whose limits: a key of an account under its rules, in a month. It is a `Payer` of the quota book.

    `placed`: the request that they are looked at for has its place among those at once already, or may wait for one.
    """

    key_id: str
    account_id: str
    rules: Rules
    period: str
    placed: bool = False

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

    def unfit(self, subject: Subject, size: "Size") -> list[Limit]:
        """The limits that a request of this size does not fit, in the order in which they refuse.

        Changes nothing. The quota book must be primed for the subject.
        """
        tokens, tried = size.tokens, size.tried
        return [
            limit for limit in subject.rules.limits if not self._fits(subject, limit, tried if limit.shadow else tokens)
        ]

    def unfit_pass(self, subject: Subject) -> list[Limit]:
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
        account = limit.rule in OF_ACCOUNT
        if limit.sized:
            return self.quotas.peek_tokens(subject, limit.most, tokens, account=account)
        return self.quotas.peek_requests(subject, limit.most, account=account)

    def warnings(self, subject: Subject) -> list["Warned"]:
        """The soft quotas that are used up, as they stand now."""
        used = {
            "monthly_requests": self.quotas.peek_requests(subject, None).used,
            "monthly_tokens": self.quotas.peek_tokens(subject, None, 0).used,
        }
        return [Warned(quota, used[quota.counts]) for quota in subject.rules.soft if used[quota.counts] > quota.most]

    def take(
        self,
        subject: Subject,
        size: "Size",
        shadows: Collection[Limit] = (),
        *,
        lease: Lease | None = None,
        part: "Beyond | None" = None,
    ) -> "Hold":
        """Take one request and its tokens from every limit. The caller has looked, and not awaited since.

        `lease` is the one that the request has already, if it is `placed`; `part` what it has of all proxies' limits.
        `shadows` did not fit and let pass: in force they would have kept the request out, so they do not count it.
        """
        limit, tokens = subject.rules.tokens, None
        if limit is not None and limit not in shadows:
            tokens = self.tokens.commit(subject.cell(limit), limit.rate, size.under(limit))
        self.quotas.commit(subject, size.tokens)
        taken = Taken(self._take_request(subject, shadows), tokens, lease or self._take_lease(subject, shadows), part)
        return Hold(self, subject, size.tokens, taken)

    def take_pass(self, subject: Subject, shadows: Collection[Limit] = (), *, part: "Beyond | None" = None) -> "Pass":
        """Take one request from the limits that hold for what runs nothing. The caller has looked, as above."""
        taken = Taken(self._take_request(subject, shadows), None, self._take_lease(subject, shadows), part)
        return Pass(self.requests, taken, self.headers(subject), remarks(shadows))

    def headers(self, subject: Subject) -> dict[str, str]:
        """OpenAI's rate limit headers as they stand now, and the IETF pair for requests. A limit in shadow has none.

        draft-ietf-httpapi-ratelimit-headers has no unit for tokens, so there the pair is only for requests.
        """
        headers: dict[str, str] = {}
        rules = subject.rules
        if (limit := rules.requests) is not None and not limit.shadow:
            look = self.requests.peek(subject.cell(limit), limit.rate, 0)
            headers["x-ratelimit-limit-requests"] = str(look.limit)
            headers["x-ratelimit-remaining-requests"] = str(look.remaining)
            headers["x-ratelimit-reset-requests"] = duration(look.reset_s)
            headers["ratelimit-policy"] = f'"{REQUESTS}";q={look.limit};w={limit.rate.period_s}'
            headers["ratelimit"] = f'"{REQUESTS}";r={look.remaining};t={-int(-look.reset_s // 1)}'
        if (limit := rules.tokens) is not None and not limit.shadow:
            look = self.tokens.peek(subject.cell(limit), limit.rate, 0)
            headers["x-ratelimit-limit-tokens"] = str(look.limit)
            headers["x-ratelimit-remaining-tokens"] = str(look.remaining)
            headers["x-ratelimit-reset-tokens"] = duration(look.reset_s)
        return headers

    def _fits(self, subject: Subject, limit: Limit, tokens: int) -> bool:
        rule = limit.rule
        if limit.elsewhere:
            return True
        if rule == "requests_per_minute":
            return self.requests.fits(subject.cell(limit), limit.rate, 1)
        if rule == "tokens_per_minute":
            return self.tokens.fits(subject.cell(limit), limit.rate, tokens)
        if rule == "concurrency":
            return subject.placed or self.leases.fits(subject.cell(limit), limit.most)
        return self.quota_look(subject, limit, tokens).fits

    def _take_request(self, subject: Subject, shadows: Collection[Limit]) -> Charge | None:
        limit = subject.rules.requests
        if limit is None or limit in shadows:
            return None
        return self.requests.commit(subject.cell(limit), limit.rate, 1)

    def _take_lease(self, subject: Subject, shadows: Collection[Limit]) -> Lease | None:
        limit = subject.rules.concurrency
        if limit is None:
            return self.leases.take(subject.key_id)
        return None if limit in shadows else self.leases.take(subject.cell(limit))


class Size(msgspec.Struct, frozen=True):
    """What a request may take, in tokens; `tried` is what it would take if the limits in shadow were in force."""

    tokens: int
    tried: int

    def under(self, limit: Limit) -> int:
        return self.tried if limit.shadow else self.tokens


class Warned(msgspec.Struct, frozen=True):
    """A soft quota that is used up."""

    quota: SoftQuota
    used: int

    @property
    def text(self) -> str:
        end = "" if self.quota.hard is None else f"; limit={self.quota.hard}"
        return f"{self.quota.counts}; used={self.used}; soft={self.quota.most}{end}"


NO_SIZE: Final = Size(0, 0)


class Beyond(Protocol):
    """What a request holds of what is counted for all proxies; see `proxy.admission.fleet.Part`."""

    def charge_only(self, tokens: int) -> None: ...
    def void(self) -> None: ...
    def release(self) -> None: ...


class Taken(msgspec.Struct, frozen=True):
    """What a request took beside its quota; None is from a limit that is not there, or that did not count it."""

    requests: Charge | None
    tokens: Charge | None
    lease: Lease | None
    part: Beyond | None = None


class Hold:
    """What one request has taken. It ends once, by `settle` or `void`.

    Mutable: `reserved_tokens`, what it still holds of its quota, and `_charged`, of its minute.
    What ends it is the caller's to ensure; what it gives back is never more than it took.
    """

    def __init__(self, meters: Meters, subject: Subject, tokens: int, taken: Taken) -> None:
        self._meters = meters
        self._subject = subject
        self._taken = taken
        self._charged = 0 if taken.tokens is None else taken.tokens.units
        self.reserved_tokens = tokens

    def headers(self) -> dict[str, str]:
        """The rate limits of the key and the model it belongs to, as they stand now, and what soft quotas say."""
        headers = self._meters.headers(self._subject)
        if self._subject.rules.soft and (warned := self._meters.warnings(self._subject)):
            headers[WARNING_HEADER] = ", ".join(warning.text for warning in warned)
        return headers

    def shrink(self, tokens: int) -> None:
        """Hold only `tokens` from now on."""
        self._meters.quotas.shrink(self._subject, self.reserved_tokens - tokens)
        self._charge_only(tokens)
        self.reserved_tokens = tokens

    def settle(self, used: int) -> None:
        """The request is over and used this many tokens."""
        self._meters.quotas.settle(self._subject, reserved=self.reserved_tokens, used=used)
        if self._taken.tokens is not None and used > self._charged:
            # A foreign upstream may go over; what was produced is owed, by the next ones if need be.
            charge = self._taken.tokens
            self._meters.tokens.commit(charge.subject, charge.rate, used - self._charged)
        self._charge_only(used)
        self._release()
        if self._taken.part is not None:
            self._taken.part.release()

    def exceeded(self, found: QuotaExceededError, now: dt.datetime) -> RefusedError:
        """The refusal of a quota that the ledger found used up, by other processes too: what is known here is old."""
        self._meters.quotas.doubt(self._subject)
        limit = next(limit for limit in self._subject.rules.limits if limit.rule == found.rule)
        look = QuotaLook(found.limit, found.used, found.requested)
        return refusal.quota(limit, look, self._meters.headers(self._subject), now)

    def void(self) -> None:
        """Nothing of the request ran: it is as if it had never been let in."""
        self._meters.quotas.void(self._subject, reserved=self.reserved_tokens)
        self._charge_only(0)
        if self._taken.requests is not None:
            self._meters.requests.refund(self._taken.requests, 1)
        self._release()
        if self._taken.part is not None:
            self._taken.part.void()

    def _charge_only(self, tokens: int) -> None:
        """Give back what the minute was charged beyond this."""
        if self._taken.part is not None:
            self._taken.part.charge_only(tokens)
        if self._taken.tokens is not None and tokens < self._charged:
            self._meters.tokens.refund(self._taken.tokens, self._charged - tokens)
            self._charged = tokens

    def _release(self) -> None:
        if self._taken.lease is not None:
            self._taken.lease.release()


class Pass:
    """The right to ask something that runs nothing. Used as `with`: who is refused after all gets the request back.

    Entering it gives the key's rate limit headers, with this request taken. `remarks`: what limits in shadow said.
    """

    def __init__(
        self,
        requests: Cells,
        taken: Taken,
        headers: dict[str, str],
        remarks: tuple[Remark, ...],
    ) -> None:
        self._requests = requests
        self._taken = taken
        self._headers = headers
        self.remarks = remarks

    def __enter__(self) -> dict[str, str]:
        return self._headers

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        taken = self._taken
        if exc is not None and taken.requests is not None:
            self._requests.refund(taken.requests, 1)
        if taken.lease is not None:
            taken.lease.release()
        if taken.part is not None:
            taken.part.release() if exc is None else taken.part.void()


def remarks(shadows: Collection[Limit], warned: Collection[Warned] = ()) -> tuple[Remark, ...]:
    """What limits in shadow and soft quotas are to be quoted with."""
    said = (Remark(f"soft_{warning.quota.counts}", WARN) for warning in warned)
    return (*(Remark(limit.rule, SHADOW) for limit in shadows), *said)
