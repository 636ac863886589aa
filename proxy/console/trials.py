"""Trials of candidate policies: one at a time, each in a process of its own that may take so long and no longer."""

import asyncio
import contextlib
import datetime as dt
import sys
from asyncio.subprocess import PIPE
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from proxy.clock import Clock
from proxy.console.trial import Trial
from sidecar.jsonlog import JsonLog
from sidecar.wire.errors import ApiError, unavailable

LIMIT_S: Final = 120.0
MOST_POLICY: Final = 256 * 1024
# It is no path, and names nothing on this machine: it stands before a problem's line, and in the revision.
FileName = Annotated[str, Meta(max_length=255, pattern=r"^[^/\x00-\x1f\x7f]+$")]


class WantedTrial(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`files`: a policy's texts by their names. It is tried on the last so many `days`, of all keys or of one."""

    files: Annotated[dict[FileName, Annotated[str, Meta(max_length=MOST_POLICY)]], Meta(min_length=1, max_length=100)]
    days: Annotated[float, Meta(gt=0, le=92)] = 1.0
    key_id: Annotated[str, Meta(max_length=100, pattern=r"^[^\x00-\x1f\x7f]+$")] | None = None


class Trials:
    """Mutable: `_busy`, while one runs."""

    def __init__(self, socket: str, clock: Clock, log: JsonLog, *, limit_s: float = LIMIT_S) -> None:
        self._socket = socket
        self._clock = clock
        self._log = log
        self._limit_s = limit_s
        self._busy = False

    async def run(self, wanted: WantedTrial) -> bytes:
        """The `Outcome`, in JSON. Raises ApiError 409 or 503."""
        if self._busy:
            raise ApiError(
                409, "Another simulation runs. Try again when it is done.", code="simulation_running", should_retry=True
            )
        until = self._clock.now()
        since = until - dt.timedelta(days=wanted.days)
        self._busy = True
        try:
            return await self._run(Trial(self._socket, wanted.files, since, until, wanted.key_id))
        finally:
            self._busy = False

    async def _run(self, trial: Trial) -> bytes:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "proxy.console.trial", stdin=PIPE, stdout=PIPE, stderr=PIPE
        )
        try:
            async with asyncio.timeout(self._limit_s):
                answer, said = await process.communicate(msgspec.json.encode(trial))
        except TimeoutError as exc:
            raise unavailable(
                f"The simulation took longer than {self._limit_s:g} s. Choose fewer days, or use `tollhouse policy "
                "simulate`, which has no such limit.",
                code="simulation_failed",
                retry_after_s=1,
            ) from exc
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await asyncio.shield(process.wait())
        if process.returncode:
            # Of a traceback what was raised, and not its words: they may be those of the policy.
            _, _, last = said.decode(errors="replace").strip().rpartition("\n")
            self._log.error("simulation_failed", exit_code=process.returncode, error_type=last.partition(":")[0])
            raise unavailable(
                "The simulation failed. The server's log says why (simulation_failed).",
                code="simulation_failed",
                retry_after_s=1,
            )
        return answer
