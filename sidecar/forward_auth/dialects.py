"""How each proxy describes the request that it asks about. Pure: no I/O.

The path that the proxy requests (`/nginx`) selects the dialect; no client can change it.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import unquote

from sidecar.config.build.config import Config
from sidecar.core.client_address import TrustedProxies
from sidecar.core.errors import Reason
from sidecar.core.headers import STRIPPED, ExactHeaderNames, HeaderNames, fold
from sidecar.core.model import Allow, Headers, Response
from sidecar.core.routing import is_token

_DOTS = re.compile(r"/\.\.?(?=[/;]|\Z)")
"""A segment of dots; parameters after the dots are ignored."""
_UNNORMALISED = re.compile(rf"\\|//|{_DOTS.pattern}")
_ENCODED_SLASH = re.compile(r"%2[Ff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """The headers that hold the parts of the original request; lower-case names."""

    method: bytes = b""
    """If empty, method and target are those of the proxy's own request, below the dialect's path."""
    target: bytes = b""
    host: bytes = b"host"
    knows_two_refusals: bool = False
    """The proxy treats 401 and 403 as refusals, and any other status as a failure of the sidecar."""
    removes_named: bool = False
    """The proxy removes from the request the headers that the response names."""


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
    """The dialect that the proxy's own request target names, if it is among `served`."""
    path = target.partition("?")[0]
    name, below, _ = path.removeprefix("/").partition("/")
    dialect = DIALECTS.get(name) if name in served else None
    return dialect if dialect is not None and bool(below) == (dialect.method == b"") else None


def original(dialect: Dialect, method: str, target: str, headers: Headers) -> Original | Reason:
    """The request that the proxy asks about, or the reason why it is unclear: a part is missing or repeated."""
    hosts = _values(headers, dialect.host)
    if dialect.method:
        methods, targets = _values(headers, dialect.method), _values(headers, dialect.target)
    else:
        methods, targets = [method], ["/" + target.removeprefix("/").partition("/")[2]]
    if len(hosts) != 1 or len(methods) != 1 or not is_token(methods[0]):
        return Reason.BAD_REQUEST
    if len(targets) != 1 or not targets[0].startswith("/"):
        return Reason.BAD_TARGET
    others = tuple(field for field in headers if field[0].lower() not in (b"host", dialect.host))
    host = hosts[0].encode("utf-8", "surrogateescape")
    return Original(method=methods[0], target=targets[0], headers=((b"Host", host), *others))


def objection(request: Original, *, keep_slash: bool = False) -> Reason | None:
    """The reason to refuse a request without asking the gate.

    It is stricter than the gate about targets: the proxy may still normalise them after the decision, in its own way.
    keep_slash: the upstream, and so the proxy, does not treat an encoded slash as a slash.
    """
    path = request.target.partition("?")[0]
    kept = _ENCODED_SLASH.sub("-", path) if keep_slash else path
    if any(map(_DOTS.search, _decodings(path))) or any(map(_UNNORMALISED.search, _decodings(kept))):
        return Reason.AMBIGUOUS_TARGET
    return None


def _values(headers: Headers, name: bytes) -> list[str]:
    return [value.decode("utf-8", "surrogateescape") for field, value in headers if field.lower() == name]


def _decodings(path: str) -> Iterator[str]:
    """The path as received, decoded once, and decoded twice."""
    for _ in range(3):
        yield path
        path = unquote(path, errors="surrogateescape")


# The gate's decision, worded for a dialect.


_NO_STORE = (b"Cache-Control", b"no-store")


def allowing(dialect: Dialect, identity: Headers, ours: Headers, *, without: bytes) -> Response:
    """identity: headers for the upstream. ours: headers for the client. without: names of headers to remove."""
    removed = ((b"X-Envoy-Auth-Headers-To-Remove", without),) if dialect.removes_named and without else ()
    return Response(status=200, headers=(_NO_STORE, *identity, *ours, *removed), body=b"")


