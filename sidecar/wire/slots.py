"""Usage slots: a memory-mapped file beside the socket that says how many tokens each sequence has produced.

The engine process writes it each step; the front and the proxy read it, also after a crash of either. It is the last
word on what a request cost when no final usage could be delivered. Rules:
- one writer, the engine process; a record is claimed, counted up, then ended; only `end` may lower a count;
- an ended record stays readable until its place is needed; places are reused oldest-ended first;
- the writer holds the file's lock (flock(2)) as long as it lives: what nobody holds will not change any more;
- `evicted_ns` tells the latest end time among overwritten records, so a reader can tell "never ran" from "forgotten".
"""

import contextlib
import fcntl
import mmap
import os
import struct
import time
from collections import deque
from pathlib import Path
from typing import Final, Self

import msgspec

MAGIC: Final = b"THSLOTS1"
REQUEST_ID_BYTES: Final = 40
DEFAULT_CAPACITY: Final = 4096
# An engine outlives its front by the step that it is in. One that hangs is not waited for.
HANDOVER_S: Final = 5.0
_TRY_AGAIN_S: Final = 0.05

# magic, capacity, engine pid, step number, heartbeat (CLOCK_MONOTONIC ns), evicted_ns (UTC ns)
_HEADER: Final = struct.Struct("<8sIIQQQ")
_HEADER_BYTES: Final = 64
_BEAT: Final = struct.Struct("<QQ")
_BEAT_AT: Final = 16
_EVICTED: Final = struct.Struct("<Q")
_EVICTED_AT: Final = 32

# request id, index, state, -, prompt tokens, generated tokens, updated (UTC ns), -
_RECORD: Final = struct.Struct(f"<{REQUEST_ID_BYTES}sHBxIIQ4x")
_RECORD_BYTES: Final = _RECORD.size
_STATE_AT: Final = REQUEST_ID_BYTES + 2
_COUNT: Final = struct.Struct("<IQ")
_COUNT_AT: Final = REQUEST_ID_BYTES + 8

_FREE, _RUNNING, _ENDED = 0, 1, 2


class SlotFileError(Exception):
    """The file is missing, or is not a slot file of this version."""


class SequenceUsage(msgspec.Struct, frozen=True):
    """What one sequence has used so far, in tokens; of the choices of one prompt only the first counts it."""

    index: int
    prompt_tokens: int
    completion_tokens: int
    running: bool


class RequestUsage(msgspec.Struct, frozen=True):
    """What one request has used so far, in tokens: each prompt once, the completions of all its sequences."""

    prompt_tokens: int
    completion_tokens: int
    running: bool


class Heartbeat(msgspec.Struct, frozen=True):
    """The engine's last sign of life. `monotonic_ns` is this machine's CLOCK_MONOTONIC."""

    pid: int
    step: int
    monotonic_ns: int
    evicted_ns: int


def embedding_slots(path: Path) -> Path:
    """The file of the encoder beside a model, from the model's file or the socket: each engine writes its own."""
    return path.with_suffix(".embedding.slots")


