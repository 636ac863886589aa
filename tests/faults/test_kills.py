"""Kill -9 of any process at any moment under load: no acknowledged row is lost, and what is charged is what was made.

TOLLHOUSE_FAULTS_KILLS=200 makes it as many; `-s` shows the figures. The seed is fixed, the moments are the machine's.
"""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.postgres import Postgres
from tests.fakes.sidecar import MODEL
from tests.faults.besieged import BIN, DATABASE, ENGINE, PROXY, SIDECAR, Besieged
from tests.faults.crowd import Crowd
from tests.faults.siege import CLIENTS, SEED, besiege, check_at_work, nothing_is_open

KILLS = int(os.environ.get("TOLLHOUSE_FAULTS_KILLS", "4"))
# A real one takes seconds to start.
MOST_REAL_KILLS = 40
REAL = (BIN / "tollhouse-sidecar", "serve", "--config", "conf/sidecar.yaml")
TICKING = (sys.executable, "-m", "tests.fakes.ticking_sidecar", "run/sidecar.sock")
# Its answers take seconds: some are at work at whatever moment the proxy hears a signal.
SLOWLY_TICKING = (*TICKING, "0.1")


@pytest.mark.timeout(120 + 10 * KILLS)
async def test_f1_kills_of_proxy_and_sidecar_lose_nothing_and_give_nothing_away(tmp_path_factory: Any) -> None:
    house = Besieged(tmp_path_factory.mktemp("k"), TICKING)
    await besiege(house, [PROXY, SIDECAR], KILLS)


@pytest.mark.timeout(180 + 20 * KILLS)
async def test_f2_kills_of_a_real_sidecar_or_its_engine_give_nothing_away(
    tmp_path_factory: Any, tiny_folder: Path
) -> None:
    served = {"model": {"id": "tiny", "source": str(tiny_folder)}, "engine": {"threads": 1}}
    house = Besieged(tmp_path_factory.mktemp("k"), REAL, sidecar=served)
    await besiege(house, [SIDECAR, ENGINE, PROXY], min(KILLS, MOST_REAL_KILLS), "tiny", embedder="")


@pytest.mark.parametrize(
    ("drain_s", "signals", "told"),
    [(10.0, 1, False), (0.05, 1, True), (60.0, 2, True)],
    ids=["long enough to end", "too short", "and then a second signal"],
)
async def test_f11_a_terminated_proxy_tells_everybody(
    tmp_path_factory: Any, drain_s: float, signals: int, *, told: bool
) -> None:
    house = Besieged(tmp_path_factory.mktemp("k"), SLOWLY_TICKING, timeouts={"drain_s": drain_s})
    try:
        async with Crowd(MODEL, lambda: house.port, await house.set_up(), CLIENTS, SEED) as crowd:
            await asyncio.sleep(2.0)
            async with asyncio.timeout(50):
                assert await house.terminate(signals) == 0
            async with crowd.at_rest():
                # Who was told anything was told the end, too.
                cut = [one for one in crowd.seen if one.status == 200 and not (one.complete or one.code or one.left)]
                assert cut == []
                # A connection that was closed as the request came is no answer: then nothing was read of it.
                read = {line["client_request_id"] for line in house.events("request")}
                unanswered = [one for one in crowd.seen if one.name in read and not one.status and not one.left]
                assert read
                assert unanswered == []
                # Who comes meanwhile is turned away; who was at work is cut off only if that takes too long.
                reasons = {row["reason"] for row in await house.rows("ledger")}
                assert ("shutting_down" in reasons) == told, reasons
                assert not told or "server_shutting_down" in {one.code for one in crowd.seen}
                assert await nothing_is_open(house)
                await check_at_work(house, crowd.seen)
                generated, _ = house.generated()
                for row in await house.rows("ledger"):
                    charged = row["prompt_tokens"], row["completion_tokens"]
                    assert charged == generated.get(row["request_id"], (0, 0)), row
    finally:
        await house.tear_down()


@pytest.mark.timeout(120 + 10 * KILLS)
async def test_f5_kills_of_postgres_too_lose_nothing_and_give_nothing_away(
    tmp_path_factory: Any, postgres: Postgres
) -> None:
    house = Besieged(tmp_path_factory.mktemp("k"), TICKING, postgres)
    await besiege(house, [DATABASE, PROXY, SIDECAR], KILLS)
