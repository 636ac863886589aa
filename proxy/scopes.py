"""What a key may do, as a closed set of scopes, and which scope each public route asks for.

A key without scopes of its own has every one but the administrative ones. Those are of the admin listener alone.
"""

from typing import Final, Literal, get_args

from proxy.exchange import Principal, TextEndpoint
from sidecar.wire.errors import ApiError
from sidecar.wire.internal import Endpoint

ADMIN_READ: Final = "admin:read"
ADMIN: Final = "admin"
Scope = Literal[
    "chat", "completions", "responses", "messages", "embeddings", "tokenize", "models", "admin:read", "admin"
]
EVERY: Final[tuple[str, ...]] = get_args(Scope)
DEFAULT: Final = frozenset(EVERY) - {ADMIN_READ, ADMIN}
# By the route's template.
ROUTES: Final[dict[str, Scope]] = {
    Endpoint.CHAT.value: "chat",
    Endpoint.COMPLETIONS.value: "completions",
    Endpoint.RESPONSES.value: "responses",
    "/v1/responses/{id}": "responses",
    "/v1/responses/{id}/input_items": "responses",
    Endpoint.MESSAGES.value: "messages",
    TextEndpoint.COUNT_TOKENS.value: "messages",
    Endpoint.EMBEDDINGS.value: "embeddings",
    TextEndpoint.TOKENIZE.value: "tokenize",
    TextEndpoint.DETOKENIZE.value: "tokenize",
    "/v1/models": "models",
    "/v1/models/{id}": "models",
}


def granted(scopes: frozenset[str] | None) -> frozenset[str]:
    """All that a key with these may do. Who may change what there is may look at it."""
    mine = DEFAULT if scopes is None else scopes
    return mine | {ADMIN_READ} if ADMIN in mine else mine


def check(principal: Principal, scope: str) -> None:
    """Raises ApiError 403."""
    if scope not in granted(principal.scopes):
        raise insufficient(scope)


def insufficient(scope: str) -> ApiError:
    return ApiError(
        403,
        f"This API key lacks the scope '{scope}'. Use another key, or ask its operator to give it that scope.",
        code="insufficient_scope",
    )
