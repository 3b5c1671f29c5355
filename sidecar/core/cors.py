"""Who else may read a response: scripts of other origins (CORS, Fetch section 3.2), and caches (RFC 9111)."""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from unicodedata import normalize

from msgspec.structs import replace

from sidecar.core.model import EVERY, Cors, Headers, Policy, RequestHead, Response, Route, Source

# The origins in a configuration, and the Origin of a request.


_ADDRESS = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?:[^/?#@\[\]]*@)?"
    r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s/?#@:\[\],]+)(?::(?P<port>[0-9]*))?(?:[/?#].*)?"
)
"""What of an address makes its origin, and around it what does not."""
_LABEL = re.compile("[a-z0-9_-]{1,63}")
_NUMBER = re.compile("[0-9]+|0x[0-9a-f]*")
"""As the last label: the host is then an IPv4 address to browsers (URL Standard, "ends in a number")."""
_PUNYCODE = "xn--"
_LONGEST_NAME = 253
_LAST_PORT = 65535
_USUAL_PORTS = {"http": "80", "https": "443"}
_PAGES_OF = {"ws": "http", "wss": "https"}
_NO_ORIGIN = frozenset({"about", "blob", "data", "file", "filesystem", "ftp", "javascript", "mailto"})
_WANTED = "must be scheme://host or scheme://host:port, in lower case, without a path"


def parse_origin(text: str) -> str:
    """An origin as browsers write it, or `*`. Raises ValueError with what to write."""
    if text == EVERY:
        return text
    if text.lower() == "null":
        raise ValueError("'null' is the origin of any sandboxed frame and local file: anyone can send it")
    if "*" in text:
        raise ValueError("has a '*' in it: list each origin, or write \"*\" alone for every one")
    origin, port = _origin_in(text)
    if port and text == f"{origin}:{port}":
        raise ValueError(f"has its scheme's own port, which browsers leave out: write '{origin}'")
    if origin != text and not text.isascii():
        raise ValueError(f"has letters that browsers send as punycode: write '{origin}'")
    if origin != text:
        raise ValueError(f"{_WANTED} (did you mean '{origin}'?)")
    return text


def _origin_in(text: str) -> tuple[str, str]:
    """The origin of an address (URL Standard, section 4.7), and its port where browsers leave that out."""
    found = _ADDRESS.fullmatch(text)
    if found is None:
        raise ValueError(_WANTED)
    scheme, port = found["scheme"].lower(), (found["port"] or "").lstrip("0")
    host = _ipv6(found["host"]) if found["host"].startswith("[") else _named_host(found["host"])
    if found["port"] and (not port or len(port) > len(str(_LAST_PORT)) or int(port) > _LAST_PORT):
        raise ValueError(f"must have a port from 1 to {_LAST_PORT}, or none")
    if scheme in _PAGES_OF:
        raise ValueError(f"must be the origin of a page, which may open a WebSocket: write {_PAGES_OF[scheme]}://…")
    if scheme in _NO_ORIGIN:
        raise ValueError(f"must be the origin of a page, such as https://app.example.com: {scheme}: has none")
    if port == _USUAL_PORTS.get(scheme):
        return f"{scheme}://{host}", port
    return f"{scheme}://{host}:{port}" if port else f"{scheme}://{host}", ""


def _ipv6(host: str) -> str:
    try:
        address = IPv6Address(host[1:-1])
    except ValueError:
        raise ValueError(f"{_WANTED}; the text in brackets is not an IPv6 address") from None
    mapped = int(address) if address.ipv4_mapped is not None else 0
    # The URL Standard writes no address with dots here, as `str` of newer Pythons does.
    return f"[::ffff:{mapped >> 16 & 0xFFFF:x}:{mapped & 0xFFFF:x}]" if mapped else f"[{address}]"


def _named_host(host: str) -> str:
    """A name or an IPv4 address."""
    name = ".".join(map(_label, host.lower().split(".")))
    labels = name.removesuffix(".").split(".")
    if _NUMBER.fullmatch(labels[-1]):
        try:
            return str(IPv4Address(name))
        except ValueError:
            raise ValueError(f"{_WANTED}; a host that ends in a number is an IPv4 address such as 10.0.0.1") from None
    if len(name) > _LONGEST_NAME or not all(map(_LABEL.fullmatch, labels)):
        raise ValueError(f"{_WANTED}; a host has letters, digits, - and _ between its dots")
    return name


def _label(label: str) -> str:
    """As ASCII: letters of other scripts in punycode (RFC 3492)."""
    if not label.isascii():
        return _PUNYCODE + normalize("NFKC", label).lower().encode("punycode").decode()
    if label.startswith(_PUNYCODE) and not _is_punycode(label.removeprefix(_PUNYCODE)):
        raise ValueError(f"{_WANTED}; what follows xn-- is not punycode")
    return label


def _is_punycode(text: str) -> bool:
    try:
        letters = text.encode().decode("punycode")
    except UnicodeError:
        return False
    usual = normalize("NFKC", letters).lower()
    written = letters.encode("punycode").decode()
    return not letters.isascii() and letters.isprintable() and usual == letters and written == text


