"""From the files of a policy folder to one immutable `Policy`, or to every problem they have, each with its place.

All files are read before anything is said, so that an operator mends them once. A policy that this module refuses is
never served. Each file is read once, so that the revision is that of what is served. Reading blocks: call it at start,
or in a thread.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from proxy.policy.checks import check, twice
from proxy.policy.schema import Policy, PolicyFile, Tier, TierRules, number
from sidecar.yamlfile import ConfigInvalidError, Document, Problem, content, parse

SUFFIX: Final = ".yaml"
REVISION_DIGITS: Final = 12


def load_policy(place: Path) -> Policy:
    """Read every `*.yaml` directly in a folder, or one file. Raises ConfigInvalidError with all problems of all."""
    paths, problems = ([place], []) if place.is_file() else listing(place)
    files: dict[Path, bytes] = {}
    for path in paths:
        try:
            files[path] = content(path)
        except ConfigInvalidError as exc:
            problems.extend(exc.problems)
    return policy_of(files, problems)


def policy_of(files: Mapping[Path, bytes], problems: Iterable[Problem] = ()) -> Policy:
    """The policy that these files make. Raises ConfigInvalidError with all problems of all, and those found before."""
    found = list(problems)
    documents: list[Document[PolicyFile]] = []
    for path, data in files.items():
        try:
            document = parse(path, data, PolicyFile)
        except ConfigInvalidError as exc:
            found.extend(exc.problems)
        else:
            found.extend(check(document))
            documents.append(document)
    found.extend(twice(documents))
    if found:
        raise ConfigInvalidError(sorted(found))
    tiers = {name: _compile(name, rules) for document in documents for name, rules in document.value.tiers.items()}
    places = {name: _places(document, name) for document in documents for name in document.value.tiers}
    return Policy(tiers=tiers, revision=_revision(files), places=places)


def listing(folder: Path) -> tuple[list[Path], list[Problem]]:
    """The policy files in order of name; names with a leading dot are editors' and Kubernetes' own."""
    try:
        found = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    except OSError as exc:
        return [], [Problem(str(folder), 0, 0, f"the policy folder cannot be read: {exc.strerror}")]
    paths = [path for path in found if path.suffix == SUFFIX]
    problems = [
        Problem(str(path), 0, 0, f"is not read: a policy file's name ends in {SUFFIX}")
        for path in found
        if path.suffix == ".yml"
    ]
    if not paths:
        problems.append(Problem(str(folder), 0, 0, f"has no policy file (*{SUFFIX}), so nobody could be let in"))
    return paths, problems


def _compile(name: str, rules: TierRules) -> Tier:
    return Tier(
        name=name,
        requests_per_minute=number(rules.requests_per_minute),
        tokens_per_minute=number(rules.tokens_per_minute),
        concurrency=number(rules.concurrency),
        monthly_requests=number(rules.monthly_requests),
        monthly_tokens=number(rules.monthly_tokens),
        max_output_tokens=number(rules.max_output_tokens),
        default_output_tokens=number(rules.default_output_tokens),
        models=frozenset(rules.models),
        priority=rules.priority,
        weight=rules.weight,
        cache_scope=rules.cache_scope,
        response_retention_days=rules.response_retention_days,
        per_model=rules.per_model,
        shadow=frozenset(rules.shadow),
        soft_monthly_requests=number(rules.soft_monthly_requests),
        soft_monthly_tokens=number(rules.soft_monthly_tokens),
        account_monthly_requests=number(rules.account_monthly_requests),
        account_monthly_tokens=number(rules.account_monthly_tokens),
        max_wait_s=rules.max_wait_s,
        max_waiting=rules.max_waiting,
        replay=rules.replay,
        idempotency_bodies=rules.idempotency_bodies,
        equal_prompts_per_minute=number(rules.equal_prompts_per_minute),
        addresses_per_hour=number(rules.addresses_per_hour),
        # As the answers' other headers are written.
        response_headers={name.lower(): value for name, value in rules.response_headers.items()},
    )


def _places(document: Document[PolicyFile], tier: str) -> dict[str, str]:
    """Where each rule of a tier stands, as `file:line:column`; one that is left out has no place.

    Those of a model are named as `proxy.policy.difference` names them, headers alike.
    """
    places: dict[str, str] = {}
    for field in TierRules.__struct_fields__:
        keys = ("tiers", tier, field)
        if document.has(keys):
            places[field] = _place(document, keys)
    for model, own in document.value.tiers[tier].per_model.items():
        for rule in own.__struct_fields__:
            if getattr(own, rule) is not None:
                places[f"per_model.{model}.{rule}"] = _place(document, ("tiers", tier, "per_model", model, rule))
    for name in document.value.tiers[tier].response_headers:
        places[f"response_headers.{name.lower()}"] = _place(document, ("tiers", tier, "response_headers", name))
    return places


def _place(document: Document[PolicyFile], keys: tuple[str, ...]) -> str:
    line, column = document.key_position(keys)
    return f"{document.path}:{line}:{column}"


def _revision(files: Mapping[Path, bytes]) -> str:
    digest = hashlib.sha256()
    for path, data in files.items():
        # Lengths keep a byte from moving between two files unseen.
        digest.update(f"{path.name}\0{len(data)}\0".encode(errors="surrogateescape"))
        digest.update(data)
    return digest.hexdigest()[:REVISION_DIGITS]
