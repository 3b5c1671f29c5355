"""The texts that the configuration is made of: each a type with its check, its description and its pattern.

The pattern is for editors (JSON Schema) and admits everything that the check admits; the check decides.
"""

import re
from typing import Annotated, Literal, cast

from msgspec import Meta

from sidecar.config import addresses
from sidecar.core.headers import HOP_BY_HOP, fold
from sidecar.core.units import DURATION_PATTERN, SIZE_PATTERN, parse_duration, parse_size

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
        extra={"check": addresses.parse_address},
    ),
]
Upstream = Annotated[
    str,
    Meta(
        description="http://host:port, https://host:port or unix:/path",
        pattern="^([hH][tT][tT][pP][sS]?://|unix:/).+$",
        extra={"check": addresses.parse_upstream},
    ),
]
UpstreamHost = Annotated[
    str,
    Meta(description="keep, upstream, or a host name", extra={"check": addresses.check_upstream_host}),
]
PathPrefix = Annotated[
    str,
    Meta(description="a path such as /api, or nothing", pattern="^(/.*)?$", extra={"check": addresses.check_prefix}),
]
Store = Annotated[
    str, Meta(description="sqlite:///path", pattern="^sqlite:.+$", extra={"check": addresses.parse_store})
]
LimiterUrl = Annotated[str, Meta(description="memory", pattern="^memory$", extra={"check": addresses.check_limiter})]
Network = Annotated[
    str,
    Meta(
        description="an address or a network such as 10.0.0.0/8",
        pattern="^[0-9A-Fa-f:.]+(%[^/]+)?(/[0-9.]+)?$",
        extra={"check": addresses.parse_network},
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
