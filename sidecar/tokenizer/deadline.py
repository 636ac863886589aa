"""A deadline for Python code that cannot be asked to stop: a model's chat template may have a loop without an end.

Whoever is late gets an exception in the middle of what it does, which CPython raises between two of its instructions
(`PyThreadState_SetAsyncExc` in its C API). So a single instruction that takes long, as a huge multiplication of a text
does, is not cut short. No lock is held by whoever may be interrupted.
"""

import contextlib
import ctypes
import threading
import time
from collections.abc import Iterator
from typing import Final

POLL_S: Final = 0.05


class DeadlineError(Exception):
    """It took too long."""


class _Interrupt(BaseException):
    """No `except Exception` on the way may keep it."""


class Deadlines:
    """The deadlines of all threads, and the one thread that looks at them while there are any.

    Mutable: `_due`, when each thread is late, by its id, in monotonic seconds; `_some`, set when there are any.
    Whoever takes an entry out of `_due` decides: the thread itself is in time, the watch interrupts it.
    """

    def __init__(self) -> None:
        self._due: dict[int, float] = {}
        self._some = threading.Event()
        self._watch: threading.Thread | None = None

    @contextlib.contextmanager
    def within(self, limit_s: float) -> Iterator[None]:
        """Raises DeadlineError in the middle of what is done here, once the time is over."""
        me, arrived = threading.get_ident(), False
        try:
            self._begin(me, limit_s)
            try:
                yield
            except _Interrupt:
                arrived = True
                raise
            finally:
                if not arrived and self._due.pop(me, None) is None:
                    # It is on its way, and must not arrive in what comes after.
                    while True:
                        time.sleep(POLL_S)
        except _Interrupt:
            raise DeadlineError(f"it took more than {limit_s:g} s") from None

    def _begin(self, me: int, limit_s: float) -> None:
        self._due[me] = time.monotonic() + limit_s
        if self._watch is None:
            # Two threads may come here at once: a second watch does no harm.
            self._watch = threading.Thread(target=self._look, name="deadlines", daemon=True)
            self._watch.start()
        self._some.set()

    def _look(self) -> None:
        while True:
            self._some.wait()
            # Cleared before the look: who comes after that sets it again.
            self._some.clear()
            while self._due:
                time.sleep(POLL_S)
                now_s = time.monotonic()
                for thread, due_s in list(self._due.items()):
                    # A thread that began anew meanwhile has another time.
                    if due_s <= now_s and self._due.get(thread) == due_s and self._due.pop(thread, None) is not None:
                        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_Interrupt))
