"""What the types cannot say of a policy file: each problem with the place that must change. Pure."""

import re
from collections.abc import Iterator
from typing import Final

from proxy.policy.schema import PolicyFile, TierRules, number
from sidecar.yamlfile import Document, Problem

EVERY_MODEL: Final = "*"
# Tiers are metric labels: short, plain, and apart from the label of requests that have none.
NO_TIER: Final = "none"
_TIER_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_MODEL: Final = re.compile(r"[!-~]+")


def check(document: Document[PolicyFile]) -> Iterator[Problem]:
    """All that is wrong with one file, whose shape is right."""
    tiers = document.value.tiers
    if not tiers:
        yield document.problem(("tiers",), "has no tier; define at least one")
    for name, rules in tiers.items():
        if not _TIER_NAME.fullmatch(name) or name == NO_TIER:
            message = (
                f"{name!r} cannot be a tier's name; use up to 32 of a-z, 0-9, _ and -, a letter first, not {NO_TIER!r}"
            )
            yield Problem(str(document.path), *document.key_position(("tiers", name)), message)
        yield from _check_models(document, name, rules.models)
        yield from _check_output(document, name, rules)


def twice(documents: list[Document[PolicyFile]]) -> Iterator[Problem]:
    """Each tier is in one file. The second one is blamed, and told where the first is."""
    first: dict[str, str] = {}
    for document in documents:
        for name in document.value.tiers:
            line, column = document.key_position(("tiers", name))
            if name in first:
                message = f"the tier {name!r} is also at {first[name]}; each tier is in one file"
                yield Problem(str(document.path), line, column, message)
            else:
                first[name] = f"{document.path}:{line}:{column}"


def _check_models(document: Document[PolicyFile], tier: str, models: list[str]) -> Iterator[Problem]:
    for index, model in enumerate(models):
        message = ""
        if not _MODEL.fullmatch(model):
            message = f"{model!r} cannot be a model's name: it has a space, a control or a non-ASCII character"
        elif model != EVERY_MODEL and EVERY_MODEL in model:
            message = f"{model!r} is a pattern; write a served name in full, or {EVERY_MODEL!r} alone for every model"
        elif model in models[:index]:
            message = f"{model!r} is listed twice"
        elif EVERY_MODEL in models and model != EVERY_MODEL:
            message = f"{model!r} beside {EVERY_MODEL!r}, which is every model already; remove one of the two"
        if message:
            yield document.problem(("tiers", tier, "models", index), message)


def _check_output(document: Document[PolicyFile], tier: str, rules: TierRules) -> Iterator[Problem]:
    """A request that asks for nothing gets the default: a default that could never fit would refuse the very first.

    An unlimited default is no such mistake, except beside a maximum: it is sized to what the limits can hold.
    """
    default, most = number(rules.default_output_tokens), number(rules.max_output_tokens)
    keys = ("tiers", tier, "default_output_tokens")
    if most is not None and (default is None or default > most):
        yield document.problem(keys, f"{_text(default)} is more than max_output_tokens, which is {most}")
    if default is None:
        return
    for field, limit in (("tokens_per_minute", rules.tokens_per_minute), ("monthly_tokens", rules.monthly_tokens)):
        # A prompt has a token at least.
        if (most_ever := number(limit)) is not None and default >= most_ever:
            yield document.problem(keys, f"{default} and a prompt are more than {field}, which is {most_ever}")


def _text(limit: int | None) -> str:
    return "unlimited" if limit is None else str(limit)
