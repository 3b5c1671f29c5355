"""How each proxy tells of the request that it asks about. Bytes and texts in, values out; no I/O.

A dialect is chosen by the path that the proxy asks (`/nginx`), which no client has a say in.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from urllib.parse import unquote

from sidecar.core.errors import Reason
from sidecar.core.model import Headers

METHODS = frozenset(
    {
        "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY",
        "ACL", "BIND", "COPY", "LINK", "LOCK", "MKCALENDAR", "MKCOL", "MOVE", "PROPFIND", "PROPPATCH", "REBIND",
        "REPORT", "SEARCH", "UNBIND", "UNLINK", "UNLOCK",
        "CHECKOUT", "MERGE", "MKACTIVITY", "M-SEARCH", "NOTIFY", "SUBSCRIBE", "UNSUBSCRIBE", "PURGE", "SOURCE",
    }
)  # fmt: skip
"""What the data listener's parser (llhttp) takes; any other is refused there, and so here."""

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_UNNORMALISED = re.compile(r"\\|//|/\.\.?(?=[/;]|\Z)")
"""A backslash, an empty segment, or one of dots alone (parameters after them do not count)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """Where the parts of the original request stand; lower-case names of header fields."""

    method: bytes = b""
    """Empty: method and target are the question's own, below the dialect's path."""
    target: bytes = b""
    host: bytes = b"host"
    knows_two_refusals: bool = False
    """The proxy takes 401 and 403 for refusals, and any other status for a failure of ours."""
    removes_named: bool = False
    """The proxy takes out of the request what the answer names."""


_FORWARDED = Dialect(method=b"x-forwarded-method", target=b"x-forwarded-uri", host=b"x-forwarded-host")
DIALECTS: Mapping[str, Dialect] = {
    "nginx": Dialect(method=b"x-original-method", target=b"x-original-uri", knows_two_refusals=True),
    "caddy": _FORWARDED,
    "traefik": _FORWARDED,
    "envoy": Dialect(removes_named=True),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Original:
    """The request that a proxy asks about."""

    method: str
    target: str
    headers: Headers
    """With the client's Host."""


def dialect_of(target: str, served: Collection[str]) -> Dialect | None:
    """The dialect that the proxy's own request-target names, if it is one of those `served`."""
    path = target.partition("?")[0]
    name, below, _ = path.removeprefix("/").partition("/")
    dialect = DIALECTS.get(name) if name in served else None
    return dialect if dialect is not None and bool(below) == (dialect.method == b"") else None


def original(dialect: Dialect, method: str, target: str, headers: Headers) -> Original | Reason:
    """What the proxy's request is about, or why that cannot be known: a part is missing, or there twice."""
    hosts = _values(headers, dialect.host)
    if dialect.method:
        methods, targets = _values(headers, dialect.method), _values(headers, dialect.target)
    else:
        methods, targets = [method], ["/" + target.removeprefix("/").partition("/")[2]]
    if len(hosts) != 1 or len(methods) != 1 or not _TOKEN.fullmatch(methods[0]):
        return Reason.BAD_REQUEST
    if len(targets) != 1 or not targets[0].startswith("/"):
        return Reason.BAD_TARGET
    others = tuple(field for field in headers if field[0].lower() not in (b"host", dialect.host))
    host = hosts[0].encode("utf-8", "surrogateescape")
    return Original(method=methods[0], target=targets[0], headers=((b"Host", host), *others))


def objection(asked: Original) -> Reason | None:
    """What is refused before the gate is asked.

    Stricter than the gate with targets: what a proxy in front has not normalised, it may yet normalise, after the
    decision, in a way of its own.
    """
    if asked.method not in METHODS:
        return Reason.METHOD_NOT_ALLOWED
    return None if _is_normalised(asked.target.partition("?")[0]) else Reason.AMBIGUOUS_TARGET


def _values(headers: Headers, name: bytes) -> list[str]:
    return [value.decode("utf-8", "surrogateescape") for field, value in headers if field.lower() == name]


def _is_normalised(path: str) -> bool:
    for _ in range(3):
        if _UNNORMALISED.search(path):
            return False
        path = unquote(path, errors="surrogateescape")
    return True
