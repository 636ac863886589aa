"""The policies of the cookbook: each is valid, and answers what docs/policies.md says it does."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from typing import Final

import pytest
from msgspec.structs import replace

from proxy.cli import root
from proxy.load import Load
from proxy.policy.load import load_policy
from proxy.policy.schema import Overrides
from proxy.simulation.time import JumpingLoop
from tests.fakes import cookbook
from tests.fakes.policy_desk import Desk, Said

Rows = AsyncIterator[tuple[str, Said]]
# 64 sequences run and 256 may wait; three end in a second.
HALF_FULL: Final = Load(sequences=200, at_once=64, in_queue=256, per_s=3.0)
FULL: Final = Load(sequences=322, at_once=64, in_queue=256, per_s=3.0)


async def laptop(desk: Desk) -> Rows:
    key = desk.key("mine")
    running = [await desk.ask(key, runs_s=10) for _ in range(3)]
    assert {said.status for said in running} == {200}
    yield "the third of three at once", running[-1]
    yield "a fourth, while those run 10 s more", await desk.ask(key, runs_s=100)
    for _ in range(2):
        await desk.ask(key, runs_s=100)
    waiting = [desk.later(desk.ask(key)) for _ in range(8)]
    await desk.passes(1)
    yield "a twelfth, while three run and eight wait", await desk.ask(key)
    yield "one that has waited for a minute", (await asyncio.gather(*waiting))[0]
    await desk.passes(100)
    yield "`max_tokens: 8192`", await desk.ask(key, max_tokens=8192)


async def lab(desk: Desk) -> Rows:
    key = desk.key("student")
    for _ in range(10):
        assert (await desk.ask(key)).status == 200
    yield "a student's 11th request in a row", await desk.ask(key)
    key = desk.key("student")
    await desk.ask(key, runs_s=4)
    yield "a student's second, while the first runs 4 s more", await desk.ask(key)
    yield "a student's `max_tokens: 2048`", await desk.ask(key, max_tokens=2048)
    yield "a student's prompt of 9,000 tokens", await desk.ask(key, prompt_tokens=9000)
    yield "a student, for the model `large`", await desk.ask(key, model="large")
    yield "an assistant, for the model `large`", await desk.ask(desk.key("assistant"), model="large")
    yield "a student who has used 450,000 tokens", await desk.ask(desk.key("student", used_tokens=450_000))
    yield "a student who has used 499,900 tokens", await desk.ask(desk.key("student", used_tokens=499_900))


async def company(desk: Desk) -> Rows:
    heavy = desk.key("employee", account="sales", used_tokens=10_000_000)
    yield "a key that has used 10,000,000 tokens", await desk.ask(heavy)
    yield "another key of its department", await desk.ask(desk.key("employee", account="sales"))
    yield "a key that has used 8,500,000", await desk.ask(desk.key("employee", account="it", used_tokens=8_500_000))
    desk.key("service", account="legal", used_tokens=39_000_000)
    desk.key("employee", account="legal", used_tokens=9_000_000)
    desk.key("employee", account="legal", used_tokens=2_000_000)
    new = desk.key("employee", account="legal")
    yield "a new key of a department whose keys have used 50,000,000", await desk.ask(new)
    more = Overrides(monthly_tokens=200_000_000)
    yield (
        "the same, in a department with 200,000,000 of its own",
        await desk.ask(replace(new, account_limits=more)),
    )
    yield "a key of another department", await desk.ask(desk.key("employee", account="hr"))


async def plans(desk: Desk) -> Rows:
    key = desk.key("free")
    for _ in range(6):
        assert (await desk.ask(key)).status == 200
    yield "free, the 7th request in a row", await desk.ask(key)
    yield "free, for the model `large`", await desk.ask(key, model="large")
    desk.key("free", account="guest", used_requests=1000)
    yield "free, a second key of who has used its 1,000 requests", await desk.ask(desk.key("free", account="guest"))
    desk.load = HALF_FULL
    yield "free, while the queue is more than half full", await desk.ask(desk.key("free"))
    yield "pro, at the same time", await desk.ask(desk.key("pro"))
    desk.load = FULL
    yield "pro, while the queue is full", await desk.ask(desk.key("pro"))
    desk.load = HALF_FULL
    yield "pro, with 16,000,000 tokens used", await desk.ask(desk.key("pro", used_tokens=16_000_000))
    yield "pro, with 20,000,000 tokens used", await desk.ask(desk.key("pro", used_tokens=20_000_000))


async def batch(desk: Desk) -> Rows:
    job = desk.key("batch")
    asked = [desk.later(desk.ask(job, runs_s=2)) for _ in range(300)]
    await desk.passes(0.1)
    yield "a person, while a job has sent 300 requests", await desk.ask(desk.key("interactive"))
    said = await asyncio.gather(*asked)
    assert {one.status for one in said} == {200}
    yield "the last of these 300, each of which runs 2 s", said[-1]
    job = desk.key("batch")
    asked = [desk.later(desk.ask(job, runs_s=1000)) for _ in range(1008)]
    await desk.passes(1)
    yield "a job's 1,009th at once", await desk.ask(job)
    yield "one that has waited for five minutes", (await asyncio.gather(*asked))[-1]
    desk.load = HALF_FULL
    yield "a job, while the queue is more than half full", await desk.ask(desk.key("batch"))
    yield "a person, at the same time", await desk.ask(desk.key("interactive"))


async def demo(desk: Desk) -> Rows:
    key = desk.key("demo")
    for prompt in ("Tell me a joke", "tell me a JOKE", " Tell me a joke\n"):
        assert (await desk.ask(key, prompt=prompt)).status == 200
    yield "the same prompt a fourth time, blanks and capitals aside", await desk.ask(key, prompt="Tell me a  joke")
    yield "another prompt", await desk.ask(key)
    for _ in range(26):
        assert (await desk.ask(key)).status == 200
    yield "the 31st request in a row", await desk.ask(key)
    yield "`max_tokens: 512`", await desk.ask(key, max_tokens=512)
    await desk.passes(60)
    for _ in range(2):
        await desk.ask(key, runs_s=10)
    yield "a third, while two run 10 s more", await desk.ask(key)
    await desk.passes(60)
    for number in range(1, 100):
        await desk.passes(2)
        assert (await desk.ask(key, address=f"198.51.100.{number}")).status == 200
    assert desk.lines("key_from_many_addresses") == []
    yield "from a 101st address in an hour", await desk.ask(key, address="198.51.100.100")
    (line,) = desk.lines("key_from_many_addresses")
    assert line["key_id"] == key.key_id
    desk.key("demo", account="web", used_tokens=5_000_000)
    yield "a second key of an account that has used 5,000,000 tokens", await desk.ask(desk.key("demo", account="web"))


async def trial(desk: Desk) -> Rows:
    key = desk.key("pro")
    for _ in range(30):
        assert await desk.ask(key) == Said(200)
    yield "the 31st request in a row", await desk.ask(key)
    yield "a key that has used 20,000,000 tokens", await desk.ask(desk.key("pro", used_tokens=20_000_000))
    busy = desk.key("pro")
    for _ in range(16):
        await desk.ask(busy, runs_s=5)
    yield "the 17th that runs at once", await desk.ask(busy)
    tier = replace(desk.policy.tiers["pro"], shadow=frozenset())
    desk.policy = replace(desk.policy, tiers={"pro": tier}, revision="next")
    key = desk.key("pro")
    for _ in range(30):
        assert await desk.ask(key) == Said(200)
    yield "the 31st, once `shadow` is gone from the file", await desk.ask(key)


async def models(desk: Desk) -> Rows:
    key = desk.key("staff")
    for _ in range(10):
        assert (await desk.ask(key, model="large")).status == 200
    yield "the 11th request in a row to `large`", await desk.ask(key, model="large")
    yield "then one to `small`", await desk.ask(key)
    key = desk.key("staff")
    await desk.ask(key, model="large", runs_s=20)
    yield "a second to `large`, while the first runs 20 s more", await desk.ask(key, model="large")
    yield "`max_tokens: 2048` of `large`", await desk.ask(key, model="large", max_tokens=2048)
    yield "`max_tokens: 2048` of `small`", await desk.ask(key, max_tokens=2048)


async def partner(desk: Desk) -> Rows:
    key = desk.key("partner", allow_from=("203.0.113.0/24",))
    yield "from 203.0.113.7", await desk.ask(key, address="203.0.113.7")
    yield "from 198.51.100.1", await desk.ask(key, address="198.51.100.1")
    for number in range(1, 4):
        assert (await desk.ask(key, address=f"203.0.113.{number}")).status == 200
    assert desk.lines("key_from_many_addresses") == []
    yield "from a fifth address of its network in an hour", await desk.ask(key, address="203.0.113.99")
    assert len(desk.lines("key_from_many_addresses")) == 1
    yield "with 90,000,000 tokens used", await desk.ask(desk.key("partner", used_tokens=90_000_000))


SCENARIOS: Final[dict[str, Callable[[Desk], Rows]]] = {
    scenario.__name__: scenario for scenario in (laptop, lab, company, plans, batch, demo, trial, models, partner)
}
# Those of whose answers the wire is a part, in tests/wire/proxy/test_policy_examples.py.
ON_THE_WIRE: Final = {"machines"}


async def answered(scenario: Callable[[Desk], Rows], desk: Desk) -> list[str]:
    async with desk:
        return [cookbook.row(request, said.cells()) async for request, said in scenario(desk)]


def test_every_example_is_in_the_cookbook_and_has_a_scenario() -> None:
    assert cookbook.files() == sorted({*SCENARIOS, *ON_THE_WIRE})
    assert len(cookbook.files()) == 10
    linked = re.findall(r"\(\.\./policies/examples/(\w+)\.yaml\)", cookbook.PAGE.read_text())
    assert sorted(linked) == cookbook.files()


@pytest.mark.parametrize("name", cookbook.files())
def test_an_example_is_valid(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert root.run(["policy", "check", str(cookbook.EXAMPLES / f"{name}.yaml")]) == 0
    assert "The policy is valid" in capsys.readouterr().err


@pytest.mark.parametrize("name", cookbook.files())
def test_an_example_says_for_whom_it_is_and_is_shown_as_it_is(name: str) -> None:
    text = (cookbook.EXAMPLES / f"{name}.yaml").read_text()
    schema, blank, whom = text.splitlines()[:3]
    assert (schema, blank) == ("# yaml-language-server: $schema=../policy.schema.json", "#")
    assert whom.startswith("# For ")
    (shown,) = re.findall(r"```yaml\n(.*?)```", cookbook.section(name), re.DOTALL)
    lines = iter(text.splitlines())
    # What is shown are lines of the file, in its order: `in` reads on where it stopped.
    assert [line for line in shown.splitlines() if line not in lines] == []


@pytest.mark.parametrize("name", SCENARIOS)
def test_an_example_answers_what_the_cookbook_says(name: str) -> None:
    policy = load_policy(cookbook.EXAMPLES / f"{name}.yaml")
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, JumpingLoop)
        rows = runner.run(answered(SCENARIOS[name], Desk(policy, loop)))
    assert cookbook.answers(name) == rows, "\n".join(["docs/policies.md must say:", *rows])
