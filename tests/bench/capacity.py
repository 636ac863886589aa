"""What a house takes: disk for each request, time for a backup and a report, memory for each connection.

    python tests/bench/capacity.py                      # about two minutes
    python tests/bench/capacity.py --requests 1000000   # a longer ledger

- ledger: bytes on disk for each request, indexes and all, and what reading them takes: a backup, a check, a page of the
  request log;
- proxy: the memory of one that has nothing to do, and what each open connection adds.
"""

import argparse
import asyncio
import datetime as dt
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from proxy.clock import SystemClock
from proxy.settings import Database
from proxy.store import migrate
from proxy.store.accounts import Account, Accounts
from proxy.store.backup import back_up
from proxy.store.database import open_database
from proxy.store.keys import KeyRecord, Keys
from proxy.store.ledger import Ledger
from proxy.store.posting import Entry, Settled
from proxy.store.requestlog import RequestLog, Sought
from proxy.store.writer import Writer

BIN = Path(sys.executable).parent
NOW = dt.datetime.now(dt.UTC)
KEYS, AT_ONCE, CONNECTIONS = 50, 256, 2000
CONFIG = """\
upstreams: [{name: local, socket: run/s.sock}]
listen: {port: 8391}
admin: {port: 8392}
limits: {max_connections_per_address: 4096}
"""


def entry(number: int) -> Entry:
    key = f"key{number % KEYS:07}"
    return Entry(
        request_id=f"req_{number:024x}",
        key_id=key,
        account_id="acct_0123456789",
        tier="pro",
        period=f"{NOW:%Y-%m}",
        endpoint="/v1/chat/completions",
        model="smollm2-135m-instruct",
        upstream="local",
        stream=True,
        choices=1,
        priority=10,
        est_tokens=612,
        created=NOW + dt.timedelta(milliseconds=number),
        trace_id=f"{number:032x}",
        asked_output_tokens=512,
        bound_prompt_tokens=100,
        max_context=8192,
        prompts=1,
    )


def settled(number: int) -> Settled:
    return Settled(
        request_id=f"req_{number:024x}",
        prompt_tokens=90,
        completion_tokens=200,
        cached_tokens=0,
        ended=NOW + dt.timedelta(milliseconds=number + 2000),
        duration_ms=2000,
        ttft_ms=150,
        status=200,
        reason="complete",
        finish_reason="stop",
    )


async def filled(settings: Database, requests: int) -> None:
    async with open_database(settings) as database, Writer(database, SystemClock()) as writer:
        await Accounts(writer).create(Account("acct_0123456789", "the account", NOW))
        for number in range(KEYS):
            key = f"key{number:07}"
            await Keys(writer).create(
                KeyRecord(
                    key_id=key,
                    account_id="acct_0123456789",
                    name=key,
                    tier="pro",
                    models=None,
                    mac=os.urandom(32),
                    mac_version=1,
                    created=NOW,
                )
            )
        ledger = Ledger(writer, "boot_1")
        for first in range(0, requests, AT_ONCE):
            numbers = range(first, min(first + AT_ONCE, requests))
            await asyncio.gather(*(ledger.reserve(entry(number)) for number in numbers))
            await asyncio.gather(*(ledger.settle(settled(number)) for number in numbers))


async def read(settings: Database) -> None:
    async with open_database(settings) as database, Writer(database, SystemClock()) as writer:
        began_s = time.monotonic()
        assert await Ledger(writer, "boot_1").check() == []
        tell("ledger check", time.monotonic() - began_s, "s")
        began_s = time.monotonic()
        await RequestLog(writer).page(Sought(), after=None, limit=100)
        tell("a page of the request log", 1000 * (time.monotonic() - began_s), "ms")


def tell(what: str, figure: float, unit: str) -> None:
    print(f"{what:34} {figure:12,.2f} {unit}", flush=True)


def timed(work: Callable[[], Any]) -> float:
    began_s = time.monotonic()
    work()
    return time.monotonic() - began_s


def of_the_ledger(folder: Path, requests: int) -> None:
    path = folder / "ledger.db"
    settings = Database(url=f"sqlite+aiosqlite:///{path}", synchronous="NORMAL")
    migrate.upgrade(settings)
    empty = path.stat().st_size
    tell(f"to write {requests:,} requests", timed(lambda: asyncio.run(filled(settings, requests))), "s")
    tell("on disk, a request", (path.stat().st_size - empty) / requests, "bytes")
    tell("db backup", timed(lambda: back_up(settings, folder / "copy.db")), "s")
    asyncio.run(read(settings))


def of_the_proxy(folder: Path) -> None:
    for name in ("conf", "policies", "run", "data"):
        (folder / name).mkdir(mode=0o700)
    (folder / "conf/proxy.yaml").write_text(CONFIG)
    policy = Path(__file__).parents[2] / "policies/default.yaml"
    (folder / "policies/default.yaml").write_text(policy.read_text())
    subprocess.run([BIN / "tollhouse", "db", "upgrade"], cwd=folder, check=True, capture_output=True)
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([BIN / "tollhouse", "serve"], cwd=folder, stderr=log, stdout=log)
    try:
        while '"ready"' not in (folder / "log").read_text():
            assert server.poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
        idle = resident(server.pid)
        tell("a proxy with nothing to do", idle / 2**20, "MiB")
        open_ones = [socket.create_connection(("127.0.0.1", 8391)) for _ in range(CONNECTIONS)]
        for one in open_ones:
            one.sendall(b"GET /v1/models HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
        for one in open_ones:
            one.recv(4096)
        tell("each connection that is open", (resident(server.pid) - idle) / CONNECTIONS / 2**10, "KiB")
        for one in open_ones:
            one.close()
    finally:
        server.terminate()
        server.wait()


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("ledger", "proxy"):
            (Path(folder) / name).mkdir()
        of_the_ledger(Path(folder) / "ledger", parser.parse_args().requests)
        of_the_proxy(Path(folder) / "proxy")


if __name__ == "__main__":
    main()
