"""What a key, or all keys of an account, have used and set aside in a period, and what they may: pure, no SQL."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Standing:
    """How much of a period is used and set aside."""

    settled_tokens: int = 0
    reserved_tokens: int = 0
    settled_requests: int = 0
    reserved_requests: int = 0

    @property
    def tokens(self) -> int:
        return self.settled_tokens + self.reserved_tokens

    @property
    def requests(self) -> int:
        return self.settled_requests + self.reserved_requests


@dataclass(frozen=True, slots=True)
class Monthly:
    """The hard quotas that a reservation must fit, by the names of their rules. None is no limit."""

    monthly_requests: int | None = None
    monthly_tokens: int | None = None
    account_monthly_requests: int | None = None
    account_monthly_tokens: int | None = None

    @property
    def any(self) -> bool:
        return self != UNLIMITED

    @property
    def any_of_account(self) -> bool:
        return self.account_monthly_requests is not None or self.account_monthly_tokens is not None


UNLIMITED: Final = Monthly()


class QuotaExceededError(Exception):
    """A reservation does not fit: `used` is what is used and set aside without it, other processes' share included."""

    def __init__(self, rule: str, limit: int, used: int, requested: int) -> None:
        super().__init__(f"{rule}: limit {limit}, used {used}, requested {requested}")
        self.rule = rule
        self.limit = limit
        self.used = used
        self.requested = requested


def exceeded(limits: Monthly, key: Standing, account: Standing, tokens: int) -> QuotaExceededError | None:
    """Why one more request of so many tokens does not fit; None if it does."""
    looks = (
        ("monthly_requests", limits.monthly_requests, key.requests, 1),
        ("monthly_tokens", limits.monthly_tokens, key.tokens, tokens),
        ("account_monthly_requests", limits.account_monthly_requests, account.requests, 1),
        ("account_monthly_tokens", limits.account_monthly_tokens, account.tokens, tokens),
    )
    for rule, limit, used, requested in looks:
        if limit is not None and used + requested > limit:
            return QuotaExceededError(rule, limit, used, requested)
    return None
