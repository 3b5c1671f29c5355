"""The leaves of the configuration: each a type, the parser of its text, a description and a pattern.

A parser raises ValueError with what the text must be; it never echoes a URL, which may contain a password. The pattern
is for editors (JSON Schema) and allows everything that the parser allows; the parser decides.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from math import inf
from typing import Annotated, Any, Literal, cast
from urllib.parse import SplitResult, urlsplit

from msgspec import Meta, field

from sidecar.config.decoder import Default, leaf
from sidecar.config.store_url import parse_replica, parse_store, parse_usage_store
from sidecar.core.headers import HOP_BY_HOP, fold
from sidecar.core.units import DURATION_PATTERN, SIZE_PATTERN, parse_duration, parse_size
from sidecar.limiter.redis.url import RedisUrl, parse_redis_url


def default(written: object, value: object, *, name: str | None = None) -> Any:
    """A field's default. `name` is the key in the file if it differs from the field's name."""
    return field(default_factory=Default(written, value), name=name)


def left_out(value: object = None, *, name: str | None = None) -> Any:
    """The value of an option without a default in the file. The file cannot say `null` for it."""
    return field(default_factory=Default(None, value), name=name)


def renamed(name: str, value: object) -> Any:
    """A default that is the same in the file and the program, of a field called `name` in the file."""
    return field(default=value, name=name)


def seconds(text: str, *, name: str | None = None) -> Any:
    return default(text, parse_duration(text), name=name)


def size(text: str) -> Any:
    return default(text, parse_size(text))


def off(*, name: str) -> Any:
    return default("off", None, name=name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A socket to bind or to connect to: `host` and `port`, or `path` of a Unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


# Addresses, upstream URLs, and the URLs of store, limiter and collector.


_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?")
_AUTHORITY = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_PATH_PREFIX = re.compile(r"(?:/[A-Za-z0-9\-._~!$&'()*+,=:@]+)*")
_ADDRESS = "must be host:port, [ipv6]:port or unix:/path"
_UPSTREAM = "must be http://host:port, https://host:port or unix:/path"
_LONGEST_SOCKET_PATH = 107
"""Bytes of `sun_path` on Linux, without its NUL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamUrl:
    """The parts of an upstream URL. `authority` is its Host; `prefix` its path, without a slash at the end."""

    address: Address
    tls: bool = False
    authority: str = ""
    prefix: str = ""


def parse_address(text: str) -> Address:
    """An address to bind; port 0 is any free port."""
    if text.startswith("unix:"):
        return Address(path=_socket_path(text))
    if re.fullmatch(r"(\*?:)?[0-9]+", text):
        raise ValueError(f"{_ADDRESS} (did you mean '0.0.0.0:{text.rpartition(':')[2]}'?)")
    if "," in text:
        raise ValueError(f"{_ADDRESS}; write several as a list: [a, b]")
    host, colon, port = text.rpartition(":")
    if not colon:
        raise ValueError(_ADDRESS)
    return Address(host=_host(host, _ADDRESS), port=_port(port, lowest=0))


def parse_upstream(text: str) -> UpstreamUrl:
    """The address behind an upstream URL; the default port is the scheme's."""
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
    parse_prefix(prefix)
    return UpstreamUrl(address=Address(host=host, port=number), tls=tls, authority=url.netloc, prefix=prefix)


def parse_limiter(text: str) -> str | RedisUrl:
    return text if text == "memory" else parse_redis_url(text)


def parse_upstream_host(text: str) -> str:
    """`keep`, `upstream`, or the Host to send."""
    if not _AUTHORITY.fullmatch(text):
        raise ValueError("must be keep, upstream, or a host name with or without a port")
    return text


def parse_prefix(text: str) -> str:
    """A path prefix to add or remove: empty, or segments that need no encoding."""
    if not _PATH_PREFIX.fullmatch(text) or any(segment in (".", "..") for segment in text.split("/")):
        raise ValueError(
            "must be empty or a path such as /api, without a slash at its end and without % ; ? # or dots alone"
        )
    return text


def parse_collector(text: str) -> str:
    """The URL to send spans to; one without a path gets OTLP/HTTP's path for spans."""
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        raise ValueError("is not a URL: write http://host:4318") from None
    if url.scheme not in ("http", "https") or not url.hostname or port == 0 or not text.isascii():
        raise ValueError("must be the OTLP/HTTP address of a collector: http://host:4318 or https://host/v1/traces")
    if url.username is not None or url.query or url.fragment:
        raise ValueError("must hold no user, query or fragment: credentials belong in tracing.headers")
    return text if url.path.strip("/") else f"{text.rstrip('/')}/v1/traces"


