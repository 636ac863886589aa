"""Misuse of a good key, as its client and its operator see it."""

from tests.fakes.sidecar import WHOLE
from tests.wire.proxy.conftest import Build
from tests.wire.proxy.house import House, chat, request


async def test_a_prompt_over_and_over_is_a_429_with_its_wait(house: House) -> None:
    key = await house.key("parrot")
    for status in (200, 200, 429):
        wire = await house.ask(key, chat(stream=False))
        answer = await wire.answer()
        assert answer.status == status
    assert (answer.error["type"], answer.error["code"]) == ("requests", "repeated_prompt")
    assert 20 <= int(answer.headers["retry-after"]) <= 30
    assert (await house.line(count=3))["error_code"] == "repeated_prompt"
    other = chat(stream=False, messages=[{"role": "user", "content": "Something else"}])
    assert (await (await house.ask(key, other)).answer()).body == WHOLE
    probe = await house.connect(admin=True)
    await probe.send(request(None, method="GET", path="/metrics"))
    page = (await probe.answer()).body
    assert b'decisions_total{decision="refuse",policy="equal_prompts_per_minute"} 1.0' in page


async def test_a_key_from_many_addresses_is_told_and_served(build: Build) -> None:
    async with build(trusted_proxies=("127.0.0.0/8",)) as house:
        key = await house.key("parrot")
        for number in range(4):
            headers = {"x-forwarded-for": f"203.0.113.{number}"}
            wire = await house.ask(key, method="GET", path="/v1/models", headers=headers)
            assert (await wire.answer()).status == 200
        line = await house.line("key_from_many_addresses")
        assert (line["count"], line["limit"]) == (3, 2)
        assert key.startswith(f"sk-th_{line['key_id']}_")
        probe = await house.connect(admin=True)
        await probe.send(request(None, method="GET", path="/metrics"))
        assert b"tollhouse_proxy_keys_from_many_addresses_total 1.0" in (await probe.answer()).body
