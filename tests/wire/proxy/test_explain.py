"""What a running server explains: as things stand now, and without taking anything."""

from pathlib import Path

import pytest

from proxy.admin.client import AdminClient
from proxy.admin.explaining import WantedExplanation
from proxy.admin.records import KeyChanges, KeyLimitChanges
from proxy.policy.schema import Overrides
from sidecar.wire.errors import ApiError
from tests.wire.proxy.house import House, chat


def key_id(key: str) -> str:
    return key.removeprefix("sk-th_").partition("_")[0]


async def test_a_server_explains_what_it_would_do_and_then_does_it(house: House) -> None:
    key = await house.key("one")
    wanted = WantedExplanation(key=key_id(key), request=chat())
    async with AdminClient(house.settings.admin.socket) as client:
        before = [await client.explain(wanted) for _ in range(3)][-1]
        first = await (await house.ask(key)).answer()
        after = await client.explain(wanted)
        second = await (await house.ask(key)).answer()
    assert (before.explained.verdict, first.status) == ("allowed", 200)
    assert before.explained.cost is not None
    assert (before.explained.cost.output_tokens, before.explained.model) == (8, "org/tiny")
    assert (after.explained.refused_by, second.status) == ("requests_per_minute", 429)
    assert (after.state, after.key_id) == ("active", key_id(key))
    rules = {rule.rule: rule for rule in after.explained.rules}
    assert rules["requests_per_minute"].value == 1
    assert rules["requests_per_minute"].place.startswith(f"{Path(house.settings.policies)}/default.yaml:1:")


async def test_what_cannot_be_explained_is_told(house: House) -> None:
    key = key_id(await house.key())
    other = chat(model="org/other")
    async with AdminClient(house.settings.admin.socket) as client:
        for wanted, status in (
            (WantedExplanation(key="nobody"), 404),
            (WantedExplanation(key=key, endpoint="/v1/models", request=other), 400),
            (WantedExplanation(key=key, model="org/tiny", request=other), 400),
            (WantedExplanation(key=key, request={"model": 5}), 400),
        ):
            with pytest.raises(ApiError) as told:
                await client.explain(wanted)
            assert told.value.status == status


async def test_a_limit_that_is_used_up_refuses_a_request_whose_size_nobody_knows(house: House) -> None:
    key = await house.key("one", limits=Overrides(requests_per_minute=100, monthly_tokens=100))
    assert (await (await house.ask(key)).answer()).status == 200
    async with AdminClient(house.settings.admin.socket) as client:
        before = (await client.explain(WantedExplanation(key=key_id(key)))).explained
        (said,) = [said for said in before.says if said.rule == "monthly_tokens"]
        await client.update_key(key_id(key), KeyChanges(limits=KeyLimitChanges(monthly_tokens=said.used)))
        after = (await client.explain(WantedExplanation(key=key_id(key)))).explained
    assert (before.verdict, said.requested, said.used > 0) == ("allowed", 1, True)
    assert (after.verdict, after.refused_by) == ("refused", "monthly_tokens")
