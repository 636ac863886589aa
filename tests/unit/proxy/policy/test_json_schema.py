"""The schema that editors read: it is of this version, and agrees with what is read."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from proxy.policy import json_schema
from proxy.policy.schema import TierRules

SHIPPED = Path(__file__).parents[4] / "policies"
BAD = Path(__file__).parent / "bad"
# What a schema can say: the shape of a file. What crosses its fields is `policy check`'s.
OF_SHAPE = [
    "a_boolean_for_a_number",
    "a_missing_limit",
    "a_model_twice",
    "a_negative_limit",
    "a_per_model_rule_that_is_the_tier_s",
    "a_retention_of_less_than_nothing",
    "a_shadow_of_another_rule",
    "a_shadow_twice",
    "a_tier_named_none",
    "a_tier_with_a_space",
    "a_wait_of_an_hour",
    "a_weight_of_nothing",
    "an_unknown_field",
    "another_cache_scope",
    "another_replay",
    "another_version",
    "another_word_than_unlimited",
    "no_models",
    "no_tiers",
    "too_many_headers",
]


def validator() -> jsonschema.Draft202012Validator:
    jsonschema.Draft202012Validator.check_schema(json_schema.schema())
    return jsonschema.Draft202012Validator(json_schema.schema())


def test_the_shipped_schema_is_that_of_this_version() -> None:
    # To write it again: tollhouse policy schema > policies/policy.schema.json
    assert (SHIPPED / json_schema.FILE).read_text() == json_schema.text()


def test_the_shipped_policy_names_the_schema_and_fits_it() -> None:
    text = (SHIPPED / "default.yaml").read_text()
    assert text.startswith(f"# yaml-language-server: $schema={json_schema.FILE}\n")
    validator().validate(yaml.safe_load(text))


@pytest.mark.parametrize("path", sorted((SHIPPED / "examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_an_example_names_the_schema_and_fits_it(path: Path) -> None:
    text = path.read_text()
    assert text.startswith(f"# yaml-language-server: $schema=../{json_schema.FILE}\n")
    validator().validate(yaml.safe_load(text))


def test_every_rule_is_explained_to_an_editor() -> None:
    assert list(json_schema.ABOUT) == list(TierRules.__struct_fields__)
    rules = json_schema.schema()["$defs"]["TierRules"]["properties"]
    assert all(rules[name]["description"] == about for name, about in json_schema.ABOUT.items())


@pytest.mark.parametrize("name", OF_SHAPE)
def test_a_defect_of_shape_does_not_fit(name: str) -> None:
    assert not validator().is_valid(yaml.safe_load((BAD / f"{name}.yaml").read_text()))


def test_what_may_be_left_out_fits() -> None:
    policy = yaml.safe_load((SHIPPED / "default.yaml").read_text())
    policy["tiers"]["pro"] |= {
        "per_model": {"org/large": {"concurrency": 1, "tokens_per_minute": "unlimited"}},
        "shadow": ["requests_per_minute"],
        "max_wait_s": 2.5,
        "max_waiting": 3,
        "replay": "signed",
        "response_headers": {"x-served-by": "rack 4"},
    }
    validator().validate(json.loads(json.dumps(policy)))
