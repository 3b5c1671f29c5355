"""The texts that the configuration is made of: each a type with its check, its description and its pattern.

The pattern is for editors (JSON Schema) and admits everything that the check admits; the check decides.
"""

import os
import re
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Annotated, Literal, cast
from urllib.parse import SplitResult, urlsplit

from msgspec import Meta

from sidecar.config.settings import Address
from sidecar.core.headers import HOP_BY_HOP, fold
from sidecar.core.units import DURATION_PATTERN, SIZE_PATTERN, parse_duration, parse_size

# Addresses, upstream URLs, and the URLs of store and limiter. Every parser raises ValueError; none echoes a URL,


_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?")
_AUTHORITY = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_ADDRESSES_PREFIX = re.compile(r"(?:/[A-Za-z0-9\-._~!$&'()*+,=:@]+)*")
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
    if not _ADDRESSES_PREFIX.fullmatch(text) or any(segment in (".", "..") for segment in text.split("/")):
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


CalendarUnit = Literal["minute", "hour", "day", "month"]

_UNITS = ("minute", "hour", "day", "month")
_FIELD_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_SCOPE = re.compile(r"[!#-\[\]-~]+")
_VALUE = re.compile(r"[ -~]*")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")
_PREFIX = re.compile(r"[A-Za-z0-9_-]{1,64}")
_FOREIGN_PREFIX = re.compile(r"[!-~]{0,64}")
_OURS = HOP_BY_HOP | {
    b"host",
    b"content-length",
    b"proxy-authorization",
    b"proxy-authenticate",
    b"http2-settings",
    b"expect",
    b"forwarded",
    b"x-real-ip",
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-forwarded-proto",
}


def parse_period(text: str) -> CalendarUnit | int:
    """A calendar unit, or whole seconds of at least one."""
    if text in _UNITS:
        return cast(CalendarUnit, text)
    try:
        seconds = parse_duration(text)
    except ValueError:
        raise ValueError("must be minute, hour, day, month, or a duration such as 30s") from None
    if seconds < 1 or seconds != int(seconds):
        raise ValueError("must be whole seconds, at least 1s")
    return int(seconds)


def _check_duration_or_off(text: str) -> None:
    if text != "off":
        parse_duration(text)


def _check_timeout(text: str) -> None:
    if parse_duration(text) <= 0:
        raise ValueError("must be more than nothing")


def _check_token(text: str) -> None:
    if not re.fullmatch(_FIELD_NAME, text):
        raise ValueError("must be a name of RFC 9110: letters, digits and !#$%&'*+-.^_`|~")


def _check_own_header(text: str) -> None:
    _check_token(text)
    if fold(text.encode()) in _OURS:
        raise ValueError("is a header that the sidecar itself handles: choose another name")


def _check_header_value(text: str) -> None:
    if not _VALUE.fullmatch(text):
        raise ValueError("must be one line of printable ASCII")


def _check_scope_name(text: str) -> None:
    if not _SCOPE.fullmatch(text):
        raise ValueError("must be printable ASCII without spaces, quotes and backslashes (RFC 6750)")
    if text == "*" or text.endswith(":*"):
        raise ValueError("is a wildcard, which every catalogue has: leave it out")


def _check_name(text: str) -> None:
    if not _NAME.fullmatch(text):
        raise ValueError("must begin with a letter or digit, and hold only these and . _ : - (64 at most)")


def _check_key_prefix(text: str) -> None:
    if not _PREFIX.fullmatch(text):
        raise ValueError("must be one to 64 of A-Z a-z 0-9 _ -")


def _check_foreign_prefix(text: str) -> None:
    if not _FOREIGN_PREFIX.fullmatch(text):
        raise ValueError("must be up to 64 printable ASCII characters without spaces")


def _check_admin_token_hash(text: str) -> None:
    if not re.fullmatch("sha256:[0-9a-f]{64}", text):
        raise ValueError("must be sha256: and 64 hexadecimal digits, as `sidecar admin token` prints it")


