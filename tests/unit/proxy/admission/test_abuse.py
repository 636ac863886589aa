"""Misuse of good keys: where from, how often the same, from how many places."""

import io
import json
from dataclasses import dataclass, field
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from proxy.admission.abuse import Abuse, Repeats
from proxy.admission.origins import WINDOW_S, Origins
from proxy.admission.rate import RateLook
from proxy.body import read_call
from proxy.exchange import Call, Principal
from proxy.metrics import Metrics
from proxy.policy.schema import Policy, Rule, Tier
from proxy.verdict import RefusedError, Remark
from sidecar.jsonlog import JsonLog
from sidecar.wire.internal import Endpoint
from tests.fakes.proxy import FakeClock


def tier(**rules: Any) -> Tier:
    limits = dict.fromkeys(
        (
            "requests_per_minute",
            "tokens_per_minute",
            "concurrency",
            "monthly_requests",
            "monthly_tokens",
            "max_output_tokens",
            "default_output_tokens",
        )
    )
    return Tier(**{"name": "t", "models": frozenset({"*"}), "priority": 0, **limits, **rules})


@dataclass
class Room:
    """The room with a tier of its own."""

    rules: dict[str, Any]
    clock: FakeClock = field(default_factory=FakeClock)
    log: io.StringIO = field(default_factory=io.StringIO)

    def __post_init__(self) -> None:
        policy = Policy(tiers={"t": tier(**self.rules)}, revision="r")
        self.metrics = Metrics(self.clock, CollectorRegistry(), "1")
        self.abuse = Abuse(lambda: policy, self.metrics, self.clock, JsonLog(self.log))

    def ask(self, text: str = "Hi", key: str = "k") -> tuple[Remark, ...]:
        with self.abuse.asked(principal(key), chat(text)) as remarks:
            return remarks

    def refusal(self, text: str = "Hi", key: str = "k") -> RefusedError:
        with pytest.raises(RefusedError) as refused:
            self.ask(text, key)
        return refused.value

    def signals(self) -> list[tuple[str, int]]:
        lines = [json.loads(line) for line in self.log.getvalue().splitlines()]
        assert {line["event"] for line in lines} <= {"key_from_many_addresses"}
        assert self.metrics.keys_from_many_addresses._value.get() == len(lines)
        return [(line["key_id"], line["count"]) for line in lines]


def principal(key: str = "k", **options: Any) -> Principal:
    return Principal("a", key, "t", None, **options)


def chat(text: str, **fields: Any) -> Call:
    body = {"model": "m", "messages": [{"role": "user", "content": text}]} | fields
    return read_call(Endpoint.CHAT, json.dumps(body).encode(), max_choices=8, max_prompts=32)


def call(endpoint: Endpoint, **fields: Any) -> Call:
    return read_call(endpoint, json.dumps({"model": "m"} | fields).encode(), max_choices=8, max_prompts=32)


@pytest.mark.parametrize(
    ("allow", "deny", "address", "welcome"),
    [
        ((), (), "203.0.113.7", True),
        (("192.0.2.0/24",), (), "192.0.2.7", True),
        (("192.0.2.0/24",), (), "::ffff:192.0.2.7", True),
        (("192.0.2.0/24",), (), "203.0.113.7", False),
        (("192.0.2.0/24", "2001:db8::/32"), (), "2001:db8:5::1", True),
        (("192.0.2.0/24",), (), "local", False),
        ((), ("192.0.2.0/24",), "192.0.2.7", False),
        ((), ("192.0.2.0/24",), "203.0.113.7", True),
        (("192.0.2.0/24",), ("192.0.2.7",), "192.0.2.7", False),
        (("192.0.2.0/24",), ("192.0.2.7",), "192.0.2.8", True),
    ],
)
def test_a_key_may_come_from_where_its_lists_say(
    allow: tuple[str, ...], deny: tuple[str, ...], address: str, welcome: bool
) -> None:
    room, who = Room({}), principal(allow_from=allow, deny_from=deny)
    for _ in range(2):
        if welcome:
            room.abuse.came(who, address)
            continue
        with pytest.raises(RefusedError) as refused:
            room.abuse.came(who, address)
        assert (refused.value.status, refused.value.code, refused.value.rule) == (
            403,
            "address_not_allowed",
            "addresses",
        )
        assert address not in refused.value.message


def test_the_same_prompt_is_refused_when_it_comes_too_often() -> None:
    room = Room({"equal_prompts_per_minute": 3})
    for _ in range(3):
        assert room.ask() == ()
    error = room.refusal()
    assert (error.status, error.type, error.code, error.rule) == (
        429,
        "requests",
        "repeated_prompt",
        "equal_prompts_per_minute",
    )
    assert error.headers()["retry-after"] == "20"
    assert "Limit 3 per minute in the tier 't'" in error.message
    # Neither another prompt nor another key is meant.
    assert room.ask("Hello") == room.ask("Hi", "other") == ()
    room.clock.seconds = 20
    assert room.ask() == ()
    room.refusal()


@pytest.mark.parametrize("text", ["hi there", "HI THERE", " Hi  there\n", "Hi\tthere", "Hi\r\nthere", "hithere"])
def test_case_and_white_space_do_not_make_another_prompt(text: str) -> None:
    room = Room({"equal_prompts_per_minute": 1})
    room.ask("Hi there")
    room.refusal(text)


