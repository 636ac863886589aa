"""A call that was sent to a sidecar, and its answer.

Foreign exceptions (the socket's, time-outs) end here: what leaves is an `ApiError` when the request never began or was
refused, and `UpstreamLostError` when it may have begun.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Final

from proxy.answers import Head
from proxy.settings import Timeouts
from proxy.uplink import AbsentError, Uplink
from sidecar.wire import internal
from sidecar.wire.errors import ApiError, parse_error, unavailable

MAX_BODY_BYTES: Final = 64 * 1024 * 1024
RETRY_HEADERS: Final = ("retry-after", "retry-after-ms", "x-should-retry")


class UpstreamLostError(Exception):
    """The sidecar went silent or broke off after a request may have begun. `timed_out` tells which."""

    def __init__(self, *, timed_out: bool = False) -> None:
        super().__init__("timed out" if timed_out else "connection lost")
        self.timed_out = timed_out


class UpstreamRefusedError(ApiError):
    """The sidecar answered with an error before anything ran; the client is told the same."""


class Answer:
    """An answer under way: its head is here, its body is read piece by piece."""

    def __init__(self, connection: Uplink, head: Head, between_bytes_s: float) -> None:
        self.head = head
        self._connection = connection
        self._between_bytes_s = between_bytes_s

    @property
    def prompt_tokens(self) -> int | None:
        """The exact prompt, if the sidecar said it."""
        text = self.head.headers.get(internal.PROMPT_TOKENS, "")
        return int(text) if text.isascii() and text.isdigit() else None

    @property
    def ignored(self) -> str | None:
        """The fields of the body that the sidecar ignored, for the client's eyes."""
        return self.head.headers.get(internal.IGNORED)

    async def piece(self) -> bytes:
        """What has come since the last call, at least a byte; empty at a proper end. Raises UpstreamLostError."""
        try:
            return await self._connection.piece(self._between_bytes_s)
        except OSError as exc:
            raise _lost(exc) from exc

    async def each(self, take: Callable[[bytes], bool]) -> bool:
        """Give `take` what comes, until that says no; whether it did, before a proper end.

        Raises UpstreamLostError, and what `take` raises.
        """
        try:
            return await self._connection.each(take, self._between_bytes_s)
        except OSError as exc:
            raise _lost(exc) from exc

    async def whole(self) -> bytes:
        """The whole body. Raises UpstreamLostError, also when it is larger than `MAX_BODY_BYTES`."""
        pieces: list[bytes] = []
        size = 0
        while piece := await self.piece():
            pieces.append(piece)
            size += len(piece)
            if size > MAX_BODY_BYTES:
                raise UpstreamLostError
        return b"".join(pieces)


class Asked:
    """A call that was sent."""

    def __init__(self, connection: Uplink, timeouts: Timeouts) -> None:
        self._connection = connection
        self._timeouts = timeouts

    def over(self) -> asyncio.Future[None]:
        """Done when the whole answer is here, or none will come."""
        return self._connection.over()

    async def answer(self) -> Answer:
        """Its head is here. Raises UpstreamRefusedError, UpstreamLostError."""
        return await heard(self._connection, self._timeouts.first_byte_s, self._timeouts.between_bytes_s)


async def heard(sent: Uplink, limit_s: float, between_bytes_s: float) -> Answer:
    """The answer, whose head is here. Raises UpstreamRefusedError, UpstreamLostError."""
    try:
        answer = Answer(sent, await sent.head(limit_s), between_bytes_s)
    except OSError as exc:
        raise _lost(exc) from exc
    if answer.head.status != 200:
        raise await _refusal(answer)
    return answer


async def _refusal(answer: Answer) -> ApiError:
    status, headers = answer.head.status, answer.head.headers
    error = parse_error(status if status >= 400 else 502, await answer.whole())
    kept = {name: headers[name] for name in RETRY_HEADERS if name in headers}
    return UpstreamRefusedError(
        error.status, error.message, type=error.type, code=error.code, param=error.param, headers=kept
    )


def absent() -> ApiError:
    return unavailable(
        "The model server cannot be reached. Please try again.", code="upstream_unavailable", retry_after_s=1
    )


@contextlib.contextmanager
def translated() -> Iterator[None]:
    try:
        yield
    except AbsentError as exc:
        raise absent() from exc
    except OSError as exc:
        raise _lost(exc) from exc


def _lost(exc: OSError) -> UpstreamLostError:
    return UpstreamLostError(timed_out=isinstance(exc, TimeoutError))
