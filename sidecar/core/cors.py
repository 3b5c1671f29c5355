"""Who else may read a response: scripts of other origins (CORS, Fetch section 3.2), and caches (RFC 9111)."""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from msgspec.structs import replace

from sidecar.core.model import EVERY, Cors, Headers, Policy, RequestHead, Response, Route, Source

# The origins in a configuration, and the Origin of a request.


_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::([1-9][0-9]{0,4}))?")
_USUAL_PORTS = {"http": "80", "https": "443"}


def parse_origin(text: str) -> str:
    """An origin as browsers write it, or `*`. Raises ValueError with what to write."""
    if text == EVERY:
        return text
    if text.lower() == "null":
        raise ValueError("'null' is the origin of any sandboxed frame and local file: anyone can send it")
    if "*" in text:
        raise ValueError("has a '*' in it: list each origin, or write \"*\" alone for every one")
    found = _ORIGIN.fullmatch(text)
    if found is None:
        lower = text.lower().rstrip("/")
        hint = f" (did you mean '{lower}'?)" if _ORIGIN.fullmatch(lower) else ""
        raise ValueError(f"must be scheme://host or scheme://host:port, in lower case, without a path{hint}")
    if found[2] is not None and found[2] == _USUAL_PORTS.get(found[1]):
        raise ValueError(f"has its scheme's own port, which browsers leave out: write '{text.rpartition(':')[0]}'")
    return text


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
            fields = None if route.policy.cors is None else compiled[route.policy.cors]
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
