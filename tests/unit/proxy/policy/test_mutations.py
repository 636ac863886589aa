"""A good policy file spoilt in many ways, under a watch: it never runs what `policy check` refuses, and never ends.

TOLLHOUSE_POLICY_MUTATIONS are their number, TOLLHOUSE_POLICY_SEED the first seed; a failure names its own.
"""

import os
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from proxy.cli import root
from proxy.policy import json_schema
from proxy.policy.schema import Policy, number
from proxy.policy.watch import PolicyWatch, read
from sidecar.yamlfile import ConfigInvalidError, Problem

COUNT = int(os.environ.get("TOLLHOUSE_POLICY_MUTATIONS", "1500"))
SEED = int(os.environ.get("TOLLHOUSE_POLICY_SEED", "1"))
# Each refusal costs the reading again: of those only some are told to the command, too.
REFUSALS_CHECKED = 20
GOOD = """\
version: 1
tiers:
  free:  # a comment
    requests_per_minute: 10
    tokens_per_minute: 10000
    concurrency: 2
    monthly_requests: 3000
    monthly_tokens: 1000000
    max_output_tokens: 1024
    default_output_tokens: 512
    models: ["m", 'org/n']
    priority: 0
    weight: 1.5
    per_model:
      m: {requests_per_minute: 5, max_output_tokens: 600}
    shadow: [requests_per_minute]
    max_wait_s: 2.5
    max_waiting: 3
    idempotency_bodies: true
    response_headers:
      x-served-by: "rack 4"
"""
# What YAML readers disagree on, what is too much, and what is not there.
WORDS = """
0 1 -1 +7 7.0 1.5 010 0x1F 0o17 1_000 1e3 12:30 .inf .nan 1000000000000000 1000000000000001 9223372036854775808 *a <<
unlimited Unlimited 'unlimited' '5' yes no true True null ~ [] {} [m] m m] '*' llama-* 2026-11-26 | free signed key
"""
VALUES = [
    *WORDS.split(),
    *(
        "!!int 5",
        "&a 5",
        "{a: 1}",
        ">\n      5",
        "\xe9",
        "\u2028",
        "\ufeff",
        "\x00",
        "\t",
        '"rack\\x0a5"',
        "? a",
        "\ud800",
    ),
]
Spoil = Callable[[random.Random, str], str]


class Reader(yaml.SafeLoader):
    """YAML 1.2's core schema: `yes` and dates are text, and only true and false are booleans."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own way
        first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] in {"int", "float", "null"}]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


Reader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("true|false"), list("tf"))


class Watched:
    """Counts what the watch takes and refuses. What it did not expect is kept."""

    def __init__(self) -> None:
        self.loaded_times = self.refused_times = 0
        self.unexpected: list[Exception] = []

    def loaded(self, policy: Policy, before: Policy | None) -> None:
        self.loaded_times += 1

    def refused(self, problems: Sequence[Problem], exc: Exception, current: Policy) -> None:
        self.refused_times += 1
        if not isinstance(exc, ConfigInvalidError) or not problems:
            self.unexpected.append(exc)


def a_character(chance: random.Random, text: str) -> str:
    at = chance.randrange(len(text) + 1)
    new = chance.choice(["", chr(chance.randrange(1, 0x250)), chance.choice(":#-[]{}&*!|>'\"%@`,? \n\t")])
    return text[:at] + new + text[at + chance.randrange(2) :]


def a_line(chance: random.Random, text: str) -> str:
    lines = text.splitlines(keepends=True) or [""]
    at = chance.randrange(len(lines))
    line = lines[at]
    kind = chance.randrange(5)
    lines[at : at + 1] = [[], [line, line], [" " + line], [line[2:]], [line[::-1]]][kind]
    if chance.random() < 0.2:
        chance.shuffle(lines)
    return "".join(lines)


def a_value(chance: random.Random, text: str) -> str:
    found = list(re.finditer(r"(?<=: )[^\n#]+|(?<=[\[{, ])[\w/*-]+", text))
    if not found:
        return text
    spot = chance.choice(found)
    return text[: spot.start()] + chance.choice(VALUES) + text[spot.end() :]


def a_number(chance: random.Random, text: str) -> str:
    found = list(re.finditer(r"\d+", text))
    if not found:
        return text
    spot = chance.choice(found)
    return text[: spot.start()] + str(chance.choice([0, 1, 2, 9, 511, 10**15, 10**16, 10**30])) + text[spot.end() :]


def a_key(chance: random.Random, text: str) -> str:
    found = list(re.finditer(r"[\w-]+(?=:)", text))
    if len(found) < 2:
        return text
    spot, other = chance.sample(found, 2)
    return text[: spot.start()] + other[0] + text[spot.end() :]


def the_end(chance: random.Random, text: str) -> str:
    return text[: chance.randrange(len(text) + 1)]


def a_piece(chance: random.Random, text: str) -> str:
    start, end = sorted(chance.randrange(len(text) + 1) for _ in range(2))
    at = chance.randrange(len(text) + 1)
    return text[:at] + text[start : min(end, start + 200)] + text[at:]


def deep(chance: random.Random, text: str) -> str:
    return text + chance.choice(["[", "{a: ", "- ", "? "]) * chance.choice([19, 25, 3000])


SPOILS: tuple[Spoil, ...] = (*(a_character, a_line, a_value, a_number, a_key) * 4, the_end, a_piece, deep)


def spoilt(seed: int) -> bytes:
    chance = random.Random(seed)
    text = GOOD
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        text = chance.choice(SPOILS)(chance, text)
    data = text.encode("utf-8", "surrogatepass")
    if chance.random() < 0.05 and data:
        at = chance.randrange(len(data))
        data = data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]
    return data


def same(policy: Policy, found: Any) -> bool:
    """Whether another reader of YAML found the same tiers and limits in the file."""
    return found.keys() == {"version", "tiers"} and {
        name: (number(rules["requests_per_minute"]), number(rules["monthly_tokens"]), frozenset(rules["models"]))
        for name, rules in found["tiers"].items()
    } == {name: (tier.requests_per_minute, tier.monthly_tokens, tier.models) for name, tier in policy.tiers.items()}


@pytest.mark.timeout(600)
def test_f12_no_mutation_of_a_policy_brings_in_what_the_check_refuses_or_ends_the_watch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "p"
    folder.mkdir()
    file = folder / "a.yaml"
    file.write_text(GOOD)
    told = Watched()
    watch = PolicyWatch(folder, read(folder), told)
    shape = jsonschema.Draft202012Validator(json_schema.schema())
    for seed in range(SEED, SEED + COUNT):
        data, before = spoilt(seed), watch()
        file.write_bytes(data)
        reading = watch.look(wanted=True)
        assert reading is not None, seed
        watch.take(reading)
        if isinstance(reading.found, Policy):
            assert watch() == reading.found, seed
            assert root.run(["-q", "policy", "check", "p"]) == 0, seed
            found = yaml.load(data, Reader)  # noqa: S506 - a safe one
            assert shape.is_valid(found), seed
            assert same(watch(), found), seed
        else:
            assert watch() is before, seed
            if seed % REFUSALS_CHECKED == 0:
                assert root.run(["-q", "policy", "check", "p"]) == 3, seed
        assert told.unexpected == [], seed
        capsys.readouterr()
    # Of both there must be many, or the mutations are too tame or too wild.
    assert min(told.loaded_times, told.refused_times) > COUNT / 20
