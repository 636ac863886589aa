"""What keeps other sites' pages away from an admin listener, in a browser that can reach it.

A page of another origin is told by its Origin, or by Sec-Fetch-Site (Fetch Metadata, W3C); one whose name was rebound
to our address (DNS rebinding) by its Host. Programs that are no browsers send none of the first two.
"""

import ipaddress
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from sidecar.wire.errors import ApiError

# Of every answer of an admin listener.
PROTECTION: Final = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def check_origin(headers: Mapping[str, str]) -> None:
    """Raises ApiError 403 for what a page of another origin asks."""
    origin = headers.get("origin")
    foreign = origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
    if foreign or headers.get("sec-fetch-site", "none") not in {"none", "same-origin"}:
        raise ApiError(403, "A page of another site asks this. It may not.", code="cross_origin")


def check_host(host: str, names: frozenset[str] = frozenset()) -> None:
    """Raises ApiError 403 for a name that a stranger may have pointed here.

    Addresses, `localhost` and names without a dot can be nobody's; `names` are ours.
    """
    name = urlsplit(f"//{host}").hostname or ""
    if "." not in name or name in names or name.endswith(".localhost"):
        return
    try:
        ipaddress.ip_address(name)
    except ValueError:
        raise ApiError(
            403,
            "The console is not reached by this name. Use the address, or add the name to 'public_authorities'.",
            code="host_not_allowed",
        ) from None
