"""A tier as a policy file has it, for tests to change. Nothing of Tollhouse is imported: see `tests.e2e.house`."""

from typing import Any, Final

UNLIMITED: Final[dict[str, Any]] = {
    "requests_per_minute": "unlimited",
    "tokens_per_minute": "unlimited",
    "concurrency": "unlimited",
    "monthly_requests": "unlimited",
    "monthly_tokens": "unlimited",
    "max_output_tokens": "unlimited",
    "default_output_tokens": "unlimited",
    "models": ["*"],
    "priority": 0,
}
