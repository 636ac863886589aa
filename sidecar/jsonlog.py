"""Log lines as JSON, one object a line, for both processes. A leaf, with no opinion on what is logged.

Secrets stay out by construction: only the field names listed here are written, strings are cut and ASCII-escaped, and
an exception is its type and the places it passed, never its message, whose bytes may be a stranger's.
"""

import datetime as dt
import errno
import json
import logging
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from types import TracebackType
from typing import Final, Self, TextIO

import msgspec

Field = str | int | float | bool | None
_Value = Field | list[str]

LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
MAX_CHARS: Final = 256
MAX_FRAMES: Final = 12
MAX_PROBLEMS: Final = 20
_FRAME_PATH_PARTS: Final = 3

# What a line may carry. A name that is not here is left out and named under `refused`, so that a field must be thought
# about before it can leak. Texts (`message`, `reason`, `hint`) are our own words, never a peer's.
# fmt: off
FIELDS: Final = frozenset(
    (
        "account_id", "address", "admin_host", "admin_port", "admin_socket", "admit_ms", "attempt", "batch_size",
        "boot_id", "cached_tokens", "capacity", "choices", "client_request_id", "completion_tokens", "config", "count",
        "created", "database", "delay_s", "depth", "device", "drain_s", "dtype", "duration_ms", "ending", "endpoint",
        "engine_pid", "error_code", "error_type", "errors", "exit_code", "fingerprint", "finish_reason", "forced",
        "forward_ms", "fused", "hint", "host", "identify_ms", "key_id", "lag_s", "limit", "line", "load_s", "logger",
        "max_context", "max_sequences", "message", "method", "model", "models", "name", "origin", "parity", "path",
        "percent", "pid", "policy", "port", "precision", "problems", "prompt_tokens", "proxies", "queue", "reason",
        "record_ms", "request_id", "requests", "restarts", "revision", "rows", "rule", "running", "seconds",
        "settle_ms", "settled", "shadow", "signal", "slots", "socket", "span_id", "stage", "status", "step", "steps",
        "stream", "threads", "tier", "tiers", "tokens", "total", "trace_id", "ttft_ms", "upstream", "upstreams", "url",
        "version", "voided", "waiting", "weights_bytes"
    )
)
# fmt: on


