"""Policy files: what a good one becomes, and one bad file per defect, each with its place and what to write instead."""

import re
import shutil
from pathlib import Path

import pytest

from proxy.policy.load import load_policy
from proxy.policy.schema import Policy, Tier, TierRules
from sidecar.wire.errors import ApiError
from sidecar.yamlfile import ConfigInvalidError, Problem

HERE = Path(__file__).parent
BAD = HERE / "bad"
SHIPPED = HERE.parents[3] / "policies"

# Line, column and what the message must say, for each file of the folder `bad`.
DEFECTS = {
    "a_boolean_for_a_number": (4, 26, "boolean"),
    "a_default_beyond_the_maximum": (10, 28, "513 is more than max_output_tokens, which is 512"),
    "a_default_beyond_the_minute": (10, 28, "256 and a prompt are more than tokens_per_minute"),
    "a_default_beyond_the_month": (10, 28, "256 and a prompt are more than monthly_tokens"),
    "a_duplicate_field": (13, 5, "twice"),
    "a_duplicate_tier": (13, 3, "twice"),
    "a_missing_limit": (4, 5, "monthly_tokens"),
    "a_model_beside_every_model": (11, 19, "every model already"),
    "a_model_pattern": (11, 14, "'llama-*' is a pattern"),
    "a_model_twice": (11, 24, "'m' is listed twice"),
    "a_model_with_a_space": (11, 14, "cannot be a model's name"),
    "a_negative_limit": (5, 24, "-5"),
    "a_tier_named_none": (3, 3, "cannot be a tier's name"),
    "a_tier_with_a_space": (3, 3, "cannot be a tier's name"),
    "a_weight_of_nothing": (13, 13, "0.01"),
    "a_retention_of_less_than_nothing": (13, 30, "-1"),
    "another_cache_scope": (13, 18, "everyone"),
    "an_anchor": (6, 18, "anchors"),
    "an_octal_number": (7, 23, "leading zero"),
    "an_unknown_field": (12, 5, "did you mean 'priority'?"),
    "an_unlimited_default_beside_a_maximum": (10, 28, "unlimited is more than max_output_tokens"),
    "another_version": (1, 10, "expected 1"),
    "another_word_than_unlimited": (7, 23, "unlimited"),
    "no_models": (11, 13, "at least 1"),
    "no_tiers": (2, 8, "at least one"),
    "a_per_model_pattern": (14, 7, "'llama-*' is a pattern"),
    "a_per_model_for_every_model": (14, 7, "the tier's own"),
    "a_per_model_without_a_limit": (14, 7, "no limit of its own"),
    "a_per_model_of_a_model_that_is_not_the_tier_s": (14, 7, "not among this tier's models"),
    "a_per_model_default_beyond_its_maximum": (14, 58, "129 is more than max_output_tokens, which is 128"),
    "a_per_model_maximum_below_the_default": (14, 30, "256 is more than max_output_tokens, which is 128"),
    "a_per_model_minute_below_the_default": (14, 30, "256 and a prompt are more than tokens_per_minute"),
    "a_per_model_rule_that_is_the_tier_s": (14, 11, "unknown field 'monthly_tokens'"),
    "a_shadow_twice": (13, 27, "'concurrency' is listed twice"),
    "a_shadow_of_no_limit": (13, 14, "nothing to try"),
    "a_shadow_of_another_rule": (13, 14, "models"),
    "a_soft_quota_beyond_the_hard_one": (13, 26, "after monthly_tokens, which is 5000"),
    "a_soft_quota_beyond_the_account_s": (14, 28, "which is 3000"),
    "an_account_quota_below_a_key_s": (13, 31, "less than monthly_requests of one, which is 3000"),
    "a_wait_without_a_queue": (13, 17, "without max_waiting"),
    "a_queue_without_a_wait": (13, 18, "without max_wait_s"),
    "a_wait_without_concurrency": (13, 17, "nobody has to wait"),
    "a_wait_of_an_hour": (13, 17, "300"),
    "a_header_with_a_blank": (14, 7, "cannot be a header's name"),
    "a_header_of_ours": (14, 7, "Tollhouse's own"),
    "a_header_of_our_family": (14, 7, "Tollhouse's own"),
    "a_header_of_the_connection": (14, 7, "about the connection"),
    "a_header_of_the_framing": (14, 7, "about the connection or the body"),
    "a_header_twice": (15, 7, "'x-a' once more"),
    "a_header_with_a_line_break": (14, 7, "visible ASCII"),
    "a_header_without_a_value": (14, 7, "visible ASCII"),
    "too_many_headers": (14, 7, "at most 20"),
    "another_replay": (13, 13, "always"),
    "a_word_for_a_boolean": (13, 25, "true or false"),
    "a_default_beyond_the_account_s_month": (10, 28, "256 and a prompt are more than account_monthly_tokens"),
}
TIER = """\
    requests_per_minute: 10
    tokens_per_minute: unlimited
    concurrency: unlimited
    monthly_requests: unlimited
    monthly_tokens: unlimited
    max_output_tokens: unlimited
    default_output_tokens: unlimited
    models: ["m", "org/n"]
    priority: 7
"""


