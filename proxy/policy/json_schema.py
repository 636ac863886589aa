"""The JSON Schema of a policy file, made from its types: `policies/policy.schema.json`, for editors that complete it.

What crosses fields is not in it: `tollhouse policy check` has the last word.
"""

from typing import Any, Final

import msgspec

from proxy.policy.checks import MODEL_NAME, NO_TIER, TIER_NAME
from proxy.policy.schema import PolicyFile

FILE: Final = "policy.schema.json"
_INDENT: Final = 2
# What an editor shows of each rule.
ABOUT: Final = {
    "requests_per_minute": "Per key. Each comes back after 60 s / limit.",
    "tokens_per_minute": "Per key, prompt and output together.",
    "concurrency": "Requests of a key that run at the same time.",
    "monthly_requests": "Per key and calendar month, in UTC.",
    "monthly_tokens": "Per key and calendar month, in UTC. Never overshot.",
    "max_output_tokens": "The most one request may ask for, per choice. More is refused, not cut.",
    "default_output_tokens": "What a request gets that asks for nothing, per choice.",
    "models": 'Served names in full, or "*" for every model.',
    "priority": "Who is scheduled first when there is a queue: the higher one.",
    "weight": "An account's share of the tokens among those of its priority that wait.",
    "cache_scope": "Who may profit from the beginning of a prompt that was computed before.",
    "response_retention_days": "For how many days answers of /v1/responses are stored. 0 stores no content.",
    "per_model": "Limits of single models in the place of the tier's, by served name. Each counts its model apart.",
    "shadow": "Rules that are only tried: they decide and count, and let pass.",
    "soft_monthly_requests": "From there on answers carry a warning.",
    "soft_monthly_tokens": "From there on answers carry a warning.",
    "account_monthly_requests": "What all keys of an account may ask in a month together.",
    "account_monthly_tokens": "What all keys of an account may use in a month together.",
    "max_wait_s": "How long a request may wait for its turn when `concurrency` is used up. 0 refuses at once.",
    "max_waiting": "How many requests of a key may wait for their turn.",
    "replay": "Whether a request may come twice.",
    "idempotency_bodies": "Whether answers are kept for a day, to be given again under the same Idempotency-Key.",
    "equal_prompts_per_minute": "How often a key may send the same prompt.",
    "addresses_per_hour": "From how many addresses a key is used in an hour before that is reported.",
    "response_headers": "Headers that are added to every answer.",
}


def schema() -> dict[str, Any]:
    """The schema, as JSON Schema 2020-12."""
    (_,), parts = msgspec.json.schema_components((PolicyFile,), ref_template="#/$defs/{name}")
    for name, about in (
        ("PolicyFile", "A policy file of Tollhouse."),
        ("TierRules", "The limits of one tier. All that have no default must be stated."),
        ("ModelRules", "The limits of one model. What is left out is as the tier has it."),
    ):
        parts[name] |= {"description": about}
        for field, rule in parts[name]["properties"].items():
            if field in ABOUT:
                rule["description"] = ABOUT[field]
            # Of a limit that is left out the default is the tier's own, which no schema can say.
            if name == "ModelRules":
                rule.pop("default", None)
                rule["anyOf"] = [choice for choice in rule["anyOf"] if choice != {"type": "null"}]
    rules = parts["TierRules"]["properties"]
    parts["PolicyFile"]["properties"]["tiers"] |= {
        "minProperties": 1,
        "propertyNames": {"pattern": f"^{TIER_NAME.pattern}$", "not": {"const": NO_TIER}},
    }
    rules["models"] |= {"uniqueItems": True}
    rules["shadow"] |= {"uniqueItems": True}
    rules["per_model"] |= {"propertyNames": {"pattern": f"^{MODEL_NAME.pattern}$"}}
    root = parts.pop("PolicyFile")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **root,
        "title": "Tollhouse policy",
        "$defs": parts,
    }


def text() -> str:
    """The file's content."""
    return msgspec.json.format(msgspec.json.encode(schema()), indent=_INDENT).decode() + "\n"
