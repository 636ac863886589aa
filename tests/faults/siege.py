"""Kill, start again, and look at the books: what holds at any moment, and what holds when nothing runs."""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence

from tests.fakes.sidecar import MODEL
from tests.faults.besieged import SMALL, Besieged, until
from tests.faults.crowd import Crowd, Seen

SEED = 5
CLIENTS = 24
# So many kills between two looks at the books at rest.
BETWEEN_LOOKS = 10
GAUGES = ("tollhouse_proxy_requests_in_progress", "tollhouse_proxy_open_streams", "tollhouse_proxy_ledger_queue_depth")


async def besiege(
    house: Besieged,
    victims: Sequence[str],
    kills: int,
    model: str = MODEL,
    *,
    embedder: str = MODEL,
    pause_s: tuple[float, float] = (0.1, 1.0),
) -> None:
    """Kill one of the victims after a pause of so long, start it again, and look; and so on."""
    chance = random.Random(SEED)
    killed: Counter[str] = Counter()
    try:
        keys = await house.set_up()
        async with Crowd(model, lambda: house.port, keys, CLIENTS, SEED, embedder=embedder) as crowd:
            for number in range(1, kills + 1):
                await asyncio.sleep(chance.uniform(*pause_s))
                victim = chance.choice(victims)
                killed[victim] += 1
                await house.kill(victim)
                await asyncio.sleep(chance.uniform(0.0, 0.3))
                await house.start(victim)
                await check_at_work(house, crowd.seen)
                if number % BETWEEN_LOOKS == 0 or number == kills:
                    async with crowd.at_rest():
                        unseen = await check_at_rest(house, crowd.seen)
            told = Counter(f"{seen.status} {seen.code}".strip() for seen in crowd.seen)
        print(figures(house, killed, told, crowd.seen, unseen))  # noqa: T201  # for a run with `-s`
    except BaseException:
        print(house.log())  # noqa: T201
        raise
    finally:
        await house.tear_down()


async def check_at_work(house: Besieged, seen: list[Seen]) -> None:
    """What holds at any moment, whatever runs."""
    whole = [one for one in seen if one.complete]
    assert await house.broken_laws() == []
    rows = {row["request_id"]: row for row in await house.rows("ledger")}
    for one in whole:
        row = rows[one.request_id]
        assert (row["state"], row["status"], row["reason"]) == ("settled", 200, "complete"), (one, row)
        assert (row["prompt_tokens"], row["completion_tokens"]) == one.tokens, (one, row)
    for quota in await house.rows("quota"):
        (key,) = [key for key in await house.rows("api_key") if key["id"] == quota["key_id"]]
        if key["tier"] == "small":
            assert quota["settled_tokens"] + quota["reserved_tokens"] <= SMALL, quota


async def check_at_rest(house: Besieged, seen: list[Seen]) -> int:
    """What holds when nothing runs. Gives how many ran that the ledger did not let in, and of which nobody heard."""
    await until(lambda: nothing_is_open(house), "open rows")
    await check_at_work(house, seen)
    rows = {row["request_id"]: row for row in await house.rows("ledger")}
    generated, running = house.generated()
    assert running == 0
    for request_id, row in rows.items():
        charged = row["prompt_tokens"], row["completion_tokens"]
        assert row["state"] in {"settled", "void", "refused"}, row
        # One that the ledger refused may have begun beside it: then nobody was told a byte of it.
        made = (0, 0) if row["state"] == "refused" else generated.get(request_id, (0, 0))
        assert charged == made, (generated.get(request_id), row)
    for one in seen:
        # What has begun to be answered was on disk, and let in.
        assert one.status != 200 or rows[one.request_id]["state"] != "refused", one
    await until(lambda: gauges_are_zero(house), "gauges at zero")
    return len(set(generated) - {request_id for request_id, row in rows.items() if row["state"] != "refused"})


async def gauges_are_zero(house: Besieged) -> bool:
    """In the end: a key's last use may be on its way to the disk."""
    metrics = await house.metrics()
    return all(metrics[name] == 0 for name in GAUGES)


async def nothing_is_open(house: Besieged) -> bool:
    return all(row["state"] != "reserved" for row in await house.rows("ledger"))


def figures(house: Besieged, killed: Counter[str], told: Counter[str], seen: list[Seen], unseen: int) -> str:
    recovered = Counter[str]()
    for line in house.events("orphans_settled"):
        recovered.update({name: line[name] for name in ("settled", "voided", "forced")})
    whole = sum(one.complete for one in seen)
    return (
        f"{killed.total()} kills {dict(killed)}; {len(seen)} requests, {whole} complete, told {dict(told)}; "
        f"orphans {dict(recovered)}; ran and was not let in {unseen}; "
        f"the slowest start took {max(house.ready_s):.1f} s, the quickest {min(house.ready_s):.1f} s"
    )