def _check_host_name(text: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+", text):
        raise ValueError("must be a host name or an address, without scheme, port and brackets")


def _check_realm(text: str) -> None:
    if not _VALUE.fullmatch(text) or '"' in text or "\\" in text:
        raise ValueError("must be printable ASCII without quotes and backslashes")


Duration = Annotated[
    str,
    Meta(description="a duration such as 500ms, 2s, 15m, 24h or 90d", pattern=DURATION_PATTERN),
    Meta(extra={"check": parse_duration}),
]
DurationOrOff = Annotated[
    str,
    Meta(
        description="a duration such as 30d, or off",
        pattern=f"^off$|{DURATION_PATTERN}",
        extra={"check": _check_duration_or_off},
    ),
]
Timeout = Annotated[Duration, Meta(extra={"check": _check_timeout})]
Size = Annotated[
    str,
    Meta(description="a size such as 512B, 64KiB or 1MiB", pattern=SIZE_PATTERN, extra={"check": parse_size}),
]
FilePath = Annotated[str, Meta(description="the path of a file", min_length=1)]
Period = Annotated[
    str,
    Meta(
        description="minute, hour, day, month, or a duration such as 30s",
        pattern=f"^(minute|hour|day|month)$|{DURATION_PATTERN}",
        extra={"check": parse_period},
    ),
]
BindAddress = Annotated[
    str,
    Meta(
        description="host:port, [ipv6]:port or unix:/path",
        pattern="^(unix:/.+|.+:[0-9]{1,5})$",
        extra={"check": parse_address},
    ),
]
Upstream = Annotated[
    str,
    Meta(
        description="http://host:port, https://host:port or unix:/path",
        pattern="^([hH][tT][tT][pP][sS]?://|unix:/).+$",
        extra={"check": parse_upstream},
    ),
]
UpstreamHost = Annotated[
    str,
    Meta(description="keep, upstream, or a host name", extra={"check": check_upstream_host}),
]
PathPrefix = Annotated[
    str,
    Meta(description="a path such as /api, or nothing", pattern="^(/.*)?$", extra={"check": check_prefix}),
]
Store = Annotated[str, Meta(description="sqlite:///path", pattern="^sqlite:.+$", extra={"check": parse_store})]
LimiterUrl = Annotated[str, Meta(description="memory", pattern="^memory$", extra={"check": check_limiter})]
Network = Annotated[
    str,
    Meta(
        description="an address or a network such as 10.0.0.0/8",
        pattern="^[0-9A-Fa-f:.]+(%[^/]+)?(/[0-9.]+)?$",
        extra={"check": parse_network},
    ),
]
Token = Annotated[str, Meta(description="a name", pattern=f"^{_FIELD_NAME}$", extra={"check": _check_token})]
OwnHeader = Annotated[
    str, Meta(description="the name of a header", pattern=f"^{_FIELD_NAME}$", extra={"check": _check_own_header})
]
HeaderValue = Annotated[
    str, Meta(description="the value of a header", pattern="^[ -~]*$", extra={"check": _check_header_value})
]
ScopeName = Annotated[
    str, Meta(description="the name of a scope", pattern=r"^[!#-\[\]-~]+$", extra={"check": _check_scope_name})
]
Name = Annotated[
    str, Meta(description="a name", pattern="^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$", extra={"check": _check_name})
]
KeyPrefix = Annotated[
    str, Meta(description="what a key begins with", pattern="^[A-Za-z0-9_-]{1,64}$", extra={"check": _check_key_prefix})
]
ForeignPrefix = Annotated[
    str,
    Meta(
        description="what a key made elsewhere begins with, or nothing",
        pattern="^[!-~]{0,64}$",
        extra={"check": _check_foreign_prefix},
    ),
]
AdminTokenHash = Annotated[
    str,
    Meta(
        description="sha256: and 64 hexadecimal digits, as `sidecar admin token` prints it",
        pattern="^sha256:[0-9a-f]{64}$",
        extra={"check": _check_admin_token_hash},
    ),
]
HostName = Annotated[
    str,
    Meta(description="a host name without a port", pattern="^[A-Za-z0-9._:-]+$", extra={"check": _check_host_name}),
]
Realm = Annotated[
    str, Meta(description="the name of a realm", pattern=r"^[ !#-\[\]-~]*$", extra={"check": _check_realm})
]
