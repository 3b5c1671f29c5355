"""Addresses, upstream URLs, and the URLs of store and limiter. Every parser raises ValueError; none echoes a URL,
because it may hold a password."""

import os
import re
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from urllib.parse import SplitResult, urlsplit

from sidecar.config.settings import Address

_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?")
_AUTHORITY = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_PREFIX = re.compile(r"(?:/[A-Za-z0-9\-._~!$&'()*+,=:@]+)*")
_ADDRESS = "must be host:port, [ipv6]:port or unix:/path"
_UPSTREAM = "must be http://host:port, https://host:port or unix:/path"
_STORE = "must be sqlite:///absolute/path or sqlite:relative/path"
_LONGEST_SOCKET_PATH = 107
"""Bytes that `sun_path` holds on Linux, less its NUL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamUrl:
    """What an upstream URL says. `authority` is its Host; `prefix` its path, without a slash at the end."""

    address: Address
    tls: bool
    authority: str
    prefix: str


def parse_address(text: str) -> Address:
    """An address to bind; port 0 is any free port."""
    if text.startswith("unix:"):
        return Address(path=_socket_path(text))
    if re.fullmatch(r"(\*?:)?[0-9]+", text):
        raise ValueError(f"{_ADDRESS} (did you mean '0.0.0.0:{text.rpartition(':')[2]}'?)")
    host, colon, port = text.rpartition(":")
    if not colon:
        raise ValueError(_ADDRESS)
    return Address(host=_host(host, _ADDRESS), port=_port(port, lowest=0))


def parse_upstream(text: str) -> UpstreamUrl:
    """The address behind an upstream URL; the port is the scheme's where none is given."""
    if text.startswith("unix:"):
        return UpstreamUrl(address=Address(path=_socket_path(text)), tls=False, authority="localhost", prefix="")
    url = _split(text)
    if "@" in url.netloc:
        raise ValueError("must not hold a user name or a password")
    if "?" in text or "#" in text:
        raise ValueError("must not hold a query or a fragment")
    if not _AUTHORITY.fullmatch(url.netloc):
        raise ValueError(_UPSTREAM)
    tls = url.scheme == "https"
    named, _, port = url.netloc.rpartition(":") if _has_port(url.netloc) else (url.netloc, "", "")
    host = _host(named, _UPSTREAM)
    number = _port(port, lowest=1) if port else (443 if tls else 80)
    prefix = url.path.rstrip("/")
    check_prefix(prefix)
    return UpstreamUrl(address=Address(host=host, port=number), tls=tls, authority=url.netloc, prefix=prefix)


def parse_store(text: str) -> str:
    """`sqlite:///absolute/path`, whatever was written; a relative path is one from the working directory."""
    if text.startswith(("postgresql:", "postgres:", "file:")):
        raise ValueError("is not supported yet: use sqlite:///path")
    scheme, _, path = text.partition(":")
    if scheme != "sqlite" or not path or path.endswith(("/", ":memory:")):
        raise ValueError(_STORE)
    if any(char in path for char in "?#\0"):
        raise ValueError("must be a path alone, without '?' or '#'")
    if path.startswith("//") and not path.startswith("///"):
        raise ValueError(f"{_STORE}; two slashes would name a host")
    if not path.startswith("/"):
        path = os.path.abspath(path)
    return "sqlite:///" + path.lstrip("/")


def sqlite_path(store: str) -> str:
    """The absolute path of the file that a parsed store URL names."""
    return "/" + store.removeprefix("sqlite:///")


def check_limiter(text: str) -> None:
    if text.startswith(("redis:", "rediss:", "unix:")):
        raise ValueError("is not supported yet: use memory")
    if text != "memory":
        raise ValueError("must be memory")


def check_upstream_host(text: str) -> None:
    """`keep`, `upstream`, or what to send as Host."""
    if not _AUTHORITY.fullmatch(text):
        raise ValueError("must be keep, upstream, or a host name with or without a port")


def check_prefix(text: str) -> None:
    """A path to put before, or take from before, the client's: nothing, or segments that need no encoding."""
    if not _PREFIX.fullmatch(text) or any(segment in (".", "..") for segment in text.split("/")):
        raise ValueError(
            "must be empty or a path such as /api, without a slash at its end and without % ; ? # or dots alone"
        )


def parse_network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text)
    except ValueError:
        pass
    try:
        meant = ip_network(text, strict=False)
    except ValueError:
        raise ValueError("must be an address or a network, such as 10.0.0.0/8 or ::1") from None
    raise ValueError(f"names a host inside a network (did you mean '{meant}'?)")


def _split(text: str) -> SplitResult:
    if any(not "!" <= char <= "~" for char in text):
        raise ValueError(f"{_UPSTREAM}, in printable ASCII")
    scheme, colon, _ = text.partition("://")
    if not colon:
        plain = re.fullmatch(r"[A-Za-z0-9._-]+(:[0-9]+)?(/[A-Za-z0-9._/-]*)?", text)
        hint = f" (did you mean 'http://{text}'?)" if plain else ""
        raise ValueError(f"has no scheme: {_UPSTREAM}{hint}")
    if scheme.lower() not in ("http", "https"):
        raise ValueError(_UPSTREAM)
    try:
        return urlsplit(text)
    except ValueError:
        raise ValueError(_UPSTREAM) from None


def _has_port(authority: str) -> bool:
    return ":" in authority.rpartition("]")[2]


def _host(text: str, wanted: str) -> str:
    if text.startswith("[") and text.endswith("]"):
        try:
            address = ip_address(text[1:-1])
        except ValueError:
            raise ValueError(f"{wanted}; between the brackets is no IPv6 address") from None
        if address.version == 6:
            return str(address)
    elif _HOST.fullmatch(text):
        return text
    if ":" in text and not text.startswith("["):
        raise ValueError(f"{wanted}; an IPv6 address stands in brackets")
    raise ValueError(wanted)


def _port(text: str, *, lowest: int) -> int:
    if not re.fullmatch("[0-9]{1,5}", text) or not lowest <= int(text) <= 65535:
        raise ValueError(f"must have a port from {lowest} to 65535")
    return int(text)


def _socket_path(text: str) -> str:
    path = text.removeprefix("unix:")
    if path.startswith("//"):
        raise ValueError("must be unix:/path, with one slash")
    if not path.startswith("/") or path.endswith("/") or "\0" in path:
        raise ValueError("must be unix:/path, with an absolute path of a socket")
    if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
        raise ValueError(f"the path of a Unix socket has at most {_LONGEST_SOCKET_PATH} bytes")
    return path
