"""Where Tollhouse's time goes, room by room: a run of its own, with a sampler inside.

The server's first thread gives a sample each few milliseconds that it has had on a core (how few is the kernel's):
which room's code it was in, by the innermost frame that belongs to one. What a library does is its caller's. Threads
beside it (SQLite's) are told as they are, without a room. Run as a program, this is the server: `tollhouse serve` with
the sampler.
"""

import ctypes
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Final

import gates
import msgspec
from gates import Gate
from load import Load, Result

EVERY_NS: Final = 1_000_000
# timer_create(2), of the thread that calls it; sigevent(3type): a signal to the process.
CLOCK_THREAD_CPUTIME_ID: Final = 3
SIGEV_SIGNAL: Final = 0
OUT: Final = "samples.json"
# The first that is a part of a frame's file says whose it is. What stands in none of them is its caller's.
ROOMS: Final = (
    ("/proxy/identity", "identify"),
    ("/proxy/store/", "ledger"),
    ("/sqlalchemy/", "ledger"),
    ("/aiosqlite/", "ledger"),
    ("/proxy/admission/", "admit"),
    ("/proxy/body", "admit"),
    ("/proxy/settle", "settle"),
    ("/proxy/record", "record"),
    ("/proxy/metrics", "record"),
    ("/sidecar/jsonlog", "record"),
    ("/prometheus_", "record"),
    ("/proxy/forward", "forward"),
    ("/proxy/upstream", "forward"),
    ("/proxy/asked", "forward"),
    ("/proxy/uplink", "forward"),
    ("/proxy/answers", "forward"),
    ("/proxy/usage", "forward"),
    ("/proxy/ticket", "forward"),
    ("/aiohttp/client", "forward"),
    ("/aiohttp/connector", "forward"),
    ("/proxy/client", "http"),
    ("/proxy/edge", "http"),
    ("/proxy/http1", "http"),
    ("/proxy/reply", "http"),
    ("/proxy/routes", "http"),
    ("/proxy/tracing", "http"),
    ("/aiohttp/web", "http"),
    ("/proxy/pipeline", "hallway"),
)
LOOP: Final = "event loop"


class Sampler:
    """Mutable: `_counts`, the samples since the last look; `_known`, the room of each file."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._counts: Counter[str] = Counter()
        self._known: dict[str, str | None] = {}

    def start(self) -> None:
        signal.signal(signal.SIGPROF, self._sample)
        signal.signal(signal.SIGUSR2, self._tell)
        library = ctypes.CDLL(None, use_errno=True)
        event = (ctypes.c_int * 16)()
        event[2], event[3] = signal.SIGPROF, SIGEV_SIGNAL
        timer = ctypes.c_void_p()
        spec = (ctypes.c_long * 4)(0, EVERY_NS, 0, EVERY_NS)
        made = library.timer_create(CLOCK_THREAD_CPUTIME_ID, event, ctypes.byref(timer))
        if made or library.timer_settime(timer, 0, spec, None):
            raise OSError(ctypes.get_errno(), "no timer for the sampler")

    def _sample(self, _number: int, frame: FrameType | None) -> None:
        while frame is not None:
            room = self._room(frame.f_code.co_filename)
            if room is not None:
                self._counts[room] += 1
                return
            frame = frame.f_back
        self._counts[LOOP] += 1

    def _room(self, file: str) -> str | None:
        if file not in self._known:
            self._known[file] = next((room for part, room in ROOMS if part in file), None)
        return self._known[file]

    def _tell(self, _number: int, _frame: FrameType | None) -> None:
        self._out.write_text(json.dumps(self._counts))
        self._counts.clear()


def show(folder: Path, loads: Mapping[str, Load], send: Callable[[Load], Result]) -> None:
    """Start the sampled server before an upstream of its own, load it, and print what each room costs a request."""
    folder.mkdir()
    last = next(iter(loads.values())).core
    upstream, process = gates.start_upstream(folder, last)
    try:
        key = gates.house(upstream, folder)
        server = gates.run([sys.executable, __file__], folder, folder / "log")
        gate = Gate("tollhouse", "with the sampler", gates.port_of(folder), server, folder / "log", key, folder)
        try:
            gate.wait()
            for what, load in loads.items():
                _print(what, *_measured(gate, load, send))
        finally:
            gate.end()
    finally:
        process.terminate()
        process.wait()


def _measured(gate: Gate, load: Load, send: Callable[[Load], Result]) -> tuple[dict[str, float], float, int]:
    """Milliseconds of each room for a request, those of the other threads, and how many samples there were."""
    load = msgspec.structs.replace(load, port=gate.port, key=gate.key)
    send(load)
    _samples(gate)
    before = gate.cpu_s()
    result = send(load)
    spent = {name: after - before[name] for name, after in gate.cpu_s().items()}
    counts = _samples(gate)
    total, requests = sum(counts.values()), max(1, result.all_requests)
    each_ms = spent["main"] * 1000 / requests
    return {room: each_ms * count / total for room, count in counts.items()}, spent["other"] * 1000 / requests, total


def _samples(gate: Gate) -> dict[str, int]:
    """The samples since the last time."""
    out = gate.folder / OUT
    out.unlink(missing_ok=True)
    gate.process.send_signal(signal.SIGUSR2)
    deadline = time.monotonic() + gates.END_TIMEOUT_S
    while True:
        try:
            return dict(json.loads(out.read_text()))
        except (FileNotFoundError, json.JSONDecodeError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _print(what: str, by_room: dict[str, float], others_ms: float, samples: int) -> None:
    every_ms = sum(by_room.values()) + others_ms
    print(f"\nrooms, {what}: {every_ms:.3f} ms CPU a request, with the sampler ({samples} samples)")
    for room, spent_ms in sorted([*by_room.items(), ("other threads", others_ms)], key=lambda row: -row[1]):
        print(f"  {room:14} {spent_ms:7.3f} ms {spent_ms / every_ms:6.1%}")


def main() -> None:
    from proxy.__main__ import main as tollhouse  # noqa: PLC0415  # the server's, and only here

    Sampler(Path(OUT).absolute()).start()
    sys.argv = ["tollhouse", "serve"]
    sys.exit(tollhouse())


if __name__ == "__main__":
    main()