class SlotWriter:
    """The engine's side. Mutable: the mapped file, `_free` (unused places), `_ended` (reusable, oldest first)."""

    def __init__(self, path: Path, capacity: int = DEFAULT_CAPACITY) -> None:
        self._capacity = capacity
        fresh = not _is_slot_file(path, capacity)
        if fresh:
            # Not truncated: whoever still maps an older file of another size would die of SIGBUS.
            path.unlink(missing_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _take_over(file)
            os.ftruncate(file, _HEADER_BYTES + capacity * _RECORD_BYTES)
            # It keeps the file open for itself, and with it the lock.
            self._map = mmap.mmap(file, 0)
        finally:
            os.close(file)
        # What ran before a fresh file was made is forgotten, not unheard of.
        evicted_ns = time.time_ns() if fresh else _HEADER.unpack_from(self._map, 0)[5]
        _HEADER.pack_into(self._map, 0, MAGIC, capacity, os.getpid(), 0, time.monotonic_ns(), evicted_ns)
        self._free: deque[int] = deque()
        ended: list[tuple[int, int]] = []
        for place in range(capacity):
            _, _, state, _, _, updated_ns = _RECORD.unpack_from(self._map, self._offset(place))
            if state == _FREE:
                self._free.append(place)
            else:
                # An earlier engine died with this sequence running: what it counted is what was produced.
                self._map[self._offset(place) + _STATE_AT] = _ENDED
                ended.append((updated_ns, place))
        self._ended: deque[int] = deque(place for _, place in sorted(ended))

    def claim(self, request_id: str, index: int, prompt_tokens: int) -> int:
        """Open a record and give its place. Raises SlotFileError when all are running, ValueError for a long id."""
        identity = request_id.encode("ascii")
        if len(identity) > REQUEST_ID_BYTES:
            raise ValueError(f"request id longer than {REQUEST_ID_BYTES} bytes")
        if self._free:
            place = self._free.popleft()
        elif self._ended:
            place = self._ended.popleft()
            ended_ns = _RECORD.unpack_from(self._map, self._offset(place))[5]
            _EVICTED.pack_into(self._map, _EVICTED_AT, ended_ns)
        else:
            raise SlotFileError(f"all {self._capacity} usage slots are running")
        _RECORD.pack_into(self._map, self._offset(place), identity, index, _RUNNING, prompt_tokens, 0, time.time_ns())
        return place

    def count(self, place: int, generated: int) -> None:
        """Say how many tokens the sequence has produced."""
        _COUNT.pack_into(self._map, self._offset(place) + _COUNT_AT, generated, time.time_ns())

    def end(self, place: int, generated: int) -> None:
        """Close a record with its final count; its place may be reused later."""
        self.count(place, generated)
        self._map[self._offset(place) + _STATE_AT] = _ENDED
        self._ended.append(place)

    def beat(self, step: int) -> None:
        """Say that the engine gets on; `step` is the number of the last step that ran whole."""
        _BEAT.pack_into(self._map, _BEAT_AT, step, time.monotonic_ns())

    def close(self) -> None:
        """Unmap the file; it stays on disk for its readers."""
        self._map.close()

    @staticmethod
    def _offset(place: int) -> int:
        return _HEADER_BYTES + place * _RECORD_BYTES


class SlotReader:
    """The readers' side: a read-only view that follows the writer, across restarts of the engine too."""

    def __init__(self, path: Path) -> None:
        with contextlib.ExitStack() as stack:
            try:
                self._file = stack.enter_context(path.open("rb"))
                self._map = stack.enter_context(mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ))
            except (OSError, ValueError) as exc:
                raise SlotFileError(f"{path}: {exc}") from exc
            if len(self._map) < _HEADER_BYTES or self._map[: len(MAGIC)] != MAGIC:
                raise SlotFileError(f"{path}: not a usage slot file")
            stack.pop_all()

    @property
    def is_written(self) -> bool:
        """Whether an engine has the file. If none has, what is read after this is the last word."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            # Held; or a file system without locks, where nobody can tell.
            return True
        fcntl.flock(self._file, fcntl.LOCK_UN)
        return False

    def heartbeat(self) -> Heartbeat:
        _, _, pid, step, monotonic_ns, evicted_ns = _HEADER.unpack_from(self._map, 0)
        return Heartbeat(pid, step, monotonic_ns, evicted_ns)

    def sequences(self, request_id: str) -> list[SequenceUsage]:
        """Each recorded sequence of a request, by index; empty if there is none."""
        key = request_id.encode("ascii").ljust(REQUEST_ID_BYTES, b"\0")
        found: list[SequenceUsage] = []
        at = self._map.find(key, _HEADER_BYTES)
        while at >= 0:
            if (at - _HEADER_BYTES) % _RECORD_BYTES == 0:
                _, index, state, prompt, generated, _ = _RECORD.unpack_from(self._map, at)
                if state != _FREE:
                    found.append(SequenceUsage(index, prompt, generated, state == _RUNNING))
            at = self._map.find(key, at + 1)
        return sorted(found, key=lambda sequence: sequence.index)

    def usage(self, request_id: str) -> RequestUsage | None:
        """What a request has used so far, or None if no record of it is here."""
        sequences = self.sequences(request_id)
        if not sequences:
            return None
        return RequestUsage(
            prompt_tokens=sum(sequence.prompt_tokens for sequence in sequences),
            completion_tokens=sum(sequence.completion_tokens for sequence in sequences),
            running=any(sequence.running for sequence in sequences),
        )

    def close(self) -> None:
        self._map.close()
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _take_over(file: int) -> None:
    """Have the file's lock, once whoever wrote before is gone."""
    until_s = time.monotonic() + HANDOVER_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until_s:
                return
            time.sleep(_TRY_AGAIN_S)
        except OSError:
            # A file system without locks: readers wait a while instead.
            return
        else:
            return


def _is_slot_file(path: Path, capacity: int) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(_HEADER_BYTES)
    except FileNotFoundError:
        return False
    if len(head) < _HEADER_BYTES:
        return False
    magic, found_capacity, *_ = _HEADER.unpack_from(head, 0)
    return bool(magic == MAGIC and found_capacity == capacity)
