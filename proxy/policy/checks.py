"""What the types cannot say of a policy file: each problem with the place that must change. Pure."""

import re
from collections.abc import Iterator
from typing import Final

import msgspec

from proxy.policy import response_headers
from proxy.policy.schema import UNLIMITED, ModelRules, PolicyFile, TierRules, number
from sidecar.yamlfile import Document, Problem

EVERY_MODEL: Final = "*"
# Tiers are metric labels: short, plain, and apart from the label of requests that have none.
NO_TIER: Final = "none"
TIER_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}")
MODEL_NAME: Final = re.compile(r"[!-~]+")
# What decides whether a request that asks for nothing can fit; the first that is stated is to blame.
_SIZES: Final = ("default_output_tokens", "max_output_tokens", "tokens_per_minute")
Keys = tuple[str, ...]


def check(document: Document[PolicyFile]) -> Iterator[Problem]:
    """All that is wrong with one file, whose shape is right."""
    tiers = document.value.tiers
    if not tiers:
        yield document.problem(("tiers",), "has no tier; define at least one")
    for name, rules in tiers.items():
        if not TIER_NAME.fullmatch(name) or name == NO_TIER:
            message = (
                f"{name!r} cannot be a tier's name; use up to 32 of a-z, 0-9, _ and -, a letter first, not {NO_TIER!r}"
            )
            yield Problem(str(document.path), *document.key_position(("tiers", name)), message)
        yield from _check_models(document, name, rules.models)
        yield from _check_output(document, ("tiers", name), "default_output_tokens", rules)
        yield from _check_per_model(document, name, rules)
        yield from _check_shadow(document, name, rules)
        yield from _check_quotas(document, name, rules)
        yield from _check_waiting(document, name, rules)
        for header, message in response_headers.refusals(rules.response_headers):
            keys = ("tiers", name, "response_headers", header)
            yield Problem(str(document.path), *document.key_position(keys), message)


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
        message = _no_model(model)
        if not message and model in models[:index]:
            message = f"{model!r} is listed twice"
        elif not message and EVERY_MODEL in models and model != EVERY_MODEL:
            message = f"{model!r} beside {EVERY_MODEL!r}, which is every model already; remove one of the two"
        if message:
            yield document.problem(("tiers", tier, "models", index), message)


def _no_model(model: str) -> str:
    """Why this is no served name and not all of them; empty if it may be."""
    if not MODEL_NAME.fullmatch(model):
        return f"{model!r} cannot be a model's name: it has a space, a control or a non-ASCII character"
    if model != EVERY_MODEL and EVERY_MODEL in model:
        return f"{model!r} is a pattern; write a served name in full, or {EVERY_MODEL!r} alone for every model"
    return ""


def _check_output(
    document: Document[PolicyFile], within: Keys, blamed: str, rules: TierRules, said: str = ""
) -> Iterator[Problem]:
    """A request that asks for nothing gets the default: a default that could never fit would refuse the very first.

    An unlimited default is no such mistake, except beside a maximum: it is sized to what the limits can hold.
    """
    default, most = number(rules.default_output_tokens), number(rules.max_output_tokens)
    keys = (*within, blamed)
    if most is not None and (default is None or default > most):
        yield document.problem(keys, f"{said}{_text(default)} is more than max_output_tokens, which is {most}")
    if default is None:
        return
    for field in ("tokens_per_minute", "monthly_tokens", "account_monthly_tokens"):
        # A prompt has a token at least.
        if (most_ever := number(getattr(rules, field))) is not None and default >= most_ever:
            yield document.problem(keys, f"{said}{default} and a prompt are more than {field}, which is {most_ever}")


def _check_per_model(document: Document[PolicyFile], tier: str, rules: TierRules) -> Iterator[Problem]:
    for model, own in rules.per_model.items():
        keys = ("tiers", tier, "per_model", model)
        stated = [name for name in ModelRules.__struct_fields__ if getattr(own, name) is not None]
        message = _no_model(model)
        if not message and model == EVERY_MODEL:
            message = f"{model!r} is every model: write its limits as the tier's own"
        elif not message and EVERY_MODEL not in rules.models and model not in rules.models:
            message = f"{model!r} is not among this tier's models"
        elif not message and not stated:
            message = f"{model!r} has no limit of its own; state one, or leave it out"
        if message:
            yield Problem(str(document.path), *document.key_position(keys), message)
        elif sizes := [name for name in _SIZES if name in stated]:
            merged = msgspec.structs.replace(rules, **{name: getattr(own, name) for name in stated})
            yield from _check_output(document, keys, sizes[0], merged, f"for {model!r} default_output_tokens ")


def _check_shadow(document: Document[PolicyFile], tier: str, rules: TierRules) -> Iterator[Problem]:
    for index, rule in enumerate(rules.shadow):
        keys = ("tiers", tier, "shadow", index)
        if rule in rules.shadow[:index]:
            yield document.problem(keys, f"{rule!r} is listed twice")
        elif number(getattr(rules, rule)) is None and not any(
            getattr(own, rule, None) not in {None, UNLIMITED} for own in rules.per_model.values()
        ):
            yield document.problem(keys, f"{rule!r} is unlimited here, so there is nothing to try")


def _check_quotas(document: Document[PolicyFile], tier: str, rules: TierRules) -> Iterator[Problem]:
    for kind in ("requests", "tokens"):
        own = number(getattr(rules, f"monthly_{kind}"))
        account = number(getattr(rules, f"account_monthly_{kind}"))
        soft = number(getattr(rules, f"soft_monthly_{kind}"))
        if own is not None and account is not None and own > account:
            message = f"{account} of all keys together is less than monthly_{kind} of one, which is {own}"
            yield document.problem(("tiers", tier, f"account_monthly_{kind}"), message)
        for field, hard in ((f"monthly_{kind}", own), (f"account_monthly_{kind}", account)):
            if soft is not None and hard is not None and soft > hard:
                message = f"{soft} would warn after {field}, which is {hard}, has refused"
                yield document.problem(("tiers", tier, f"soft_monthly_{kind}"), message)
                break


def _check_waiting(document: Document[PolicyFile], tier: str, rules: TierRules) -> Iterator[Problem]:
    waits, waiting = rules.max_wait_s > 0, rules.max_waiting > 0
    if waits != waiting:
        given, missing = ("max_wait_s", "max_waiting") if waits else ("max_waiting", "max_wait_s")
        yield document.problem(("tiers", tier, given), f"without {missing} nobody waits; state both or neither")
        return
    limits = [rules.concurrency, *(own.concurrency for own in rules.per_model.values())]
    if waits and all(limit is None or number(limit) is None for limit in limits):
        yield document.problem(("tiers", tier, "max_wait_s"), "concurrency is unlimited: nobody has to wait")


def _text(limit: int | None) -> str:
    return "unlimited" if limit is None else str(limit)
