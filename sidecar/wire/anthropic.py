"""What proxy and sidecar have in common of Anthropic's API: its paths, its error object, and the end of its streams.

Types follow Anthropic's API reference ("Errors"); statuses stay those of the `ApiError`. Between the two processes an
error that comes before an answer is OpenAI's object, which has a code: the proxy tells it in the client's shape.
"""

from typing import Final

import msgspec

from sidecar.wire.errors import ApiError
from sidecar.wire.internal import Endpoint

COUNT_TOKENS: Final = "/v1/messages/count_tokens"
PATHS: Final = frozenset({Endpoint.MESSAGES.value, COUNT_TOKENS})
MESSAGE_STOP: Final = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
# How an error event begins.
ERROR_EVENT: Final = b"event: error\n"

_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class ErrorObject(msgspec.Struct, frozen=True):
    """Anthropic's error object: what OpenAI says in a param of its own stands in the message."""

    type: str
    message: str


class ErrorBody(msgspec.Struct, frozen=True, tag_field="type", tag="error"):
    """The body of every 4xx and 5xx on Anthropic's paths, and the payload of an error event in a stream."""

    error: ErrorObject
    request_id: str


def error_body(error: ApiError, request_id: str) -> bytes:
    """The JSON body, one line."""
    kind = _TYPES.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
    message = error.message
    if error.param is not None and error.param not in message:
        message = f"{error.param}: {message}"
    return msgspec.json.encode(ErrorBody(ErrorObject(kind, message), request_id))


def error_event(error: ApiError, request_id: str) -> bytes:
    """The server-sent event that ends a stream after its head is out."""
    return ERROR_EVENT + b"data: " + error_body(error, request_id) + b"\n\n"