def write(folder: Path, name: str, *tiers: str) -> None:
    (folder / name).write_text("version: 1\ntiers:\n" + "".join(f"  {tier}:\n{TIER}" for tier in tiers))


def problems(folder: Path) -> list[Problem]:
    with pytest.raises(ConfigInvalidError) as caught:
        load_policy(folder)
    return caught.value.problems


def test_every_bad_file_is_expected() -> None:
    assert {path.stem for path in BAD.iterdir()} == set(DEFECTS)


def test_a_single_file_is_read_alone(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "one")
    write(tmp_path, "b.yaml", "two")
    assert set(load_policy(tmp_path / "b.yaml").tiers) == {"two"}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_one_problem_at_its_place(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.yaml"
    shutil.copy(BAD / path.name, path)
    (problem,) = problems(tmp_path)
    line, column, said = DEFECTS[name]
    assert str(problem).startswith(f"{path}:{line}:{column}: ")
    assert said in problem.message


def test_the_shipped_policy_is_good() -> None:
    policy = load_policy(SHIPPED)
    assert set(policy.tiers) == {"free", "pro", "unlimited"}
    unlimited, free, pro = policy.tier("unlimited"), policy.tier("free"), policy.tier("pro")
    assert unlimited.requests_per_minute is unlimited.tokens_per_minute is unlimited.concurrency is None
    assert unlimited.monthly_tokens is unlimited.monthly_requests is unlimited.max_output_tokens is None
    assert free.requests_per_minute is not None
    assert free.monthly_tokens is not None
    assert free.priority < pro.priority < unlimited.priority


def test_a_tier_is_compiled(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "free")
    tier = load_policy(tmp_path).tier("free")
    assert (tier.name, tier.requests_per_minute, tier.tokens_per_minute, tier.priority) == ("free", 10, None, 7)
    assert tier.allows("m")
    assert tier.allows("org/n")
    assert not tier.allows("org")
    assert not tier.allows("*")


def test_a_tier_has_equal_weight_shares_prompts_in_the_account_and_stores_nothing_unless_it_says_so(
    tmp_path: Path,
) -> None:
    write(tmp_path, "a.yaml", "free")
    tier = load_policy(tmp_path).tier("free")
    assert (tier.weight, tier.cache_scope, tier.response_retention_days) == (1.0, "account", 0)
    with (tmp_path / "a.yaml").open("a") as file:
        file.write("    weight: 2.5\n    cache_scope: key\n    response_retention_days: 30\n")
    tier = load_policy(tmp_path).tier("free")
    assert (tier.weight, tier.cache_scope, tier.response_retention_days) == (2.5, "key", 30)


def test_every_model_is_a_star(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "free")
    (tmp_path / "a.yaml").write_text((tmp_path / "a.yaml").read_text().replace('"m", "org/n"', '"*"'))
    assert load_policy(tmp_path).tier("free").allows("anything/at:all")


def test_the_tiers_of_all_files_are_one_policy(tmp_path: Path) -> None:
    write(tmp_path, "b.yaml", "two", "three")
    write(tmp_path, "a.yaml", "one")
    assert list(load_policy(tmp_path).tiers) == ["one", "two", "three"]


def test_a_tier_in_two_files_is_told_where_the_other_is(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "one", "two")
    write(tmp_path, "b.yaml", "three", "two")
    (problem,) = problems(tmp_path)
    assert (problem.path, problem.line, problem.column) == (str(tmp_path / "b.yaml"), 13, 3)
    assert f"{tmp_path}/a.yaml:13:3" in problem.message


def test_all_problems_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    for name in DEFECTS:
        shutil.copy(BAD / f"{name}.yaml", tmp_path)
    write(tmp_path, "good.yaml", "good")
    found = {Path(problem.path).stem for problem in problems(tmp_path)}
    assert found >= set(DEFECTS)


def test_only_yaml_files_directly_in_the_folder_are_read(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "one")
    (tmp_path / "examples").mkdir()
    write(tmp_path / "examples", "b.yaml", "one")
    (tmp_path / ".a.yaml.swp").write_text("not a policy")
    (tmp_path / ".hidden.yaml").write_text("not a policy")
    (tmp_path / "policy.schema.json").write_text("{}")
    assert list(load_policy(tmp_path).tiers) == ["one"]


def test_a_file_that_would_be_passed_over_is_a_problem(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "one")
    write(tmp_path, "b.yml", "two")
    (problem,) = problems(tmp_path)
    assert problem.path == str(tmp_path / "b.yml")
    assert "ends in .yaml" in problem.message


def test_without_a_policy_nobody_is_let_in(tmp_path: Path) -> None:
    assert "no policy file" in problems(tmp_path)[0].message
    assert "No such file" in problems(tmp_path / "missing")[0].message


def test_the_revision_changes_with_every_byte_and_every_name(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "one")
    first = load_policy(tmp_path).revision
    assert len(first) == 12
    assert load_policy(tmp_path).revision == first
    (tmp_path / "a.yaml").rename(tmp_path / "b.yaml")
    renamed = load_policy(tmp_path).revision
    with (tmp_path / "b.yaml").open("a") as file:
        file.write("# a comment\n")
    assert len({first, renamed, load_policy(tmp_path).revision}) == 3


def test_a_tier_that_is_not_there_is_the_operators_to_fix() -> None:
    with pytest.raises(ApiError) as caught:
        Policy(tiers={}, revision="").tier("gone")
    assert (caught.value.status, caught.value.code) == (403, "permission_denied")


EXTRAS = """\
    per_model:
      m: {requests_per_minute: 5, concurrency: 1, max_output_tokens: 64, default_output_tokens: 32}
      org/n: {tokens_per_minute: 500}
    shadow: [requests_per_minute, account_monthly_tokens]
    soft_monthly_requests: 900
    soft_monthly_tokens: 90000
    account_monthly_requests: 1000
    account_monthly_tokens: 100000
    max_waiting: 4
    max_wait_s: 2.5
    replay: duplicate
    idempotency_bodies: true
    equal_prompts_per_minute: 6
    addresses_per_hour: 3
    response_headers: {X-Served-By: "rack 4"}
"""


def test_what_may_be_left_out_is_compiled_too(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "free")
    with (tmp_path / "a.yaml").open("a") as file:
        file.write(EXTRAS)
    tier = load_policy(tmp_path).tier("free")
    own = tier.under(tier.per_model["m"])
    assert (own.requests_per_minute, own.concurrency, own.max_output_tokens) == (5, 1, 64)
    assert (own.tokens_per_minute, own.monthly_tokens) == (None, None)
    assert tier.shadow == {"requests_per_minute", "account_monthly_tokens"}
    assert (tier.soft_monthly_requests, tier.soft_monthly_tokens) == (900, 90_000)
    assert (tier.account_monthly_requests, tier.account_monthly_tokens) == (1000, 100_000)
    assert (tier.max_waiting, tier.max_wait_s) == (4, 2.5)
    assert (tier.replay, tier.idempotency_bodies) == ("duplicate", True)
    assert (tier.equal_prompts_per_minute, tier.addresses_per_hour) == (6, 3)
    assert tier.response_headers == {"x-served-by": "rack 4"}


def test_a_policy_knows_where_each_of_its_rules_stands(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "one", "two")
    places = load_policy(tmp_path).places
    assert places["two"]["requests_per_minute"] == f"{tmp_path}/a.yaml:14:5"
    assert places["two"]["priority"] == f"{tmp_path}/a.yaml:22:5"
    assert "weight" not in places["two"]


def test_every_field_of_a_file_is_in_the_compiled_tier() -> None:
    assert {"name", *TierRules.__struct_fields__} == set(Tier.__struct_fields__)


def test_the_shipped_policy_explains_each_rule() -> None:
    explained = {
        word for line in SHIPPED.joinpath("default.yaml").read_text().splitlines() for word in re.findall(r"\w+", line)
    }
    assert set(TierRules.__struct_fields__) <= explained