def parse_network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text)
    except ValueError:
        pass
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        raise ValueError("must be an address or a network, such as 10.0.0.0/8 or ::1") from None
    raise ValueError(f"names a host inside a network (did you mean '{network}'?)")


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
            raise ValueError(f"{wanted}; the text in brackets is not an IPv6 address") from None
        if address.version == 6:
            return str(address)
    elif _HOST.fullmatch(text):
        return text
    if ":" in text and not text.startswith("["):
        raise ValueError(f"{wanted}; write an IPv6 address in brackets")
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


# Names, header fields, durations and sizes.


CalendarUnit = Literal["minute", "hour", "day", "week", "month"]

_UNITS = ("minute", "hour", "day", "week", "month")
FIELD_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
RESERVED_HEADERS = HOP_BY_HOP | {
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
"""Headers that the sidecar itself handles; folded."""


def matching(pattern: str, message: str) -> Callable[[str], str]:
    """A parser that returns the whole text if the pattern matches it."""
    compiled = re.compile(pattern)

    def parse(text: str) -> str:
        if not compiled.fullmatch(text):
            raise ValueError(message)
        return text

    return parse


def parse_period(text: str) -> CalendarUnit | int:
    """A calendar unit, or whole seconds of at least one."""
    if text in _UNITS:
        return cast(CalendarUnit, text)
    try:
        seconds = parse_duration(text)
    except ValueError:
        raise ValueError("must be minute, hour, day, week, month, or a duration such as 30s") from None
    if seconds < 1 or seconds != int(seconds):
        raise ValueError("must be whole seconds, at least 1s")
    return int(seconds)


def parse_size_or_off(text: str) -> float:
    return inf if text == "off" else _or_off(parse_size, text)


def parse_duration_or_off(text: str) -> float | None:
    return None if text == "off" else _or_off(parse_duration, text)


def _or_off(parse: Callable[[str], float], text: str) -> float:
    try:
        return parse(text)
    except ValueError as error:
        raise ValueError(str(error) if "did you mean" in str(error) else f"{error}, or off") from None


def parse_timeout(text: str) -> float:
    seconds = parse_duration(text)
    if seconds <= 0:
        raise ValueError("must be more than 0")
    return seconds


parse_token = matching(FIELD_NAME, "must be a name of RFC 9110: letters, digits and !#$%&'*+-.^_`|~")
_parse_scope = matching(r"[!#-\[\]-~]+", "must be printable ASCII without spaces, quotes and backslashes (RFC 6750)")
_parse_host = matching(
    r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+", "must be a host name or an address, without scheme, port and brackets"
)
_parse_token_hash = matching(
    "sha256:[0-9a-f]{64}", "must be sha256: and 64 hexadecimal digits, as `sidecar admin token` prints it"
)


def parse_own_header(text: str) -> str:
    """A header that the configuration may name: not one that the sidecar itself handles."""
    if fold(parse_token(text).encode()) in RESERVED_HEADERS:
        raise ValueError("is a header that the sidecar itself handles: choose another name")
    return text


def parse_scope_name(text: str) -> str:
    if _parse_scope(text) == "*" or text.endswith(":*"):
        raise ValueError("is a wildcard, which every catalogue has: leave it out")
    return text


def parse_host_name(text: str) -> str:
    """In lower case."""
    return _parse_host(text).lower()


def parse_token_hash(text: str) -> bytes:
    """The digest."""
    return bytes.fromhex(_parse_token_hash(text).removeprefix("sha256:"))


_DURATION = "a duration such as 500ms, 2s, 15m, 24h or 90d"
_SIZE = "a size such as 512B, 64KiB or 1MiB"

Duration = Annotated[float, leaf(parse_duration, _DURATION, DURATION_PATTERN)]
DurationOrOff = Annotated[
    float | None, leaf(parse_duration_or_off, "a duration such as 30d, or off", f"^off$|{DURATION_PATTERN}")
]
Timeout = Annotated[float, leaf(parse_timeout, _DURATION, DURATION_PATTERN)]
Size = Annotated[int, leaf(parse_size, _SIZE, SIZE_PATTERN)]
OptionalSize = Annotated[int | None, leaf(parse_size, _SIZE, SIZE_PATTERN)]
SizeOrOff = Annotated[float, leaf(parse_size_or_off, "a size such as 1MiB, or off", f"^off$|{SIZE_PATTERN}")]
"""Infinite if disabled."""
FilePath = Annotated[str, Meta(description="the path of a file", min_length=1)]
Period = Annotated[
    CalendarUnit | int,
    leaf(
        parse_period,
        "minute, hour, day, week, month, or a duration such as 30s",
        f"^(minute|hour|day|week|month)$|{DURATION_PATTERN}",
    ),
]
BindAddress = Annotated[
    Address, leaf(parse_address, "host:port, [ipv6]:port or unix:/path", "^(unix:/.+|.+:[0-9]{1,5})$")
]
Upstream = Annotated[
    UpstreamUrl,
    leaf(
        parse_upstream,
        "http://host:port, https://host:port or unix:/path",
        "^([hH][tT][tT][pP][sS]?://|unix:/).+$",
    ),
]
UpstreamHost = Annotated[str, leaf(parse_upstream_host, "keep, upstream, or a host name")]
PathPrefix = Annotated[str, leaf(parse_prefix, "a path such as /api, or nothing", "^(/.*)?$")]
Store = Annotated[
    str,
    leaf(
        parse_store,
        "sqlite:///path, postgresql://user@host/database or file:///path",
        "^(sqlite|postgres(ql)?|file):.+$",
    ),
]
UsageStore = Annotated[str, leaf(parse_usage_store, "sqlite:///path", "^sqlite:.+$")]
Replica = Annotated[str, leaf(parse_replica, "postgresql://user@host/database", "^postgres(ql)?:.+$")]
_parse_namespace = matching(r"[A-Za-z0-9._-]{1,100}", "must be letters, digits and ._- (up to 100)")
Namespace = Annotated[str, leaf(_parse_namespace, "letters, digits and ._-", "^[A-Za-z0-9._-]{1,100}$")]
LimiterUrl = Annotated[
    str | RedisUrl, leaf(parse_limiter, "memory, or the redis:// URL of a server", "^(memory|[rR][eE][dD][iI][sS].+)$")
]
Collector = Annotated[
    str,
    leaf(
        parse_collector,
        "http://host:port or https://host:port, with a path or without",
        "^[hH][tT][tT][pP][sS]?://.+$",
    ),
]
# An IPv4Network or IPv6Network; msgspec does not support a union of two classes.
Network = Annotated[
    Any,
    leaf(parse_network, "an address or a network such as 10.0.0.0/8", "^[0-9A-Fa-f:.]+(%[^/]+)?(/[0-9.]+)?$"),
]
Token = Annotated[str, leaf(parse_token, "a name", f"^{FIELD_NAME}$")]
OptionalToken = Annotated[str | None, leaf(parse_token, "a name", f"^{FIELD_NAME}$")]
OwnHeader = Annotated[str, leaf(parse_own_header, "the name of a header", f"^{FIELD_NAME}$")]
HeaderValue = Annotated[
    str, leaf(matching("[ -~]*", "must be one line of printable ASCII"), "the value of a header", "^[ -~]*$")
]
ScopeName = Annotated[str, leaf(parse_scope_name, "the name of a scope", r"^[!#-\[\]-~]+$")]
Name = Annotated[
    str,
    leaf(
        matching(
            "[A-Za-z0-9][A-Za-z0-9._:-]{0,63}",
            "must begin with a letter or digit, and hold only these and . _ : - (64 at most)",
        ),
        "a name",
        "^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$",
    ),
]
KeyPrefix = Annotated[
    str,
    leaf(
        matching("[A-Za-z0-9_-]{1,64}", "must be 1 to 64 of A-Z a-z 0-9 _ -"),
        "what a key begins with",
        "^[A-Za-z0-9_-]{1,64}$",
    ),
]
ForeignPrefix = Annotated[
    str,
    leaf(
        matching("[!-~]{0,64}", "must be up to 64 printable ASCII characters without spaces"),
        "what a key made elsewhere begins with, or nothing",
        "^[!-~]{0,64}$",
    ),
]
AdminTokenHash = Annotated[
    bytes,
    leaf(
        parse_token_hash,
        "sha256: and 64 hexadecimal digits, as `sidecar admin token` prints it",
        "^sha256:[0-9a-f]{64}$",
    ),
]
HostName = Annotated[str, leaf(parse_host_name, "a host name without a port", "^[A-Za-z0-9._:-]+$")]
Realm = Annotated[
    str,
    leaf(
        matching(r"[ !#-\[\]-~]*", "must be printable ASCII without quotes and backslashes"),
        "the name of a realm",
        r"^[ !#-\[\]-~]*$",
    ),
]
ServiceName = Annotated[
    str,
    leaf(
        matching("[ -~]{0,200}", "must be up to 200 printable ASCII characters"),
        "the name of a service",
        "^[ -~]{0,200}$",
    ),
]
