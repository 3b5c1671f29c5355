"""Headers of the PROXY protocol, in which a proxy sends the client's address before the client's own bytes.

Source: https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt, sections 2.1 (a line of text) and 2.2 (binary).
"""

import re
import struct
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from sidecar.core.client_address import unmapped


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyHeader:
    """size: bytes of the header; the client's bytes follow. client: its address; empty if the header has none."""

    size: int
    client: str


class MalformedProxyHeader(Exception):
    """These bytes are neither a header nor the beginning of one."""


def parse_proxy_header(received: bytes) -> ProxyHeader | None:
    """The header at the start of `received`. None: it is incomplete. Raises MalformedProxyHeader."""
    for signature, parse in ((_TEXT, _parse_line), (_BINARY, _parse_binary)):
        if received.startswith(signature):
            return parse(received)
        if signature.startswith(received):
            return None
    raise MalformedProxyHeader


# Version 1: `PROXY TCP4 192.0.2.1 198.51.100.1 56324 443` and CR LF.

_TEXT: Final = b"PROXY "
_LONGEST_LINE: Final = 107
"""In bytes, including CR LF."""
_PORT: Final = "(?:0|[1-9][0-9]{0,4})"
_LINE: Final = re.compile(rf"PROXY (TCP4|TCP6) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) ({_PORT}) ({_PORT})\r\n")
_UNKNOWN: Final = re.compile(rb"PROXY UNKNOWN(?: [^\r\n]*)?\r\n")
_LARGEST_PORT: Final = 65535


def _parse_line(received: bytes) -> ProxyHeader | None:
    end = received.find(b"\n", 0, _LONGEST_LINE) + 1
    if not end and len(received) < _LONGEST_LINE:
        return None
    line = received[:end]
    if _UNKNOWN.fullmatch(line):  # Anything after the word must be ignored.
        return ProxyHeader(size=end, client="")
    found = _LINE.fullmatch(line.decode("latin-1"))
    if found is None or max(int(found[4]), int(found[5])) > _LARGEST_PORT:
        raise MalformedProxyHeader
    family = IPv4Address if found[1] == "TCP4" else IPv6Address
    try:
        client, _ = family(found[2]), family(found[3])
    except ValueError:
        raise MalformedProxyHeader from None
    return ProxyHeader(size=end, client=unmapped(client))


# Version 2: a signature, version and command, family and protocol, the length of the rest; addresses; TLVs.

_BINARY: Final = b"\r\n\r\n\x00\r\nQUIT\n"
_FIXED: Final = struct.Struct("!12sBBH")
_LONGEST_REST: Final = 4096
"""In bytes. Addresses take 216 at most; the TLVs of load balancers are far below a kilobyte."""
_LOCAL: Final = 0x20
_PROXY: Final = 0x21


class _Over(IntEnum):
    """The families that a TCP connection can have, each with its protocol."""

    UNSPECIFIED = 0x00
    TCP4 = 0x11
    TCP6 = 0x21
    UNIX = 0x31


_ADDRESSES: Final = {_Over.UNSPECIFIED: 0, _Over.TCP4: 12, _Over.TCP6: 36, _Over.UNIX: 216}
"""Bytes that the addresses of a family take."""


def _parse_binary(received: bytes) -> ProxyHeader | None:
    if len(received) < _FIXED.size:
        return None
    _, command, family, rest = _FIXED.unpack_from(received)
    if rest > _LONGEST_REST or command not in (_LOCAL, _PROXY):
        raise MalformedProxyHeader
    size = _FIXED.size + rest
    # LOCAL: the proxy's own connection, such as a health check; family and addresses must be ignored.
    over = None if command == _LOCAL else _over(family, rest)
    if len(received) < size:
        return None
    return ProxyHeader(size=size, client=_client(over, received))


def _over(family: int, rest: int) -> _Over:
    try:
        over = _Over(family)
    except ValueError:
        raise MalformedProxyHeader from None
    if rest < _ADDRESSES[over]:
        raise MalformedProxyHeader
    return over


def _client(over: _Over | None, received: bytes) -> str:
    """The source address, which comes first. That of a Unix socket is useless."""
    at = _FIXED.size
    match over:
        case _Over.TCP4:
            return str(IPv4Address(received[at : at + 4]))
        case _Over.TCP6:
            return unmapped(IPv6Address(received[at : at + 16]))
        case _:
            return ""