def refusing(dialect: Dialect, refusal: Response) -> Response:
    """The refusal; for nginx as 401 or 403, with the real status and body in headers."""
    if not dialect.knows_two_refusals:
        return refusal
    actual = ((b"X-Auth-Status", str(refusal.status).encode()), (b"X-Auth-Body", refusal.body))
    status = 401 if refusal.status == 401 else 403
    return Response(status=status, headers=(*refusal.headers, *actual), body=refusal.body)


# What the configuration means for forward auth, computed once for each configuration.


_FORWARDING = ("Forwarded", "X-Real-IP", "X-Forwarded*")
"""Headers that a proxy sets or removes by itself, or by its configuration."""
_SIGNED_IN = (
    "X-Forwarded-User",
    "X-Forwarded-Email",
    "X-Forwarded-Groups",
    "X-Forwarded-Preferred-Username",
    "X-Forwarded-Access-Token",
)
"""Except these, with which oauth2-proxy names the signed-in user: proxies pass them on as any client wrote them."""


class Terms:
    """served: names of the enabled dialects. trusts: whether a peer is a proxy that may ask."""

    def __init__(self, config: Config) -> None:
        identity = (*config.identity.own_headers, config.identity.request_id)
        strip = (*STRIPPED, *config.identity.strip)
        self.served = frozenset(config.decision.dialects if config.decision else ())
        self.trusts = TrustedProxies(config.trusted_proxies, b"").trusts
        self._identity = tuple(name.encode() for name in identity)
        self._strip = tuple(dict.fromkeys(name.lower().encode() for name in strip if not name.endswith("*")))
        self._credential = tuple(
            source.name.lower().encode()
            for source in config.keys.sources
            if source.kind == "header" and not source.in_list
        )
        self._keep_slash = config.keep_slash
        self._handled = frozenset(name.lower() for name in (*self._identity, *self._strip, *self._credential))
        self._kept = ExactHeaderNames(config.identity.keep)
        self._passing = ExactHeaderNames((*config.keys.passing_headers, *_FORWARDING))
        self._unlisted = HeaderNames((*(name for name in strip if name.endswith("*")), *_SIGNED_IN))
        self._imitable = HeaderNames(
            (*identity, *strip, *config.identity.keep, *config.keys.passing_headers, *_FORWARDING)
        )

    def objection(self, request: Original, dialect: Dialect) -> Reason | None:
        """The reason to refuse a request without asking the gate."""
        if any(self._is_unremovable(name.lower(), dialect) for name, _ in request.headers):
            return Reason.BAD_HEADER
        return objection(request, keep_slash=self._keep_slash)

    def identity_headers(self, allow: Allow) -> Headers:
        """Every identity header, empty if it has no value, so that one of the client's is overwritten."""
        known = {name.lower(): value for name, value in allow.headers}
        return tuple((name, known.get(name.lower(), b"")) for name in self._identity)

    def not_forwarded(self, request: Headers, allow: Allow) -> bytes:
        """Comma-separated names of the headers that the upstream must not see: credentials, and the stripped ones.

        request: the client's headers, some of which match patterns.
        """
        kept = {name.lower() for name, _ in allow.headers if not self._is_unlisted(name.lower())}
        sent = (lower for name, _ in request if fold(lower := name.lower()) in self._unlisted)
        names = dict.fromkeys((*self._credential, *self._strip, *sent))
        return b",".join(name for name in names if name not in kept)

    def _is_unremovable(self, name: bytes, dialect: Dialect) -> bool:
        """Whether the proxy cannot remove a header (lower-case name) that the data listener strips.

        A proxy removes or overwrites the names that its configuration lists. It passes on lookalikes
        (`X_Auth_Subject`), and most cannot name all headers with a prefix (`X-Envoy-`).
        """
        if name in self._handled or name in self._kept:
            return False
        if self._is_unlisted(name):
            return not (dialect.removes_named and name == fold(name))
        return name not in self._passing and fold(name) in self._imitable

    def _is_unlisted(self, name: bytes) -> bool:
        """Whether a header must not reach the upstream although proxies' configurations need not list it."""
        return name not in self._kept and fold(name) in self._unlisted
