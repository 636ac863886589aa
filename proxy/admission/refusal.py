"""What a client is told whom admission refuses: which rule, its limit, what is used, and when to come again.

Bodies follow OpenAI's API reference ("Error codes"), message wording its rate limit guide. No decision is made here.
"""

import datetime as dt
import math
from typing import Final

from proxy.admission.concurrency import ConcurrencyLook
from proxy.admission.quota import QuotaLook
from proxy.admission.rate import RateLook
from proxy.admission.rules import OUTPUT, Limit
from proxy.clock import seconds_to_next_month
from proxy.verdict import RefusedError
from sidecar.wire.errors import SERVICE_UNAVAILABLE, ApiError, bad_request

REQUESTS: Final = "requests"
TOKENS: Final = "tokens"
INSUFFICIENT_QUOTA: Final = "insufficient_quota"
# Nobody knows when a running request ends; a second is long for a short one and soon enough for a long one.
CONCURRENCY_RETRY_S: Final = 1.0


def duration(seconds: float) -> str:
    """As Go writes it and OpenAI's headers have it: `0s`, `12ms`, `1.5s`, `6m0s`, `1h0m0s`; rounded up to 1 ms."""
    milliseconds = math.ceil(round(seconds * 1e6) / 1e3)
    if milliseconds < 1000:
        return f"{milliseconds}ms" if milliseconds else "0s"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text


def model_not_found(model: str) -> RefusedError:
    """The same for a model that is not there and for one that the key may not use, so that names do not leak."""
    return RefusedError(
        "models",
        404,
        f"The model '{model[:200]}' does not exist or you do not have access to it.",
        code="model_not_found",
        param="model",
    )


def too_much_output(param: str, limit: int, whose: str) -> RefusedError:
    return RefusedError(
        OUTPUT, 400, f"'{param}' must be at most {limit} {whose}.", param=param, code="integer_above_max_value"
    )


def context_exceeded(prompt_tokens: int, max_context: int, param: str) -> ApiError:
    return bad_request(
        f"This model's maximum context length is {max_context} tokens. However, your prompt has {prompt_tokens} tokens "
        "and leaves no room for an answer. Please shorten it.",
        param=param,
        code="context_length_exceeded",
    )


def rate(limit: Limit, look: RateLook, headers: dict[str, str]) -> RefusedError:
    """Too many requests or tokens this minute; or, when it could never fit, more than a whole minute's."""
    kind = _kind(limit)
    rule = f"{kind} per minute {limit.whose}"
    if look.retry_after_s is None:
        return RefusedError(
            limit.rule,
            429,
            f"Request too large for {rule}: Limit {look.limit}, Requested {look.requested}. "
            "Please shorten the prompt or ask for less output.",
            type=kind,
            code="rate_limit_exceeded",
            should_retry=False,
            headers=headers,
        )
    return RefusedError(
        limit.rule,
        429,
        f"Rate limit reached for {rule}: Limit {look.limit}, Used {look.used}, Requested {look.requested}. "
        f"Please try again in {duration(look.retry_after_s)}.",
        type=kind,
        code="rate_limit_exceeded",
        retry_after_s=look.retry_after_s,
        headers=headers,
    )


def concurrency(limit: Limit, look: ConcurrencyLook, headers: dict[str, str]) -> RefusedError:
    return RefusedError(
        limit.rule,
        429,
        f"Too many requests at once {limit.whose}: Limit {look.limit}, Used {look.running}, Requested 1. "
        "Please try again when one has ended.",
        type=REQUESTS,
        code="concurrency_limit_exceeded",
        retry_after_s=CONCURRENCY_RETRY_S,
        headers=headers,
    )


def quota(limit: Limit, look: QuotaLook, headers: dict[str, str], now: dt.datetime) -> RefusedError:
    """The month's requests or tokens do not suffice. The wait is until the next month; nothing sooner helps."""
    renewed_in_s = seconds_to_next_month(now)
    renewed = now + dt.timedelta(seconds=renewed_in_s)
    figures = f"Limit {look.limit}, Used {look.used}, Requested {look.requested}"
    rule = f"monthly {_kind(limit)} {limit.whose}: {figures}"
    if look.limit is not None and look.requested > look.limit:
        return RefusedError(
            limit.rule,
            429,
            f"Request too large for the {rule}. Please shorten the prompt or ask for less output.",
            type=INSUFFICIENT_QUOTA,
            code=INSUFFICIENT_QUOTA,
            should_retry=False,
            headers=headers,
        )
    return RefusedError(
        limit.rule,
        429,
        f"You exceeded your current quota of {rule}. It is renewed at {renewed:%Y-%m-%dT%H:%M:%SZ}.",
        type=INSUFFICIENT_QUOTA,
        code=INSUFFICIENT_QUOTA,
        retry_after_s=renewed_in_s,
        should_retry=False,
        headers=headers,
    )


def overloaded(wait_s: float, headers: dict[str, str]) -> RefusedError:
    return RefusedError(
        "overload",
        503,
        f"The server is overloaded. Please try again in {duration(wait_s)}.",
        type=SERVICE_UNAVAILABLE,
        code="server_is_overloaded",
        retry_after_s=wait_s,
        should_retry=True,
        headers=headers,
    )


def _kind(limit: Limit) -> str:
    """What a limit counts, as OpenAI's errors and headers name it."""
    return TOKENS if "tokens" in limit.rule else REQUESTS
