"""A candidate policy, tried on recorded requests in a process of its own: the server's time is its requests'.

`python -m proxy.console.trial` reads a `Trial` and writes an `Outcome`; the recording comes from the server, over its
admin socket. It is `tollhouse policy simulate`, for a policy that is in no folder yet.
"""

import asyncio
import contextlib
import datetime as dt
import os
import sys
from pathlib import Path
from typing import Final

import msgspec

from proxy.admin.client import AdminClient
from proxy.admin.recording import Recording
from proxy.policy.load import policy_of
from proxy.policy.schema import Policy
from proxy.simulation.report import Report
from proxy.simulation.run import simulate
from sidecar.yamlfile import ConfigInvalidError

# A page shows no more of them; the sums are of all.
MOST_REFUSALS: Final = 200
NICE: Final = 10


class Trial(msgspec.Struct, frozen=True):
    """What is to be tried, and where the server listens. `files` are the policy's: their texts by their names."""

    socket: str
    files: dict[str, str]
    since: dt.datetime
    until: dt.datetime
    key_id: str | None = None


class Outcome(msgspec.Struct, frozen=True):
    """What a policy would have done, or what is wrong with it."""

    report: Report | None = None
    problems: list[str] = []


def tried(policy: Policy, recorded: Recording, trial: Trial) -> Report:
    found = simulate(policy, recorded.rows, recorded.callers, since=trial.since, until=trial.until)
    return msgspec.structs.replace(found, refusals=found.refusals[:MOST_REFUSALS])


async def _recorded(trial: Trial) -> Recording:
    async with AdminClient(trial.socket) as server:
        return await server.recorded(trial.since, trial.until, trial.key_id)


def run(trial: Trial) -> Outcome:
    try:
        policy = policy_of({Path(name): text.encode() for name, text in sorted(trial.files.items())})
    except ConfigInvalidError as exc:
        return Outcome(problems=[str(problem) for problem in exc.problems])
    return Outcome(tried(policy, asyncio.run(_recorded(trial)), trial))


def main() -> None:
    # Where a filter of system calls refuses that, it runs as it is.
    with contextlib.suppress(PermissionError):
        os.nice(NICE)
    trial = msgspec.json.decode(sys.stdin.buffer.read(), type=Trial)
    sys.stdout.buffer.write(msgspec.json.encode(run(trial)))


if __name__ == "__main__":
    main()
