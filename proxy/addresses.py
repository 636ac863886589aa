"""Where a request comes from: its peer, or what a proxy that we trust says it was. Pure: no sockets, no rules.

Whatever a client writes into X-Forwarded-For stands left of what the proxies before us added, so it is read from the
right, and only as long as whoever added a hop is trusted.
"""

import ipaddress
from collections.abc import Iterable, Sequence
from typing import Final

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# The peer of a Unix socket.
LOCAL: Final = "local"
# Who has a /64 has 2^64 addresses: of IPv6 it is the network that is counted.
_V6_NETWORK_BITS: Final = 64


def network(text: str) -> Network:
    """A network in CIDR notation, or a single address. Raises ValueError."""
    return ipaddress.ip_network(text)


def neighbourhood(address: str) -> str:
    """What an address is counted as: itself, or its network of IPv6."""
    parsed = _parsed(address)
    if parsed is None or isinstance(parsed, ipaddress.IPv4Address):
        return address if parsed is None else str(parsed)
    return str(ipaddress.ip_network((int(parsed), _V6_NETWORK_BITS), strict=False))


def within(address: str, networks: Iterable[Network]) -> bool:
    """Whether an address belongs to one of the networks; what is no address belongs to none."""
    parsed = _parsed(address)
    return parsed is not None and any(parsed in one for one in networks)


class Addresses:
    """Tells a client's address, behind the proxies that are trusted. Stateless."""

    def __init__(self, trusted: Sequence[str] = ()) -> None:
        self._trusted = tuple(network(text) for text in trusted)

    def trusts(self, peer: str) -> bool:
        """Whether a peer speaks for others."""
        return bool(self._trusted) and within(peer, self._trusted)

    def of(self, peer: str, forwarded: Iterable[str]) -> str:
        """The right-most hop that is not one of ours; `forwarded` are the X-Forwarded-For headers as they came.

        A hop that is no address ends the reading: the proxy that passed it on is then the nearest that is known.
        """
        if not self.trusts(peer):
            return peer
        nearest = peer
        for hop in reversed(",".join(forwarded).split(",")):
            parsed = _parsed(_without_port(hop.strip()))
            if parsed is None:
                break
            nearest = str(parsed)
            if not within(nearest, self._trusted):
                break
        return nearest


def _parsed(text: str) -> Address | None:
    """IPv4 within IPv6 is IPv4: one client has one address."""
    try:
        parsed = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return parsed if mapped is None else mapped


def _without_port(hop: str) -> str:
    """Some proxies add the port: `192.0.2.1:5000`, `[2001:db8::1]:5000`."""
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    return hop.partition(":")[0] if hop.count(":") == 1 else hop
