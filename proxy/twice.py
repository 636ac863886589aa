"""What a client is told whose request came before, or may have. No decision is made here.

Never a 409 that invites a retry where one would sign anew and pass: the SDKs retry 409 unless they are told not to.
"""

import datetime as dt
from email.utils import format_datetime
from typing import Final

from proxy.signing import IDEMPOTENCY_KEY
from proxy.store.claims import ClaimTakenError, Nonce
from sidecar.wire.errors import ApiError, bad_request, unavailable

NONCE_HEADER: Final = "x-request-nonce"


def taken(error: ClaimTakenError) -> ApiError:
    """What a request is told that wanted what another has."""
    return seen(error.claim) if isinstance(error.claim, Nonce) else idempotency_in_progress()


def seen(nonce: Nonce) -> ApiError:
    return nonce_replayed() if nonce.signed else duplicate_request()


def duplicate_request() -> ApiError:
    return ApiError(
        409,
        "A request with this X-Request-Nonce was received before. Send a new nonce with a new request.",
        code="duplicate_request",
        param=NONCE_HEADER,
        should_retry=False,
    )


def nonce_replayed() -> ApiError:
    return ApiError(
        401,
        "This signed request was received before. Sign each request anew, with a nonce of its own.",
        code="nonce_replayed",
        should_retry=False,
    )


def invalid_signature(why: str) -> ApiError:
    return ApiError(
        401,
        f"The request's signature is not good. {why}",
        code="invalid_signature",
        should_retry=False,
        headers={"www-authenticate": "Bearer"},
    )


def signature_expired(why: str, now: dt.datetime) -> ApiError:
    """With our time, so that a client finds out which of the two clocks is wrong."""
    return ApiError(
        401,
        f"The request's signature is not of now. {why}",
        code="signature_expired",
        should_retry=False,
        headers={"date": format_datetime(now, usegmt=True)},
    )


def missing_nonce() -> ApiError:
    return ApiError(
        400,
        "This API key's tier wants each request to have an X-Request-Nonce header: 16 to 64 letters, digits, "
        "'_' or '-', new for each request.",
        code="missing_required_parameter",
        param=NONCE_HEADER,
    )


def bad_nonce() -> ApiError:
    return ApiError(
        400,
        "The X-Request-Nonce header must be given once, with 16 to 64 letters, digits, '_' or '-'.",
        code="invalid_value",
        param=NONCE_HEADER,
    )


def bad_idempotency_key() -> ApiError:
    return bad_request(
        "The Idempotency-Key header must be given once, with 1 to 255 visible ASCII characters.",
        code="invalid_value",
        param=IDEMPOTENCY_KEY,
    )


def idempotency_mismatch() -> ApiError:
    return ApiError(
        422,
        "This Idempotency-Key was used for another request. Use a new one for new work.",
        code="idempotency_mismatch",
        param=IDEMPOTENCY_KEY,
        should_retry=False,
    )


def idempotency_in_progress() -> ApiError:
    """Nobody knows when a running request ends; a second is long for a short one and soon enough for a long one."""
    return ApiError(
        409,
        "A request with this Idempotency-Key is running. Try again when it has ended.",
        code="idempotency_in_progress",
        param=IDEMPOTENCY_KEY,
        retry_after_s=1.0,
    )


def idempotency_done() -> ApiError:
    return ApiError(
        409,
        "The request with this Idempotency-Key is done, and its answer was not kept.",
        code="idempotency_done",
        param=IDEMPOTENCY_KEY,
        should_retry=False,
    )


def idempotency_stream_done() -> ApiError:
    return ApiError(
        409,
        "The request with this Idempotency-Key is done. It was streamed, and streams are not kept.",
        code="idempotency_stream_done",
        param=IDEMPOTENCY_KEY,
        should_retry=False,
    )


def store_unavailable(wait_s: float = 1.0) -> ApiError:
    return unavailable(
        "Whether this request was received before cannot be told now.",
        code="replay_store_unavailable",
        retry_after_s=wait_s,
    )