class JsonLog:
    """Writes lines to one stream. Mutable: `dropped`, how many lines the stream would not take; `_second`, the one that
    is written as `_told_second`.
    """

    def __init__(self, stream: TextIO, level: str = "info", **bound: Field) -> None:
        self._stream = stream
        self._level = LEVELS[level]
        self._bound = bound
        self._second = -1
        self._told_second = ""
        self.dropped = 0

    def bind(self, **bound: Field) -> Self:
        """The same log with fields that every line of it carries."""
        level = next(name for name, number in LEVELS.items() if number == self._level)
        merged: dict[str, Field] = {**self._bound, **bound}
        return type(self)(self._stream, level, **merged)

    def debug(self, event: str, /, **fields: Field) -> None:
        self._write("debug", event, fields, {})

    def info(self, event: str, /, **fields: Field) -> None:
        self._write("info", event, fields, {})

    def warning(self, event: str, /, **fields: Field) -> None:
        self._write("warning", event, fields, {})

    def error(self, event: str, /, **fields: Field) -> None:
        self._write("error", event, fields, {})

    def exception(self, event: str, exc: BaseException, /, **fields: Field) -> None:
        """An error line with what was raised and where it passed."""
        self._write("error", event, fields, _describe(exc))

    def refused(self, event: str, problems: Sequence[str], /, **fields: Field) -> None:
        """An error line with everything that is wrong with a file of the operator's, each with its place."""
        shown = [problem[:MAX_CHARS] for problem in problems[:MAX_PROBLEMS]]
        self._write("error", event, {"count": len(problems), **fields}, {"problems": shown})

    def captured(self, record: logging.LogRecord) -> bool:
        """A line for a record of the standard library's logging: who spoke and where, not what was said."""
        level = "error" if record.levelno >= LEVELS["error"] else "warning"
        if record.levelno < LEVELS["warning"]:
            level = "info" if record.levelno >= LEVELS["info"] else "debug"
        place = f"{_short(record.pathname)}:{record.lineno}:{record.funcName}"
        described = _describe(record.exc_info[1]) if record.exc_info and record.exc_info[1] else {}
        self._write(level, "library_log", {"logger": record.name}, {"at": place, **described})
        return False

    def _write(self, level: str, event: str, fields: Mapping[str, Field], more: Mapping[str, _Value]) -> None:
        if LEVELS[level] < self._level:
            return
        line: dict[str, _Value] = {"time": self._time(), "level": level, "event": event}
        refused: list[str] = []
        for name, value in ({**self._bound, **fields} if self._bound else fields).items():
            if name not in FIELDS:
                refused.append(name)
            elif value is not None:
                # Most are short texts and numbers, and a call for each would be most of the work.
                whole = len(value) <= MAX_CHARS if isinstance(value, str) else not isinstance(value, float)
                line[name] = value if whole else _cut(value)
        line.update(more)
        if refused:
            line["refused"] = _cut(" ".join(refused))
        try:
            self._stream.write(_encoded(line) + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            # A full disk or a closed pipe must not end a request.
            self.dropped += 1

    def _time(self) -> str:
        """Now, in UTC to the millisecond. What is above a second is written once in each."""
        now_ms = time.time_ns() // 1_000_000
        second, ms = divmod(now_ms, 1000)
        if second != self._second:
            self._second = second
            self._told_second = dt.datetime.fromtimestamp(second, dt.UTC).isoformat(timespec="seconds")[:-6]
        return f"{self._told_second}.{ms:03}+00:00"


def capture_stdlib(log: JsonLog) -> None:
    """Send the standard library's logging and warnings into `log`, in place of whatever handled them."""
    logging.captureWarnings(capture=True)
    handler = logging.Handler()
    # A handler's filter sees each record first; ours writes the line and lets nothing through to the handler.
    handler.addFilter(log.captured)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)


def stderr_log(level: str = "info", **bound: Field) -> JsonLog:
    """The usual log of a server process."""
    return JsonLog(sys.stderr, level, **bound)


def _encoded(line: dict[str, _Value]) -> str:
    """One line of ASCII. Nearly every line is ASCII as it stands, and then msgspec writes it in a tenth of the time."""
    try:
        raw = msgspec.json.encode(line)
    except (OverflowError, UnicodeEncodeError):
        raw = None
    if raw is None or not raw.isascii():
        return json.dumps(line, ensure_ascii=True, separators=(",", ":"))
    return raw.decode("ascii")


def _cut(value: Field) -> Field:
    # Infinity and NaN are not JSON.
    if isinstance(value, float) and not abs(value) < float("inf"):
        return str(value)
    return value[:MAX_CHARS] if isinstance(value, str) else value


def _describe(exc: BaseException) -> dict[str, _Value]:
    described: dict[str, _Value] = {"exception": type(exc).__name__, "frames": _frames(exc.__traceback__)}
    cause = exc.__cause__ or (None if exc.__suppress_context__ else exc.__context__)
    if cause is not None:
        described["cause"] = type(cause).__name__
    if isinstance(exc, OSError) and exc.errno is not None:
        described["errno"] = errno.errorcode.get(exc.errno, str(exc.errno))
    if isinstance(exc, BaseExceptionGroup):
        described["exceptions"] = [type(inner).__name__ for inner in exc.exceptions[:MAX_FRAMES]]
    return described


def _frames(trace: TracebackType | None) -> list[str]:
    """The innermost places, outermost first, as `file:line:function`; no source line and no local is read."""
    walked = [(frame.f_code.co_filename, line, frame.f_code.co_name) for frame, line in traceback.walk_tb(trace)]
    return [f"{_short(file)}:{line}:{name}"[:MAX_CHARS] for file, line, name in walked[-MAX_FRAMES:]]


def _short(path: str) -> str:
    return "/".join(PurePath(path).parts[-_FRAME_PATH_PARTS:])
