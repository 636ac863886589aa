"""An upstream that costs next to nothing: the answers are made beforehand. `gate.py` puts every gate before this one.

    python tests/bench/instant.py --socket /tmp/instant.sock --port 9000

One process on a Unix socket and on TCP, with the same answers on both. It speaks Chat Completions, and what a proxy of
ours wants of a sidecar beside that: its state, the exact prompt in the head, the usage comment in a stream. A stream
has `max_tokens` chunks: of the model `instant` one in each turn of the loop, of the model `paced` one each 20 ms.
"""

import argparse
import asyncio
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, cast

import msgspec
import uvloop

from sidecar.wire import internal
from sidecar.wire.internal import Count, ModelState, RequestState, State, TokenBound

INSTANT: Final = "instant"
PACED: Final = "paced"
PACE_S: Final = 0.02
# What each chunk says, and nothing else does: a client counts the chunks by it.
WORD: Final = b"lorem"
PROMPT_TOKENS: Final = 12
END_OF_HEAD: Final = b"\r\n\r\n"
_OURS: Final = internal.REQUEST_ID.encode()


class Asked(msgspec.Struct):
    """Of a body, what changes the answer."""

    model: str = INSTANT
    stream: bool = False
    max_tokens: int = 1


@dataclass(frozen=True)
class Script:
    """A streamed answer: what leaves first, in each of the turns between, and last."""

    first: bytes
    between: bytes
    last: bytes
    chunks: int
    pace_s: float


class Connection(asyncio.Protocol):
    """One connection. Mutable: `_read`, the bytes of a request not yet whole; `_full`, whether it must not write now;
    `_held`, the turn that waits for that; `_answering`, while a stream runs; `_close`, whether to close after it.
    """

    def __init__(self, state: bytes) -> None:
        self._state = state
        self._read = b""
        self._full = False
        self._held: Callable[[], None] | None = None
        self._answering = False
        self._close = False
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._read += data
        self._next()

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        held, self._held = self._held, None
        if held is not None:
            held()

    def _next(self) -> None:
        end = self._read.find(END_OF_HEAD)
        if end < 0 or self._answering:
            return
        head = self._read[:end].lower()
        whole = end + len(END_OF_HEAD) + _content_length(head)
        if len(self._read) < whole:
            return
        body, self._read = self._read[end + len(END_OF_HEAD) : whole], self._read[whole:]
        self._close = b"\r\nconnection: close" in head
        if not head.startswith(b"post /v1/"):
            self._write(self._internal(head))
            self._ended()
            return
        asked = msgspec.json.decode(body, type=Asked)
        if asked.stream:
            self._answering = True
            self._play(script(asked.model, asked.max_tokens, ours=_OURS in head))
        else:
            self._write(WHOLE)
            self._ended()

    def _internal(self, head: bytes) -> bytes:
        if head.startswith(b"post /internal/count"):
            return answer(msgspec.json.encode(Count(PROMPT_TOKENS, 8192)))
        if head.startswith(b"delete "):
            return answer(msgspec.json.encode(RequestState(True, False, PROMPT_TOKENS, 0)))
        return answer(self._state)

    def _play(self, played: Script) -> None:
        begun_s = self._loop.time()

        def turn(number: int) -> None:
            if self._transport.is_closing():
                return
            if self._full:
                self._held = functools.partial(turn, number)
                return
            self._write(played.first if number == 0 else played.between if number < played.chunks else played.last)
            if number == played.chunks:
                self._answering = False
                self._ended()
            elif played.pace_s:
                self._loop.call_at(begun_s + (number + 1) * played.pace_s, turn, number + 1)
            else:
                self._loop.call_soon(turn, number + 1)

        turn(0)

    def _write(self, data: bytes) -> None:
        self._transport.write(data)

    def _ended(self) -> None:
        if self._close:
            self._transport.close()
        else:
            self._next()


def _content_length(head: bytes) -> int:
    _, found, rest = head.partition(b"\r\ncontent-length:")
    return int(rest.partition(b"\r\n")[0]) if found else 0


def answer(body: bytes) -> bytes:
    """A whole JSON answer, head and all."""
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    return f"{head}{internal.PROMPT_TOKENS}: {PROMPT_TOKENS}\r\n\r\n".encode() + body


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _event(model: str, delta: dict[str, str], finish_reason: str | None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    told = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": model}
    return b"data: " + msgspec.json.encode({**told, "choices": [choice]}) + b"\n\n"


@functools.cache
def script(model: str, chunks: int, *, ours: bool) -> Script:
    """`ours`: a proxy of ours asks, and settles by the comment."""
    head = f"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n{internal.PROMPT_TOKENS}: {PROMPT_TOKENS}\r\n"
    word = _chunk(_event(model, {"content": f"{WORD.decode()} "}, None))
    begin = _chunk(_event(model, {"role": "assistant", "content": ""}, None))
    usage = msgspec.json.encode(internal.Usage(PROMPT_TOKENS, chunks, 0, "stop"))
    comment = internal.USAGE_COMMENT + usage + b"\n\n" if ours else b""
    end = _chunk(comment + _event(model, {}, "stop") + b"data: [DONE]\n\n") + _chunk(b"")
    first = head.encode() + b"transfer-encoding: chunked\r\n\r\n" + begin + word
    return Script(first, word, end, chunks, PACE_S if model == PACED else 0.0)


def _whole() -> bytes:
    message = {"role": "assistant", "content": "Lorem ipsum dolor sit amet.", "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": 8, "total_tokens": PROMPT_TOKENS + 8}
    told = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1_700_000_000, "model": INSTANT}
    return answer(msgspec.json.encode({**told, "choices": [choice], "usage": usage}))


WHOLE: Final = _whole()


def _state() -> bytes:
    models = [
        ModelState(
            id=name,
            max_context=8192,
            tier="packed",
            precision="fp32",
            device="cpu",
            fingerprint="fp_1",
            created=1_700_000_000,
            capabilities=["chat"],
            bound=TokenBound(per_request=8, per_message=8),
        )
        for name in (INSTANT, PACED)
    ]
    state = State(
        ready=True,
        reason="",
        models=models,
        running=0,
        waiting=0,
        max_sequences=4096,
        max_queue=4096,
        kv_used_tokens=0,
        kv_capacity_tokens=1_000_000,
        steps=1,
        engine_pid=1,
        restarts=0,
        heartbeat_age_s=0.0,
        slots_path="/nonexistent",
    )
    return msgspec.json.encode(state)


async def serve(socket_path: str, port: int) -> None:
    """Until the process is ended."""
    loop = asyncio.get_running_loop()
    state = _state()
    unix = await loop.create_unix_server(lambda: Connection(state), socket_path, backlog=1024)
    tcp = await loop.create_server(lambda: Connection(state), "127.0.0.1", port, backlog=1024)
    async with unix, tcp:
        await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--socket", required=True)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(arguments.socket, arguments.port))


if __name__ == "__main__":
    main()
