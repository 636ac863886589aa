"""The OpenAI error object, as an exception and as bytes: the same from the proxy and from the sidecar.

Status, type and code follow OpenAI's API reference ("Error codes") and its SDKs' exception classes. Only the boundary
writes a response from an `ApiError`; everyone else raises one. Constructing one has no side effects.
"""

import math
from typing import Final

import msgspec

INVALID_REQUEST: Final = "invalid_request_error"
SERVICE_UNAVAILABLE: Final = "service_unavailable_error"
SERVER_ERROR: Final = "server_error"


class ErrorObject(msgspec.Struct, frozen=True):
    """The four keys of OpenAI's error object; `code` is a string or null, never a number."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct, frozen=True):
    """The body of every 4xx and 5xx on /v1, and the payload of an error event in a stream."""

    error: ErrorObject


class ApiError(Exception):
    """A refusal or failure that a client is told about. Raised anywhere, written only at the boundary.

    `retry_after_s` becomes `retry-after` and `retry-after-ms`; `should_retry` becomes `x-should-retry`, which overrides
    the SDKs' own rule (they retry 408, 409, 429 and every 5xx).
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = INVALID_REQUEST,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
        should_retry: bool | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s
        self.should_retry = should_retry
        self.extra_headers = headers or {}

    def body(self) -> bytes:
        """The JSON body, one line."""
        return msgspec.json.encode(ErrorBody(ErrorObject(self.message, self.type, self.param, self.code)))

    def event(self) -> bytes:
        """The server-sent event that ends a stream after its head is out; no `[DONE]` may follow."""
        return b"data: " + self.body() + b"\n\n"

    def headers(self) -> dict[str, str]:
        """The headers that go with the answer; `retry-after` is whole seconds, rounded up, at least 1."""
        headers = dict(self.extra_headers)
        if self.retry_after_s is not None:
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after_s)))
            headers["retry-after-ms"] = str(max(1, math.ceil(self.retry_after_s * 1000)))
        if self.should_retry is not None:
            headers["x-should-retry"] = "true" if self.should_retry else "false"
        return headers


def bad_request(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    """A 400 that names the field at fault."""
    return ApiError(400, message, param=param, code=code)


def unavailable(message: str, *, code: str, retry_after_s: float) -> ApiError:
    """A 503 that the SDKs retry after `retry_after_s`."""
    return ApiError(503, message, type=SERVICE_UNAVAILABLE, code=code, retry_after_s=retry_after_s, should_retry=True)


def internal_error() -> ApiError:
    """A 500 that says nothing of the inside; the cause goes to the log under the request id."""
    return ApiError(500, "The server had an error while processing your request.", type=SERVER_ERROR)


def parse_error(status: int, body: bytes) -> ApiError:
    """Read an error body from an upstream back into the exception; a foreign body becomes a plain message."""
    try:
        error = msgspec.json.decode(body, type=ErrorBody).error
    except msgspec.MsgspecError:
        kind = SERVER_ERROR if status >= 500 else INVALID_REQUEST
        return ApiError(status, f"The upstream answered {status}.", type=kind)
    return ApiError(status, error.message, type=error.type, code=error.code, param=error.param)
