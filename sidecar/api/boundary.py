"""Where errors become answers, and the only place: the middleware around all handlers, and the reading of a body.

Each answer carries `x-request-id`, a refusal the error object of OpenAI, or of Anthropic to its clients. Nothing of a
stranger's bytes goes into the log.
"""

from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from sidecar.jsonlog import JsonLog
from sidecar.protocol.ticket import is_request_id, named, new_request_id
from sidecar.wire.anthropic import PATHS, error_body
from sidecar.wire.errors import INVALID_REQUEST, ApiError, internal_error
from sidecar.wire.internal import REQUEST_ID as REQUEST_ID_HEADER
from sidecar.wire.trace_context import TRACEPARENT_HEADER, read_parent

REQUEST_ID: Final = web.RequestKey("request_id", str)
_SHOWN_CHARS: Final = 200


def boundary(log: JsonLog) -> Middleware:
    """The middleware that names each request and writes each error."""

    @web.middleware
    async def around(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get(REQUEST_ID_HEADER, "")
        request_id = given if is_request_id(given) else new_request_id()
        request[REQUEST_ID] = request_id
        # A proxy reads OpenAI's object.
        anthropic = request.path in PATHS and REQUEST_ID_HEADER not in request.headers

        def answer(error: ApiError) -> web.Response:
            return error_response(error, error_body(error, request_id) if anthropic else error.body())

        def ids() -> dict[str, str]:
            return named(request_id, read_parent(request.headers.get(TRACEPARENT_HEADER)))

        try:
            response = await handler(request)
        except ApiError as error:
            log.info("request_refused", **ids(), status=error.status, error_code=error.code)
            response = answer(error)
        except web.HTTPException as exc:
            response = answer(_from_http(request, exc))
        except Exception as exc:
            log.exception("handler_failed", exc, **ids())
            response = answer(internal_error())
        if not response.prepared:
            response.headers["x-request-id"] = request_id
        return response

    return around


def error_response(error: ApiError, body: bytes) -> web.Response:
    return web.Response(status=error.status, body=body, headers={**error.headers(), "content-type": "application/json"})


async def read_body(request: web.Request, max_bytes: int) -> bytes:
    """Raises ApiError 413 or 415, by the declared length before anything is read."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "Only identity bodies are accepted here.", code="unsupported_media_type")
    if (request.content_length or 0) > max_bytes:
        raise _too_large(max_bytes)
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge as exc:
        raise _too_large(max_bytes) from exc


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(413, f"The request body may have {max_bytes} bytes at most.", code="request_too_large")


def _from_http(request: web.Request, exc: web.HTTPException) -> ApiError:
    """Refusals of aiohttp's own: no such route, or none for this method."""
    place = f"{request.method} {request.path}"[:_SHOWN_CHARS]
    if isinstance(exc, web.HTTPMethodNotAllowed):
        return ApiError(
            405,
            f"Method not allowed: {place}.",
            code="method_not_supported",
            headers={"allow": ", ".join(sorted(exc.allowed_methods))},
        )
    if exc.status == 404:
        return ApiError(404, f"Unknown request URL: {place}. Please check the URL for typos.", code="unknown_url")
    return ApiError(exc.status, "The request cannot be served.", type=INVALID_REQUEST)
