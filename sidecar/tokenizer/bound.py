"""An upper bound on a chat's tokens from its bytes alone, where the tokenizer allows one.

It holds when no token is shorter than one byte of its text: byte-level BPE without a normaliser. The template's own
words are counted as bytes, one token each at worst, its control tokens as one. The template is asked with probes, and
a template that repeats a client's text, or grows faster than its messages, has no bound.
"""

import json
from collections.abc import Callable, Iterator
from typing import Final

from sidecar.tokenizer.messages import Message
from sidecar.wire.internal import TokenBound

_PROBE: Final = "\U000f0000"
_ROLES: Final = (
    ("user",),
    ("system", "user"),
    ("system",),
    ("assistant",),
    ("assistant", "user"),
    ("user", "assistant"),
    ("user", "assistant", "user"),
    ("system", "user", "assistant", "user"),
    ("user", "user"),
    ("user", "assistant", "user", "assistant", "user", "assistant", "user"),
)
_SAFE_STEPS: Final = frozenset({"ByteLevel", "Split", "Digits", "Punctuation", "Sequence"})

Overhead = Callable[[str], int]


def is_byte_level(tokenizer_json: str) -> bool:
    """Whether no token of this tokenizer is shorter than one byte of its text."""
    spec = json.loads(tokenizer_json)
    steps = list(_steps(spec.get("pre_tokenizer")))
    return (
        spec.get("normalizer") is None
        and spec["model"].get("type") == "BPE"
        and not spec["model"].get("byte_fallback")
        and any(step["type"] == "ByteLevel" for step in steps)
        and all(step["type"] in _SAFE_STEPS and not step.get("add_prefix_space") for step in steps)
    )


def measure(render: Callable[[tuple[Message, ...]], str | None], overhead: Overhead, fixed: int) -> TokenBound | None:
    """The bound of one template. `render` gives None where the template refuses; `fixed` is what any prompt costs."""
    costs: dict[tuple[str, ...], int] = {}
    for roles in _ROLES:
        rendered = render(tuple(Message(role, _PROBE) for role in roles))
        if rendered is None:
            continue
        if rendered.count(_PROBE) > len(roles):
            return None
        costs[roles] = overhead(rendered.replace(_PROBE, ""))
    if not costs:
        return TokenBound(per_request=fixed, per_message=0)
    # What a message adds to a chat that begins the same: how it begins (a default system message) is paid once.
    growths = [
        -(-(cost - costs[roles[:size]]) // (len(roles) - size))
        for roles, cost in costs.items()
        for size in range(1, len(roles))
        if roles[:size] in costs
    ]
    per_message = max([0, *growths]) if growths else max(costs.values())
    per_request = max(cost - per_message * len(roles) for roles, cost in costs.items())
    return TokenBound(per_request=max(per_request, 0) + fixed, per_message=per_message)


def _steps(step: dict[str, object] | None) -> Iterator[dict[str, object]]:
    if step is None:
        return
    yield step
    parts = step.get("pretokenizers")
    if isinstance(parts, list):
        for part in parts:
            yield from _steps(part)