def test_whatever_is_not_asked_with_does_not_make_another_prompt() -> None:
    repeats = Repeats(FakeClock())
    repeats.take("k", chat("Hi"), 1)
    for fields in ({"seed": 7}, {"temperature": 0.1}, {"user": "b"}, {"model": "n"}, {"max_tokens": 3}):
        assert isinstance(repeats.take("k", chat("Hi", **fields), 1), RateLook)


def test_each_route_s_prompt_counts() -> None:
    repeats, many = Repeats(FakeClock()), []
    for one in (
        call(Endpoint.COMPLETIONS, prompt="Hi"),
        call(Endpoint.COMPLETIONS, prompt="Ho"),
        call(Endpoint.RESPONSES, input="Hi"),
        call(Endpoint.RESPONSES, input="Hi", instructions="short"),
        call(Endpoint.RESPONSES, input="Hi", previous_response_id="resp_1"),
        call(Endpoint.EMBEDDINGS, input=["Hi", "Ho"]),
        call(Endpoint.MESSAGES, messages=[], system="Hi", max_tokens=5),
    ):
        many.append(isinstance(repeats.take("k", one, 1), RateLook))
        assert isinstance(repeats.take("k", one, 1), RateLook)
    assert not any(many)


def test_a_prompt_in_shadow_is_remarked_and_let_pass() -> None:
    rules: tuple[Rule, ...] = ("equal_prompts_per_minute",)
    room = Room({"equal_prompts_per_minute": 1, "shadow": frozenset(rules)})
    assert room.ask() == ()
    for _ in range(3):
        assert room.ask() == (Remark("equal_prompts_per_minute", "shadow"),)
    room.clock.seconds = 60
    assert room.ask() == ()


def test_what_is_refused_after_all_does_not_count() -> None:
    room = Room({"equal_prompts_per_minute": 1})
    for _ in range(5):
        with pytest.raises(KeyError), room.abuse.asked(principal(), chat("Hi")):
            raise KeyError
    assert room.ask() == ()


def test_equal_prompts_at_once_are_no_more_than_one_after_another() -> None:
    room = Room({"equal_prompts_per_minute": 2})
    with room.abuse.asked(principal(), chat("Hi")), room.abuse.asked(principal(), chat("Hi")):
        room.refusal()


def test_what_is_remembered_of_prompts_is_bounded() -> None:
    repeats = Repeats(FakeClock(), most=100)
    for number in range(1000):
        repeats.take("k", chat(str(number)), 1)
    assert len(repeats._used) == len(repeats._cells) == 100
    assert isinstance(repeats.take("k", chat("999"), 1), RateLook)
    assert not isinstance(repeats.take("k", chat("0"), 1), RateLook)


def test_no_prompt_is_kept() -> None:
    repeats = Repeats(FakeClock())
    repeats.take("k", chat("canary"), 1)
    assert "canary" not in repr((repeats._used, repeats._cells._full_at))


def test_without_the_rule_nothing_is_counted() -> None:
    room = Room({})
    for _ in range(100):
        assert room.ask() == ()
    assert len(room.abuse._repeats._used) == 0


def test_a_key_from_many_addresses_is_told_once_an_hour_and_never_refused() -> None:
    room = Room({"addresses_per_hour": 3})
    for number in range(20):
        room.abuse.came(principal(), f"192.0.2.{number}")
        room.clock.seconds += 60
    assert room.signals() == [("k", 4)]
    room.clock.seconds += WINDOW_S / 2
    room.abuse.came(principal(), "192.0.2.1")
    assert len(room.signals()) == 1
    room.clock.seconds += WINDOW_S
    for number in range(5):
        room.abuse.came(principal(), f"192.0.2.{number}")
    assert room.signals() == [("k", 4), ("k", 4)]


def test_a_key_that_stays_where_it_is_is_not_told() -> None:
    room = Room({"addresses_per_hour": 1})
    for number in range(100):
        # One network of IPv6, and two keys of one address each.
        room.abuse.came(principal("one"), f"2001:db8::{number}")
        room.abuse.came(principal("two"), "192.0.2.1")
    assert room.signals() == []
    # A public id without its signature is anybody's.
    for number in range(5):
        room.abuse.came(principal("three", public_keys=(b"k",)), f"192.0.2.{number}")
    assert room.signals() == []


def test_an_address_is_forgotten_after_an_hour() -> None:
    clock = FakeClock()
    origins = Origins(clock)
    assert [origins.came("k", "192.0.2.1"), origins.came("k", "192.0.2.2"), origins.came("k", "192.0.2.1")] == [1, 2, 2]
    clock.seconds = WINDOW_S / 2
    assert origins.came("k", "192.0.2.2") == 2
    clock.seconds = WINDOW_S
    assert origins.came("k", "192.0.2.3") == 2
    clock.seconds = 3 * WINDOW_S
    assert origins.came("other", "192.0.2.1") == 1
    assert origins._counts == {"other": 1}


def test_what_is_remembered_of_addresses_is_bounded() -> None:
    origins = Origins(FakeClock(), most=50)
    for number in range(1000):
        origins.came(f"k{number % 7}", f"192.0.{number // 256}.{number % 256}")
    assert len(origins._seen) == sum(origins._counts.values()) == 50
