"""The client's address behind proxies, and the forwarding headers for the upstream."""

import re
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Network = IPv4Network | IPv6Network
_MAX_KNOWN = 4096
_MAPPED_BITS = 96
"""The prefix of an IPv4 address inside an IPv6 one (RFC 4291 section 2.5.5.2)."""
_NODE = re.compile(r"(?:\[([0-9A-Fa-f]*:[0-9A-Fa-f:.]+)\]|([0-9.]+))(?::[0-9]{1,5})?|([0-9A-Fa-f:.]+)")
"""Without a zone, which may contain anything and has no meaning beyond a link."""


class TrustedProxies:
    """Peers whose forwarding header is trusted.

    header: the header that they set, `x-forwarded-for` or `forwarded`; the other one is never trusted, because a proxy
    that sets one usually passes the other on as the client wrote it.
    """

    def __init__(self, networks: Sequence[Network], header: bytes) -> None:
        self._networks = tuple(map(_unmapped_network, networks))
        self.header = header
        self._known: dict[str, bool] = {}

    def trusts(self, peer: str) -> bool:
        if not self._networks:
            return False
        known = self._known.get(peer)
        if known is None:
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            known = self._known[peer] = self._holds(peer)
        return known

    def client_address(self, peer: str, fields: Mapping[bytes, Sequence[bytes]]) -> str:
        """The right-most address that does not belong to a trusted proxy; the peer's if the chain has none.

        A malformed entry ends the search: entries to its left cannot be trusted.
        """
        address = peer
        if not self._networks or not self.trusts(peer):
            return address
        for entry in reversed(list(self._entries(fields.get(self.header, ())))):
            parsed = _parse_node(entry)
            if parsed is None:
                return address
            address = parsed
            if not self.trusts(address):
                return address
        return address

    def _entries(self, values: Sequence[bytes]) -> Iterator[str]:
        for value in values:
            for element in value.decode("latin-1").split(","):
                yield _forwarded_for(element) if self.header == b"forwarded" else element.strip()

    def _holds(self, peer: str) -> bool:
        parsed = _parse_node(peer.partition("%")[0])
        return parsed is not None and any(ip_address(parsed) in network for network in self._networks)


def unmapped(address: IPv4Address | IPv6Address) -> str:
    """The text of an address; an IPv4-mapped one (`::ffff:192.0.2.1`) is the IPv4 address that it holds."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)


def _unmapped_network(network: Network) -> Network:
    mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
    if mapped is None or network.prefixlen < _MAPPED_BITS:
        return network
    return IPv4Network((mapped, network.prefixlen - _MAPPED_BITS))


def address_subject(address: str) -> str:
    """What a quota by address counts: an IPv6 client by its /64, because it controls all of it."""
    if ":" not in address:
        return address
    try:
        packed = IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    return str(packed.ipv4_mapped or IPv6Network((int(packed) >> 64 << 64, 64)))


def _forwarded_for(element: str) -> str:
    for pair in element.split(";"):
        name, _, value = pair.strip().partition("=")
        if name.lower() == "for":
            return value.strip('"')
    return ""


def _parse_node(text: str) -> str | None:
    """The address in `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1` or `[2001:db8::1]:80`; None for anything else."""
    found = _NODE.fullmatch(text)
    if found is None:
        return None
    try:
        parsed = ip_address(found[1] or found[2] or found[3])
    except ValueError:
        return None
    return unmapped(parsed)
