"""From the files of a policy folder to one immutable `Policy`, or to every problem they have, each with its place.

All files are read before anything is said, so that an operator mends them once. A policy that this module refuses is
never served. Reading blocks: call it at start, or in a thread.
"""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from proxy.policy.schema import Policy, PolicyFile, Tier, TierRules, number
from sidecar.yamlfile import ConfigInvalidError, Document, Problem, read

SUFFIX: Final = ".yaml"
REVISION_DIGITS: Final = 12
EVERY_MODEL: Final = "*"
# Tiers are metric labels: short, plain, and apart from the label of requests that have none.
NO_TIER: Final = "none"
_TIER_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_MODEL: Final = re.compile(r"[!-~]+")


def load_policy(folder: Path) -> Policy:
    """Read every `*.yaml` directly in the folder. Raises ConfigInvalidError with all problems of all files."""
    paths, problems = _listing(folder)
    documents: list[Document[PolicyFile]] = []
    for path in paths:
        try:
            document = read(path, PolicyFile)
        except ConfigInvalidError as exc:
            problems.extend(exc.problems)
        else:
            problems.extend(_check(document))
            documents.append(document)
    problems.extend(_twice(documents))
    if problems:
        raise ConfigInvalidError(sorted(problems))
    tiers = {name: _compile(name, rules) for document in documents for name, rules in document.value.tiers.items()}
    return Policy(tiers=tiers, revision=_revision(paths))


def _listing(folder: Path) -> tuple[list[Path], list[Problem]]:
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


def _check(document: Document[PolicyFile]) -> Iterator[Problem]:
    """What the types cannot say of one file."""
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


def _twice(documents: list[Document[PolicyFile]]) -> Iterator[Problem]:
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
        response_headers=rules.response_headers,
    )


def _text(limit: int | None) -> str:
    return "unlimited" if limit is None else str(limit)


def _revision(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        data = path.read_bytes()
        # Lengths keep a byte from moving between two files unseen.
        digest.update(f"{path.name}\0{len(data)}\0".encode())
        digest.update(data)
    return digest.hexdigest()[:REVISION_DIGITS]