def origin_of(headers: Headers) -> bytes | None:
    """The single Origin; None if there is none, or more than one."""
    return _only(headers, b"origin")


def requested_method(head: RequestHead) -> str | None:
    """The method that a preflight asks for; None if the request is not a preflight (Fetch, section 3.2.2)."""
    if head.method != "OPTIONS" or origin_of(head.headers) is None:
        return None
    method = _only(head.headers, b"access-control-request-method")
    return None if method is None else method.decode("latin-1")


def _only(headers: Headers, wanted: bytes) -> bytes | None:
    values = [value for name, value in headers if len(name) == len(wanted) and name.lower() == wanted]
    return values[0] if len(values) == 1 else None


# Headers for browsers.


_ALLOW_ORIGIN, _CORS_NAMES = b"Access-Control-Allow-Origin", b"access-control-"


class CorsFields:
    """The header fields of one `cors` section.

    sent: request headers that are always allowed. added: response headers that scripts may always read.
    """

    def __init__(self, cors: Cors, *, sent: Iterable[str], added: Iterable[str]) -> None:
        self._any_origin = EVERY in cors.origins
        self._origins = frozenset(origin.encode() for origin in cors.origins)
        self._every_origin = (_ALLOW_ORIGIN, EVERY.encode())
        credentials = ((b"Access-Control-Allow-Credentials", b"true"),) if cors.credentials else ()
        self._of_response = (*credentials, (b"Access-Control-Expose-Headers", _listed((*added, *cors.expose))))
        self._of_preflight = (
            *credentials,
            (b"Access-Control-Allow-Headers", _listed((*sent, *cors.headers))),
            (b"Access-Control-Max-Age", b"%d" % cors.max_age_seconds),
        )
        self.vary: tuple[str, ...] = () if self._any_origin else ("Origin",)

    def of_response(self, headers: Headers) -> Headers:
        """Fields of the response to a request with `headers`; none to an origin that is not listed.

        If any origin may read it, they are the same for everyone, because a cache may keep them.
        """
        allowed = self._origin(headers)
        return () if allowed is None else (allowed, *self._of_response)

    def of_preflight(self, head: RequestHead, method: str, route: Route) -> Headers:
        """method: the requested method, which the route has."""
        allowed = self._origin(head.headers)
        if allowed is None:
            return ()
        methods = method.encode() if EVERY in route.methods else _listed(sorted(route.methods))
        return (allowed, (b"Access-Control-Allow-Methods", methods), *self._of_preflight)

    def _origin(self, headers: Headers) -> tuple[bytes, bytes] | None:
        if self._any_origin:
            return self._every_origin
        origin = origin_of(headers)
        return (_ALLOW_ORIGIN, origin) if origin in self._origins and origin is not None else None


def tells_browsers(names: Iterable[bytes]) -> bool:
    """names: those of a response's headers, in lower case."""
    for name in names:  # noqa: SIM110 - a generator takes three times as long
        if name.startswith(_CORS_NAMES):
            return True
    return False


