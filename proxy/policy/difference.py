"""What differs between two policies, rule by rule, in the words of a policy file. Pure."""

from collections.abc import Iterator

import msgspec

from proxy.policy.schema import UNLIMITED, ModelRules, Policy, Tier

# A value as a file would write it.
Shown = str | int | float | bool | list[str]


class Change(msgspec.Struct, frozen=True):
    """One difference. `rule` is empty for a tier that came or went; a value of None is not there."""

    tier: str
    rule: str
    old: Shown | None
    new: Shown | None


def differences(old: Policy, new: Policy) -> Iterator[Change]:
    """By tier and rule, in the order of the names and of the file's fields."""
    for name in sorted({*old.tiers, *new.tiers}):
        before, after = old.tiers.get(name), new.tiers.get(name)
        if before is None or after is None:
            yield Change(name, "", None if before is None else "tier", None if after is None else "tier")
            continue
        had, has = shown(before), shown(after)
        for rule in {**had, **has}:
            if had.get(rule) != has.get(rule):
                yield Change(name, rule, had.get(rule), has.get(rule))


def shown(tier: Tier) -> dict[str, Shown]:
    """A tier's rules by their names; those of a model as `per_model.NAME.RULE`, headers alike."""
    rules: dict[str, Shown] = {}
    for field in Tier.__struct_fields__:
        value = getattr(tier, field)
        if field == "name":
            continue
        if field == "per_model":
            rules |= _of_models(tier.per_model)
        elif field == "response_headers":
            rules |= {f"response_headers.{name}": text for name, text in sorted(tier.response_headers.items())}
        elif isinstance(value, frozenset):
            rules[field] = sorted(value)
        else:
            rules[field] = UNLIMITED if value is None else value
    return rules


def words(value: Shown | None) -> str:
    """A value for people."""
    if isinstance(value, list):
        return ", ".join(value) or "none"
    if isinstance(value, bool):
        return str(value).lower()
    return "not set" if value is None else str(value)


def _of_models(per_model: dict[str, ModelRules]) -> dict[str, Shown]:
    return {
        f"per_model.{model}.{rule}": limit
        for model, own in sorted(per_model.items())
        for rule in ModelRules.__struct_fields__
        if (limit := getattr(own, rule)) is not None
    }
