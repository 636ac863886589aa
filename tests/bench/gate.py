"""What the gate costs: Tollhouse beside a bare aiohttp proxy, LiteLLM and nginx, before the same instant upstream.

    python tests/bench/gate.py --peers-folder PEERS      # some seven minutes; gates.py says what is in the folder
    python tests/bench/gate.py --only tollhouse --only aiohttp --rounds 5
    python tests/bench/gate.py --rooms                   # only: where Tollhouse's time goes, room by room

Tollhouse runs with every rule of a policy and the durable ledger. In each round each gate is measured after the other,
the rest stopped meanwhile; shown are the medians. The load and the upstream share one core, the last; a gate may use
all of them.

- alone: whole answers, one at a time. `added` is what a request takes longer than from the upstream itself;
- whole: whole answers, 32 at a time;
- streams: answers of 64 chunks that come as fast as they can, 32 at a time;
- paced: 256 streams side by side, a chunk each 20 ms, their beginnings spread evenly.

CPU is the gate's own, all its processes, for each request.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import gates
import msgspec
import rooms
from gates import NAMES, Gate, MissingError
from instant import INSTANT, PACE_S, PACED
from load import Load, Result
from ours import quantile

DIRECT = "upstream"
ALONE, WHOLE, STREAMS, STEADY = "alone", "whole", "streams", "paced"
CHUNKS, PACED_CHUNKS = 64, 128
WARM_S = 0.5
LAST_CORE = max(os.sched_getaffinity(0))
# A load's time is its own, and a stream's: a round of paced ones lasts three of theirs.
PACED_S = 3 * PACED_CHUNKS * PACE_S


@dataclass(frozen=True)
class Figures:
    """One measure of one gate. Times in milliseconds; `cpu_other_ms` is that of threads beside the first."""

    per_s: float
    chunks_per_s: float
    p50_ms: float
    p99_ms: float
    first_p50_ms: float
    first_p99_ms: float
    cpu_ms: float
    cpu_other_ms: float
    lost: float
    failed: dict[str, int]


Table = dict[tuple[str, str], list[Figures]]


def loads(seconds: float) -> dict[str, Load]:
    """What is sent for each measure, less port and key."""
    common = {"port": 0, "key": "", "model": INSTANT, "seconds": seconds, "core": LAST_CORE}
    plain = Load(**common, connections=1)  # type: ignore[arg-type]  # mypy cannot see the names
    return {
        ALONE: plain,
        WHOLE: msgspec.structs.replace(plain, connections=32),
        STREAMS: msgspec.structs.replace(plain, connections=32, chunks=CHUNKS),
        STEADY: msgspec.structs.replace(
            plain, model=PACED, connections=256, chunks=PACED_CHUNKS, seconds=PACED_S, spread_s=PACED_CHUNKS * PACE_S
        ),
    }


def send(load: Load) -> Result:
    done = subprocess.run(
        [sys.executable, str(gates.BENCH / "load.py"), msgspec.json.encode(load).decode()],
        capture_output=True,
        check=False,
    )
    if done.returncode or not done.stdout:
        raise SystemExit(f"the load broke off:\n{done.returncode} {done.stderr.decode()}")
    return msgspec.json.decode(done.stdout, type=Result)


def measure(gate: Gate, load: Load) -> Figures:
    load = msgspec.structs.replace(load, port=gate.port, key=gate.key)
    send(
        msgspec.structs.replace(
            load, seconds=WARM_S, model=INSTANT, spread_s=0.0, connections=min(load.connections, 32)
        )
    )
    before = gate.cpu_s()
    result = send(load)
    spent = {name: after - before[name] for name, after in gate.cpu_s().items()}
    return _figures(result, spent)


def _figures(result: Result, spent: dict[str, float]) -> Figures:
    count = max(1, result.all_requests)
    took, first = result.took or [0.0], result.first or [0.0]
    return Figures(
        per_s=result.requests / result.seconds,
        chunks_per_s=result.chunks / result.all_requests * result.requests / result.seconds if result.requests else 0.0,
        p50_ms=quantile(took, 0.5) * 1000,
        p99_ms=quantile(took, 0.99) * 1000,
        first_p50_ms=quantile(first, 0.5) * 1000,
        first_p99_ms=quantile(first, 0.99) * 1000,
        cpu_ms=sum(spent.values()) / count * 1000,
        cpu_other_ms=spent["other"] / count * 1000,
        lost=result.lost + result.extra,
        failed=result.failed,
    )


@contextmanager
def started(names: list[str], peers: Path | None, folder: Path) -> Iterator[list[Gate]]:
    """The upstream and the gates before it, each stopped until it is its turn."""
    with ExitStack() as stack:
        upstream, process = gates.start_upstream(folder, LAST_CORE)
        direct = Gate(DIRECT, "the upstream itself, tests/bench/instant.py", upstream.port, process, folder / "log")
        stack.callback(direct.end)
        found = [direct]
        for name in names:
            try:
                gate = gates.start(name, upstream, peers, folder)
            except MissingError as exc:
                print(f"{name}: MISSING, {exc}")
                continue
            stack.callback(gate.end)
            gate.wait()
            gate.pause()
            found.append(gate)
        for gate in found:
            print(f"{gate.name}: {gate.about}")
        yield found


def compare(found: list[Gate], rounds: int, seconds: float, only: list[str]) -> Table:
    table: Table = {}
    for number in range(rounds):
        for what, load in loads(seconds).items():
            if what not in only:
                continue
            for gate in found:
                if gate.name != DIRECT:
                    gate.resume()
                    # What it asks its upstream about itself may have timed out while it was stopped.
                    time.sleep(WARM_S)
                table.setdefault((what, gate.name), []).append(measure(gate, load))
                if gate.name != DIRECT:
                    gate.pause()
        print(f"round {number + 1} of {rounds} is over", file=sys.stderr)
    return table


def medians(table: Table, what: str, name: str) -> Figures | None:
    """Of each figure the median over the rounds; of what must never happen the sum."""
    rows = table.get((what, name))
    if rows is None:
        return None
    columns = {key: [getattr(row, key) for row in rows] for key in Figures.__dataclass_fields__}
    failed = sum((Counter(some) for some in columns.pop("failed")), Counter[str]())
    lost = sum(columns.pop("lost"))
    return Figures(**{key: statistics.median(c) for key, c in columns.items()}, lost=lost, failed=failed)


def show(table: Table) -> None:
    """The figures of each measure, a line for each gate, with the ratio to the bare aiohttp proxy."""
    for what in dict.fromkeys(what for what, _ in table):
        print(f"\n{what:10} {'per s':>9} {'× aiohttp':>9} {'p50 ms':>8} {'p99 ms':>8} {'added':>14} ", end="")
        print(f"{'first chunk':>15} {'added':>15} {'CPU ms':>7} {'others':>7} {'lost':>5} failed")
        bare, direct = medians(table, what, "aiohttp"), medians(table, what, DIRECT)
        for name in dict.fromkeys(name for kind, name in table if kind == what):
            row = medians(table, what, name)
            if row is not None:
                print(_line(name, row, bare, direct))


def _line(name: str, row: Figures, bare: Figures | None, direct: Figures | None) -> str:
    ratio = f"{row.per_s / bare.per_s:.2f}" if bare is not None and bare.per_s else "-"
    added = first_added = "-"
    if direct is not None and name != DIRECT:
        added = f"{row.p50_ms - direct.p50_ms:.2f}/{row.p99_ms - direct.p99_ms:.2f}"
        first_added = f"{row.first_p50_ms - direct.first_p50_ms:.2f}/{row.first_p99_ms - direct.first_p99_ms:.2f}"
    first = f"{row.first_p50_ms:.2f}/{row.first_p99_ms:.2f}"
    return (
        f"{name:10} {row.per_s:9.0f} {ratio:>9} {row.p50_ms:8.2f} {row.p99_ms:8.2f} {added:>14} {first:>15} "
        f"{first_added:>15} {row.cpu_ms:7.3f} {row.cpu_other_ms:7.3f} {row.lost:5.0f} "
        + (", ".join(f"{count} × {what}" for what, count in row.failed.items()) or "-")
    )


def judge(table: Table) -> None:
    """What was to be reached, and whether it was."""
    ours = {what: medians(table, what, "tollhouse") for what in (ALONE, WHOLE, STREAMS, STEADY)}
    bare = {what: medians(table, what, "aiohttp") for what in (WHOLE, STREAMS)}
    direct = {what: medians(table, what, DIRECT) for what in (ALONE, STEADY)}
    litellm = medians(table, WHOLE, "litellm")
    lines: list[tuple[str, float, str, float]] = []
    if (mine := ours[WHOLE]) and (other := bare[WHOLE]):
        lines.append(("whole answers, × bare aiohttp", mine.per_s / other.per_s, ">=", 0.4))
    if (mine := ours[WHOLE]) and litellm and litellm.per_s:
        lines.append(("whole answers, × LiteLLM", mine.per_s / litellm.per_s, ">=", 30))
    if (mine := ours[ALONE]) and (other := direct[ALONE]):
        lines.append(("alone, added p50 in ms", mine.p50_ms - other.p50_ms, "<=", 1))
        lines.append(("alone, added p99 in ms", mine.p99_ms - other.p99_ms, "<=", 5))
    if (mine := ours[STREAMS]) and (other := bare[STREAMS]):
        lines.append(("streams, × bare aiohttp", mine.per_s / other.per_s, ">=", 0.5))
    if (mine := ours[STEADY]) and (other := direct[STEADY]):
        lines.append(("paced, chunks lost", mine.lost + sum(mine.failed.values()), "<=", 0))
        lines.append(("paced, first chunk added p99 in ms", mine.first_p99_ms - other.first_p99_ms, "<=", 10))
    print()
    for about, found, sign, wanted in lines:
        reached = found >= wanted if sign == ">=" else found <= wanted
        print(f"{'reached' if reached else 'MISSED':8} {about}: {found:.2f} {sign} {wanted:g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=NAMES, action="append", help="one gate; may be given again")
    parser.add_argument("--measure", choices=(ALONE, WHOLE, STREAMS, STEADY), action="append", help="one measure")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measure but the paced one")
    parser.add_argument("--peers-folder", type=Path)
    parser.add_argument("--rooms", action="store_true", help="where Tollhouse's time goes, and nothing else")
    arguments = parser.parse_args()
    every = [ALONE, WHOLE, STREAMS, STEADY]
    with tempfile.TemporaryDirectory(prefix="tollhouse-gate-") as made:
        folder = Path(made)
        if not arguments.rooms:
            peers = arguments.peers_folder.absolute() if arguments.peers_folder else None
            with started(arguments.only or list(NAMES), peers, folder) as found:
                table = compare(found, arguments.rounds, arguments.seconds, arguments.measure or every)
            show(table)
            judge(table)
        if arguments.rooms or not arguments.only or "tollhouse" in arguments.only:
            rooms.show(folder / "rooms", {what: loads(arguments.seconds)[what] for what in (WHOLE, STREAMS)}, send)


if __name__ == "__main__":
    main()
