"""How each proxy tells of the request that it asks about. Bytes and texts in, values out; no I/O.

A dialect is chosen by the path that the proxy asks (`/nginx`), which no client has a say in.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from urllib.parse import unquote

from sidecar.config.settings import Config
from sidecar.core.client_address import TrustedProxies
from sidecar.core.errors import Reason
from sidecar.core.headers import fold
from sidecar.core.model import Allow, Headers, Response
from sidecar.core.routing import PARSED_METHODS

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
    if asked.method not in PARSED_METHODS:
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


# The gate's decision, worded for a dialect.


_NO_STORE = (b"Cache-Control", b"no-store")


def allowing(dialect: Dialect, told: Headers, ours: Headers, *, without: bytes) -> Response:
    """told: for the upstream. ours: for the client. without: names of what the upstream is not to see."""
    removed = ((b"X-Envoy-Auth-Headers-To-Remove", without),) if dialect.removes_named and without else ()
    return Response(status=200, headers=(_NO_STORE, *told, *ours, *removed), body=b"")


def refusing(dialect: Dialect, refusal: Response) -> Response:
    """The refusal itself; for nginx as one of the two that it knows, with what it really is in header fields."""
    if not dialect.knows_two_refusals:
        return refusal
    really = ((b"X-Auth-Status", str(refusal.status).encode()), (b"X-Auth-Body", refusal.body))
    status = 401 if refusal.status == 401 else 403
    return Response(status=status, headers=(*refusal.headers, *really), body=refusal.body)


# What follows from the configuration for forward-auth, worked out once for as long as it is in force.


class Terms:
    """served: names of dialects. trusts: the peers whose questions are answered."""

    def __init__(self, config: Config) -> None:
        identity = (*config.identity.headers, config.identity.request_id)
        self.served = frozenset(config.decision.dialects if config.decision else ())
        self.trusts = TrustedProxies(config.trusted_proxies, b"").trusts
        self._identity = tuple(name.encode() for name in identity)
        self._strip = tuple(name.lower().encode() for name in config.identity.strip)
        self._credential = tuple(
            source.name.lower().encode() for source in config.keys.sources if source.kind == "header"
        )
        self._exact = frozenset(name.lower() for name in (*self._identity, *self._strip))
        self._folded = frozenset(map(fold, self._exact))

    def objection(self, asked: Original) -> Reason | None:
        """Why the gate need not be asked."""
        return Reason.BAD_HEADER if self._disguised(asked.headers) else objection(asked)

    def told(self, allow: Allow) -> Headers:
        """Every identity header, empty where nothing is known, so that the client's own is overwritten."""
        known = {name.lower(): value for name, value in allow.headers}
        return tuple((name, known.get(name.lower(), b"")) for name in self._identity)

    def not_forwarded(self, allow: Allow) -> bytes:
        """Names, comma-separated, of what the upstream is not to see: the key, and what is always stripped."""
        kept = {name.lower() for name, _ in allow.headers}
        return b",".join(name for name in (*self._credential, *self._strip) if name not in kept)

    def _disguised(self, headers: Headers) -> bool:
        """Whether a field passes itself off as one that the client may not send (`X_Auth_Subject`).

        The data listener strips those. A proxy in front overwrites the very name, and passes on the others.
        """
        return any((lower := name.lower()) not in self._exact and fold(lower) in self._folded for name, _ in headers)
