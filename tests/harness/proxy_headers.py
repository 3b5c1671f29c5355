"""Headers of the PROXY protocol: valid ones with their client, and invalid ones."""

import struct
from collections.abc import Mapping
from ipaddress import ip_address

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
LOCAL, PROXY = 0x20, 0x21
TLVS = b"\x03\x00\x04\x12\x34\x56\x78" + b"\xea\x00\x17\x01vpce-08d2bf15fac5001c9" + b"\x04\x00\x02\x00\x00"
"""A checksum, the endpoint of an AWS VPC, and padding."""


def line(client: str, *, family: str = "TCP4", server: str = "198.51.100.1") -> bytes:
    return f"PROXY {family} {client} {server} 56324 443\r\n".encode()


def binary(command: int = PROXY, family: int = 0x11, rest: bytes = b"", *, length: int | None = None) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(rest) if length is None else length) + rest


def addresses(client: str, server: str = "") -> bytes:
    """Of the same family; with ports."""
    other = server or ("::1" if ":" in client else "198.51.100.1")
    return ip_address(client).packed + ip_address(other).packed + struct.pack("!HH", 56324, 443)


SIX = "2001:db8::7"
LONG = b"ffff:" * 7 + b"ffff"
UNIX = b"/run/client.sock".ljust(108, b"\0") * 2

GOOD: Mapping[str, tuple[bytes, str]] = {
    "v1 TCP4": (line("192.0.2.7"), "192.0.2.7"),
    "v1 TCP6": (line(SIX, family="TCP6", server="::1"), SIX),
    "v1 TCP6, long": (
        b"PROXY TCP6 " + b" ".join([b"ffff:" * 7 + b"ffff"] * 2) + b" 65535 65535\r\n",
        "ffff:" * 7 + "ffff",
    ),
    "v1 TCP6, IPv4-mapped": (line("::ffff:192.0.2.7", family="TCP6", server="::1"), "192.0.2.7"),
    "v1 TCP4, port 0": (b"PROXY TCP4 192.0.2.7 198.51.100.1 0 0\r\n", "192.0.2.7"),
    "v1 UNKNOWN": (b"PROXY UNKNOWN\r\n", ""),
    "v1 UNKNOWN with addresses": (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", ""),
    "v1 UNKNOWN, longest": (b"PROXY UNKNOWN " + b"x" * 91 + b"\r\n", ""),
    "v2 TCP4": (binary(rest=addresses("192.0.2.7")), "192.0.2.7"),
    "v2 TCP4 with TLVs": (binary(rest=addresses("192.0.2.7") + TLVS), "192.0.2.7"),
    "v2 TCP6": (binary(family=0x21, rest=addresses(SIX)), SIX),
    "v2 TCP6 with TLVs": (binary(family=0x21, rest=addresses(SIX) + TLVS), SIX),
    "v2 TCP6, IPv4-mapped": (binary(family=0x21, rest=addresses("::ffff:192.0.2.7")), "192.0.2.7"),
    "v2 Unix": (binary(family=0x31, rest=UNIX), ""),
    "v2 unspecified": (binary(family=0), ""),
    "v2 unspecified with TLVs": (binary(family=0, rest=TLVS), ""),
    "v2 LOCAL": (binary(LOCAL, 0), ""),
    "v2 LOCAL with TLVs": (binary(LOCAL, 0, TLVS), ""),
    "v2 LOCAL with addresses": (binary(LOCAL, 0x11, addresses("192.0.2.7")), ""),
    "v2 LOCAL, another family": (binary(LOCAL, 0xFF, b"x"), ""),
    "v2 TCP4, longest": (binary(rest=addresses("192.0.2.7").ljust(4096, b"\0")), "192.0.2.7"),
}

BAD: Mapping[str, bytes] = {
    "a request": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "a TLS handshake": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "lower case": b"proxy TCP4 192.0.2.7 198.51.100.1 1 2\r\n",
    "two spaces": b"PROXY  TCP4 192.0.2.7 198.51.100.1 1 2\r\n",
    "a space at the end": b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2 \r\n",
    "LF alone": b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2\n",
    "UNKNOWN with LF alone": b"PROXY UNKNOWN\n",
    "UNKNOWN with a CR within": b"PROXY UNKNOWN a\rb\r\n",
    "UNKNOWNS": b"PROXY UNKNOWNS\r\n",
    "UDP4": b"PROXY UDP4 192.0.2.7 198.51.100.1 1 2\r\n",
    "IPv6 as TCP4": line(SIX),
    "IPv4 as TCP6": line("192.0.2.7", family="TCP6", server="::1"),
    "both families": line("192.0.2.7", server="::1"),
    "a zone": line("fe80::1%eth0", family="TCP6", server="::1"),
    "a name": line("client.test"),
    "brackets": line("[::1]", family="TCP6", server="::1"),
    "a zero in front": line("192.0.02.7"),
    "three parts": line("192.0.2"),
    "no ports": b"PROXY TCP4 192.0.2.7 198.51.100.1\r\n",
    "one port": b"PROXY TCP4 192.0.2.7 198.51.100.1 1\r\n",
    "a port too many": b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2 3\r\n",
    "a port too high": b"PROXY TCP4 192.0.2.7 198.51.100.1 65536 1\r\n",
    "the other port too high": b"PROXY TCP4 192.0.2.7 198.51.100.1 1 99999\r\n",
    "a port with a zero in front": b"PROXY TCP4 192.0.2.7 198.51.100.1 01 2\r\n",
    "a port with a sign": b"PROXY TCP4 192.0.2.7 198.51.100.1 +1 2\r\n",
    "108 bytes": b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n",
    "107 bytes without an end": b"PROXY UNKNOWN " + b"x" * 93,
    "version 1 in binary": binary(0x11),
    "version 3": binary(0x31, rest=addresses("192.0.2.7")),
    "another command": binary(0x22, rest=addresses("192.0.2.7")),
    "UDP": binary(family=0x12, rest=addresses("192.0.2.7")),
    "a Unix datagram": binary(family=0x32, rest=UNIX),
    "another family": binary(family=0x41, rest=UNIX),
    "a family without a protocol": binary(family=0x10, rest=addresses("192.0.2.7")),
    "IPv4 cut short": binary(rest=addresses("192.0.2.7")[:-1]),
    "IPv6 cut short": binary(family=0x21, rest=addresses(SIX)[:-1]),
    "Unix cut short": binary(family=0x31, rest=UNIX[:-1]),
    "nothing in it": binary(),
    "too long": binary(rest=b"", length=4097),
    "LOCAL, too long": binary(LOCAL, 0, length=65535),
    "a signature that goes wrong": SIGNATURE[:-1] + b"X",
}
