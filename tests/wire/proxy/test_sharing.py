"""Several proxies on one Postgres: what they let in together stays within a quota."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.wire.proxy.conftest import Build
from tests.wire.proxy.house import Answer, House, chat

pytestmark = pytest.mark.parametrize("database", ["postgres"], indirect=True)


@pytest.fixture
async def both(build: Build) -> AsyncIterator[tuple[House, House]]:
    async with build() as one, build(at="2") as two:
        yield one, two


async def answer(house: House, key: str) -> Answer:
    return await (await house.ask(key, chat(stream=False))).answer()


async def test_two_proxies_do_not_go_beyond_a_quota_together(both: tuple[House, House]) -> None:
    key = await both[0].key("few")
    rounds = [await asyncio.gather(*(answer(house, key) for house in both)) for _ in range(6)]
    answers = [each for answered in rounds for each in answered]
    refused = [each for each in answers if each.status != 200]
    assert {each.status for each in refused} == {429}
    assert {each.error["code"] for each in refused} == {"insufficient_quota"}
    assert all("monthly tokens in the tier 'few': Limit 100, Used" in each.error["message"] for each in refused)
    rows = [row for row in both[0].rows() if row["state"] != "refused"]
    assert len(rows) == len(answers) - len(refused)
    assert {row["state"] for row in rows} == {"settled"}
    used = sum(row["prompt_tokens"] + row["completion_tokens"] for row in rows)
    assert used <= 100
    assert {row["upstream"] for row in rows} == {"local", "local2"}


async def test_a_refusal_of_the_ledger_costs_nothing_and_is_logged_as_a_refusal(both: tuple[House, House]) -> None:
    key = await both[0].key("few")
    one, two = both
    assert (await answer(two, key)).status == 200
    while (await answer(one, key)).status == 200:
        pass
    # What the second proxy knows is from before.
    assert (await answer(two, key)).status == 429
    line = await two.line(count=2)
    assert (line["ending"], line["status"], line["rule"]) == ("refused", 429, "monthly_tokens")
    # Its row is written when the writer comes to it.
    await two.until(lambda: {row["state"] for row in two.rows()} == {"settled", "refused"})


async def test_r_a_nonce_that_one_proxy_has_seen_is_seen_by_the_other(both: tuple[House, House]) -> None:
    key = await both[0].key("duplicate")

    async def ask(house: House, nonce: str) -> int:
        headers = {"x-request-nonce": nonce}
        return (await (await house.ask(key, chat(stream=False), headers=headers)).answer()).status

    assert [await ask(house, "a" * 16) for house in both] == [200, 409]
    for number in range(8):
        nonce = f"{number}" * 16
        assert sorted(await asyncio.gather(*(ask(house, nonce) for house in both))) == [200, 409]
    assert sum(len(house.sidecar.received) for house in both) == 9


async def test_an_idempotency_key_is_one_for_all_proxies(both: tuple[House, House]) -> None:
    key = await both[0].key("keeping")

    async def ask(house: House, word: str) -> Answer:
        headers = {"idempotency-key": word}
        return await (await house.ask(key, chat(stream=False), headers=headers)).answer()

    for number in range(8):
        answers = await asyncio.gather(*(ask(house, f"order-{number}") for house in both))
        # The second one comes while the first runs, or after it.
        assert {answer.status for answer in answers} <= {200, 409}
        again = [await ask(house, f"order-{number}") for house in both]
        assert [answer.headers["idempotent-replayed"] for answer in again] == ["true", "true"]
    assert sum(len(house.sidecar.received) for house in both) == 8