def without_cors(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """`headers` without CORS headers from elsewhere."""
    return [field for field in headers if not field[0].lower().startswith(_CORS_NAMES)]


def _listed(names: Iterable[str]) -> bytes:
    """Each once, in any case, joined by commas."""
    return ", ".join({name.lower(): name for name in names}.values()).encode()


# Headers for caches.


_PRIVATE, _NO_STORE = (b"Cache-Control", b"private"), (b"Cache-Control", b"no-store")
_DIRECTIVE = re.compile(rb'(?:[^,"]|"(?:[^"\\]|\\.)*")+')
_FOR_EVERYBODY = frozenset({b"public", b"s-maxage"})
_CLOSED = frozenset({b"private", b"no-store"})
"""Without an argument: `private="Set-Cookie"` lets the rest be shared (RFC 9111 section 5.2.2.7)."""


_MOST_KEPT = 64
"""Replacements for upstreams' cache headers, which repeat, and are at most as long as a head."""


@lru_cache(maxsize=_MOST_KEPT)
def cache_control(values: tuple[bytes, ...]) -> bytes | None:
    """A replacement for an upstream's Cache-Control, so that no shared cache stores the response for others.

    None if it already forbids that, or requires revalidation (`no-cache`), which brings the request to the gate.
    """
    directives = [found.strip(b" \t") for value in values for found in _DIRECTIVE.findall(value)]
    words = {directive.lower() for directive in directives}
    shared = {word for word in words if word.partition(b"=")[0].strip(b" \t") in _FOR_EVERYBODY}
    if not words.isdisjoint(_CLOSED) or (b"no-cache" in words and not shared):
        return None
    kept = [directive for directive in directives if directive and directive.lower() not in shared]
    return b", ".join([b"private", *kept])


@lru_cache(maxsize=_MOST_KEPT)
def vary(ours: tuple[bytes, ...], values: tuple[bytes, ...]) -> bytes:
    """An upstream's Vary with our names added (RFC 9110 section 12.5.5)."""
    theirs = [name.strip(b" \t") for value in values for name in value.split(b",")]
    known = {name.lower() for name in theirs}
    if b"*" in known:
        return b"*"
    return b", ".join([*filter(None, theirs), *(name for name in ours if name.lower() not in known)])


def credential_headers(sources: Iterable[Source]) -> tuple[str, ...]:
    """Names of the headers that may contain a credential."""
    names = ("Cookie" if source.kind == "cookie" else source.name for source in sources if source.kind != "query")
    return tuple({name.lower(): name for name in names}.values())


# For browsers and caches, by route.


class RouteSharing:
    """Headers that are added to the upstream's responses on one route.

    credential: names of the headers that may distinguish its callers.
    """

    __slots__ = ("_names", "_plain", "_private", "_watched", "cors")

    def __init__(self, policy: Policy, cors: CorsFields | None, *, credential: Iterable[str]) -> None:
        self.cors = cors
        self._private = not policy.public and not policy.shared_cache
        names = (*(credential if self._private else ()), *(cors.vary if cors is not None else ()))
        self._names = tuple(name.encode() for name in names)
        varied = ((b"Vary", b", ".join(self._names)),) if self._names else ()
        self._plain: Headers = (*varied, _PRIVATE) if self._private else varied
        self._watched = frozenset({b"vary", b"cache-control"} if self._private else {b"vary"} if names else ())

    def fields(
        self, request: Headers, names: set[bytes], headers: Sequence[tuple[bytes, bytes]], *, key_in_query: bool = False
    ) -> Headers:
        """Fields that replace the upstream's with the same names. names: those of its `headers`, in lower case."""
        fields = self._plain
        if key_in_query or not names.isdisjoint(self._watched):
            fields = self._merged(headers, key_in_query)
        return fields if self.cors is None else (*fields, *self.cors.of_response(request))

    def _merged(self, headers: Sequence[tuple[bytes, bytes]], key_in_query: bool) -> Headers:
        """For an upstream with such headers of its own, and for keys in the URL, which a cache would store."""
        varied: tuple[bytes, ...] = ()
        cached: tuple[bytes, ...] = ()
        for name, value in headers:
            if len(name) == len(b"vary") and name.lower() == b"vary":
                varied += (value,)
            elif len(name) == len(b"cache-control") and name.lower() == b"cache-control":
                cached += (value,)
        fields: Headers = ((b"Vary", vary(self._names, varied)),) if self._names else ()
        if key_in_query:
            return (*fields, _NO_STORE)
        said = cache_control(cached) if self._private else None
        return fields if said is None else (*fields, (b"Cache-Control", said))


class SharingRules:
    """The rules of a configuration. By default, nothing is added to any response.

    cors: if no route is known. sources, passing: places of keys, and of credentials that are not ours. added: names of
    the headers that the sidecar adds to responses.
    """

    def __init__(
        self,
        routes: Iterable[Route] = (),
        cors: Cors | None = None,
        *,
        sources: Sequence[Source] = (),
        passing: Sequence[Source] = (),
        added: Sequence[str] = (),
    ) -> None:
        routes = tuple(routes)
        sections = {route.policy.cors for route in routes} | {cors}
        sent = [source.name for source in sources if source.kind == "header" and not source.in_list]
        compiled = {each: CorsFields(each, sent=sent, added=added) for each in sections if each is not None}
        self._default = None if cors is None else compiled[cors]
        self._routes: dict[str, RouteSharing] = {}
        for route in routes:
            credential = credential_headers((*sources, *(passing if route.policy.pass_through else ())))
            # A hole (`deny`) has no section of its own: its refusals must look like those of paths without a route.
            section = cors if route.policy.deny else route.policy.cors
            fields = None if section is None else compiled[section]
            self._routes[route.name] = RouteSharing(route.policy, fields, credential=credential)
        self.tells_browsers = bool(compiled)
        """Whether any response is decorated for scripts of other origins."""

    def of(self, route: Route) -> RouteSharing | None:
        return self._routes.get(route.name)

    def decorated(self, response: Response, route: Route | None, request: Headers) -> Response:
        """The sidecar's own response, which no cache may keep. request: the headers of the request."""
        cors = self._cors(route)
        if cors is None:
            return response
        varied = [(b"Vary", name.encode()) for name in cors.vary]
        fields = (*without_cors(response.headers), *varied, *cors.of_response(request))
        return replace(response, headers=fields)

    def preflight(self, head: RequestHead, route: Route) -> Response:
        """The response to the preflight for a request to `route`. An unlisted origin gets no headers."""
        cors, method = self._cors(route), requested_method(head)
        if cors is None or method is None:
            return Response(status=204, headers=(), body=b"")
        varied = [(b"Vary", name.encode()) for name in cors.vary]
        return Response(status=204, headers=(*varied, *cors.of_preflight(head, method, route)), body=b"")

    def _cors(self, route: Route | None) -> CorsFields | None:
        if route is None:
            return self._default
        found = self._routes.get(route.name)
        return None if found is None else found.cors
