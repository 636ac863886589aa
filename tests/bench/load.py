"""The client of `gate.py`: raw HTTP/1.1 on kept connections, and as little work of its own as can be.

    python tests/bench/load.py '{"port": 9001, "key": "…", "connections": 32, "seconds": 3}'

Each connection sends its request again as soon as the answer is whole. Prints one JSON object, a `Result`.
"""

import asyncio
import functools
import os
import sys
import time
from typing import Final, cast

import msgspec
import uvloop
from instant import END_OF_HEAD, WORD

CONNECT_S: Final = 10.0
# After the end of the measure, for the answers still under way.
PATIENCE_S: Final = 30.0
_LAST_CHUNK: Final = b"\r\n0\r\n\r\n"


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What to send and for how long. `chunks` of 0 asks for a whole answer. Within `spread_s` all connections begin.
    `core`: where to run, or anywhere.
    """

    port: int
    key: str
    model: str
    connections: int
    seconds: float
    chunks: int = 0
    spread_s: float = 0.0
    core: int | None = None


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """`requests` ended within `seconds`, `all_requests` ended at all. Times are in seconds, one for each request:
    `took` to its end, `first` to its first chunk. `lost` and `extra` are chunks; `failed` says how often what failed.
    """

    seconds: float
    requests: int
    all_requests: int
    chunks: int
    lost: int
    extra: int
    took: list[float]
    first: list[float]
    failed: dict[str, int]


class Tally:
    """Mutable: what a `Result` is made of."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.until_s = 0.0
        self.requests = self.all_requests = self.chunks = self.lost = self.extra = 0
        self.took: list[float] = []
        self.first: list[float] = []
        self.failed: dict[str, int] = {}

    def fail(self, what: str) -> None:
        self.failed[what] = self.failed.get(what, 0) + 1

    def result(self, seconds: float) -> Result:
        return Result(
            seconds=seconds,
            requests=self.requests,
            all_requests=self.all_requests,
            chunks=self.chunks,
            lost=self.lost,
            extra=self.extra,
            took=self.took,
            first=self.first,
            failed=self.failed,
        )


class Connection(asyncio.Protocol):
    """One connection, one request at a time. Mutable: `_read`, the answer so far; `_whole`, how long it is, once that
    is known; `_chunked`; `_sent_s` and `_first_s`, when those happened; `_done`, for who waits for the end of it.
    """

    def __init__(self, request: bytes, tally: Tally) -> None:
        self._request = request
        self._tally = tally
        self._streams = tally.load.chunks > 0
        self._reset()
        self._done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def _reset(self) -> None:
        self._read = bytearray()
        self._whole = 0
        self._chunked = False
        self._first_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    async def exchange(self) -> bool:
        """Send once; whether the connection may be used again."""
        self._reset()
        self._done = asyncio.get_running_loop().create_future()
        self._sent_s = time.perf_counter()
        self._transport.write(self._request)
        return await self._done

    def data_received(self, data: bytes) -> None:
        self._read += data
        if not self._whole and not self._chunked and not self._head():
            return
        if self._streams and not self._first_s and WORD in self._read:
            self._first_s = time.perf_counter()
        if self._chunked:
            if self._read.endswith(_LAST_CHUNK):
                self._ended()
        elif len(self._read) >= self._whole:
            self._ended()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._tally.fail("connection lost")
            self._done.set_result(False)

    def close(self) -> None:
        self._transport.abort()

    def _head(self) -> bool:
        end = self._read.find(END_OF_HEAD)
        if end < 0:
            return False
        head = bytes(self._read[:end]).lower()
        self._chunked = b"transfer-encoding: chunked" in head
        if not self._chunked:
            length = head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
            self._whole = end + len(END_OF_HEAD) + int(length)
        return True

    def _ended(self) -> None:
        now_s = time.perf_counter()
        tally = self._tally
        status = bytes(self._read[9:12])
        if status != b"200":
            tally.fail(f"status {status.decode()}")
        else:
            tally.all_requests += 1
            if now_s <= tally.until_s:
                tally.requests += 1
            tally.took.append(now_s - self._sent_s)
            if self._streams:
                self._count(tally)
        closed = b"\r\nconnection: close" in bytes(self._read[: self._read.find(END_OF_HEAD)]).lower()
        self._done.set_result(not closed)

    def _count(self, tally: Tally) -> None:
        came = _dechunked(bytes(self._read)).count(WORD)
        tally.first.append(self._first_s - self._sent_s)
        tally.chunks += came
        tally.lost += max(0, tally.load.chunks - came)
        tally.extra += max(0, came - tally.load.chunks)


def _dechunked(answer: bytes) -> bytes:
    pieces = []
    at = answer.find(END_OF_HEAD) + len(END_OF_HEAD)
    while True:
        line = answer.find(b"\r\n", at)
        size = int(answer[at:line], 16)
        if not size:
            return b"".join(pieces)
        pieces.append(answer[line + 2 : line + 2 + size])
        at = line + 4 + size


async def _client(request: bytes, tally: Tally, after_s: float) -> None:
    await asyncio.sleep(after_s)
    make = functools.partial(Connection, request, tally)
    loop = asyncio.get_running_loop()
    while time.perf_counter() < tally.until_s:
        try:
            _, connection = await loop.create_connection(make, "127.0.0.1", tally.load.port)
        except OSError as exc:
            tally.fail(type(exc).__name__)
            await asyncio.sleep(0.05)
            continue
        try:
            while await connection.exchange() and time.perf_counter() < tally.until_s:
                pass
        finally:
            connection.close()


async def run(load: Load) -> Result:
    body = {"model": load.model, "messages": [{"role": "user", "content": "Write a line about the sea, please."}]}
    asked = {"max_tokens": load.chunks, "stream": True} if load.chunks else {"max_tokens": 16}
    sent = msgspec.json.encode(body | asked)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{load.port}\r\nAuthorization: Bearer {load.key}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(sent)}\r\n\r\n"
    tally = Tally(load)
    begun_s = time.perf_counter()
    tally.until_s = begun_s + load.seconds
    clients = [
        asyncio.create_task(_client(head.encode() + sent, tally, load.spread_s * number / load.connections))
        for number in range(load.connections)
    ]
    _, late = await asyncio.wait(clients, timeout=load.seconds + PATIENCE_S)
    for client in late:
        tally.fail("no end")
        client.cancel()
    await asyncio.gather(*clients, return_exceptions=True)
    return tally.result(load.seconds)


def main() -> None:
    load = msgspec.json.decode(sys.argv[1], type=Load)
    if load.core is not None:
        os.sched_setaffinity(0, {load.core})
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(run(load))
    # Some megabytes of latencies: a single write may take only a part of them.
    told = memoryview(msgspec.json.encode(result))
    while told:
        told = told[os.write(sys.stdout.fileno(), told) :]


if __name__ == "__main__":
    main()
