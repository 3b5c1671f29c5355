"""Strip, then inject: what of the client's header fields reaches the upstream.

Names are compared folded, because CGI, WSGI and PHP see `X_Auth` and `x.auth` as one name with `X-Auth`; some servers
(lighttpd, older Apache) read everything but letters and digits so.
"""

import re
from collections.abc import Iterable
from enum import Enum, auto
from typing import Final, Generic, NamedTuple, TypeVar

from sidecar.core.errors import Denied, Reason
from sidecar.core.model import Headers

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""RFC 9110 section 7.6.1."""

STRIPPED: Final = (
    # Frameworks serve the method and the path that these name, and not those that were decided on.
    "X-HTTP-Method-Override",
    "X-Method-Override",
    "X-HTTP-Method",
    "X-HTTP-Path-Override",
    "X-Override-URL",
    # So do Symfony, Zend and IIS with these. Four by name, because most proxies that ask for decisions cannot remove
    # what a pattern stands for.
    "X-Original-URL",
    "X-Original-URI",
    "X-Original-Method",
    "X-Rewrite-URL",
    "X-Original-*",
    "X-Rewrite-*",
    # CGI hands it on as HTTP_PROXY, through which a program's own requests then go (CVE-2016-5385, "httpoxy").
    "Proxy",
    # Content delivery networks and load balancers name the client's address so, and services believe it.
    "True-Client-IP",
    "CF-Connecting-IP",
    "X-Client-IP",
    "X-Cluster-Client-IP",
    "Forwarded-For",
    # Who has signed in, as Apache, oauth2-proxy, and proxies that end TLS with client certificates tell it.
    "Remote-User",
    "X-Remote-User",
    "X-Auth-Request-*",
    "X-SSL-Client-*",
    # Orders to Envoy (retries, timeouts, another path) and to nginx (another file, no buffering) behind us.
    "X-Envoy-*",
    "X-Accel-*",
)
"""Removed from every client's requests, and from a trusted proxy's, which hands on what its own clients sent."""

REWRITTEN: Final = frozenset(
    {
        b"forwarded",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
        b"traceparent",
        b"tracestate",
        b"via",
    }
)
"""Folded names of fields that the sidecar writes or adds to, so that they do not reach the upstream as they came."""

_NOT_FORWARDED = HOP_BY_HOP | {b"proxy-authorization", b"http2-settings", b"expect", b"content-length", b"host"}
_FRAMING = frozenset({b"content-length", b"transfer-encoding"})
_UNNAMEABLE = _FRAMING | {b"host"}
"""What a Connection field cannot take away."""
_REPLACED = frozenset({b"forwarded", b"x-real-ip"})
_READ = frozenset({b"host", b"connection", b"upgrade", b"expect"})

_HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+;=-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
"""A registered name or an address, and a port that may be empty (RFC 3986 sections 3.2.2 and 3.2.3). No comma, which
joins the Hosts of two lines, and no escape."""
_SEPARATORS = re.compile(rb"[^a-z0-9]+")
_UNSAFE = re.compile(r"[^ -$&-~]")
_MAX_NAMES = 2048
_MAX_LEARNT = 48
"""Longer names are classified each time: strangers choose them, and their memory is ours. Keys are longer, too."""


def fold(name: bytes) -> bytes:
    """The form in which names are the same to the least careful reader: lower case, all but letters and digits `-`."""
    return _SEPARATORS.sub(b"-", name.lower())


class HeaderNames:
    """Names, and patterns with `*` at the end, which stand for every name that begins so; compared folded."""

    def __init__(self, names: Iterable[str]) -> None:
        names = tuple(names)
        self._names = frozenset(fold(name.encode()) for name in names if not name.endswith("*"))
        self._beginnings = tuple(fold(name[:-1].encode()) for name in names if name.endswith("*"))

    def __contains__(self, folded: bytes) -> bool:
        return folded in self._names or folded.startswith(self._beginnings)


class ExactHeaderNames:
    """As HeaderNames, but of a disguise (`X_Auth_Request_User`) it holds none: only case does not count."""

    def __init__(self, names: Iterable[str]) -> None:
        written = tuple(name.lower().encode() for name in names)
        self._names = frozenset(name for name in written if not name.endswith(b"*"))
        self._beginnings = tuple((name[:-1], fold(name[:-1])) for name in written if name.endswith(b"*"))

    def __contains__(self, lower: bytes) -> bool:
        return lower in self._names or any(
            lower.startswith(written) and fold(lower) == folded + lower[len(written) :]
            for written, folded in self._beginnings
        )


T = TypeVar("T")


class Memory(Generic[T]):
    """A dict of two generations, each of `most` entries.

    What of the older one is asked for again moves into the younger, so that a flood of entries that come once pushes
    out no others.
    """

    __slots__ = ("_most", "_older", "young")

    def __init__(self, most: int) -> None:
        self._most = most
        self.young: dict[bytes | int, T] = {}
        """To be looked at first."""
        self._older: dict[bytes | int, T] = {}

    def __len__(self) -> int:
        return len(self.young) + len(self._older)

    def recall(self, key: bytes | int) -> T | None:
        """From the older generation."""
        found = self._older.get(key)
        if found is not None:
            self.learn(key, found)
        return found

    def learn(self, key: bytes | int, value: T) -> None:
        if len(self.young) >= self._most:
            self._older, self.young = self.young, {}
        self.young[key] = value


class Action(Enum):
    """What becomes of a header field."""

    KEEP = auto()
    DROP = auto()
    READ = auto()
    """Looked at, and not passed on as it is."""
    READ_AND_KEEP = auto()
    CREDENTIAL = auto()
    """Looked at; passed on only where the credential is not ours."""
    FROM_PROXY = auto()
    """Looked at; passed on only from a trusted proxy."""
    REFUSE = auto()


class SortedHeaders(NamedTuple):
    """A request's header fields, sorted in one pass."""

    fields: dict[bytes, list[bytes]]
    """Lower-case name to values, of the fields that we look at."""
    kept: list[tuple[bytes, bytes]]
    """What passes on as it is, but for what a Connection field names."""


class HeaderRules:
    """The names that concern us, compiled. Names are given in any case.

    identity: injected headers. strip: removed beside them and STRIPPED. keep: passed on only from a trusted proxy.
    credential: headers that may hold a key. passing: those that may hold a credential that is not ours; what imitates
    one is removed. lists: those of which one item may be a key, which is removed by itself. Of strip and keep, names
    that end in `*` are patterns.
    """

    def __init__(
        self,
        *,
        identity: Iterable[str],
        strip: Iterable[str],
        keep: Iterable[str],
        credential: Iterable[str],
        request_id: str,
        passing: Iterable[str] = (),
        lists: Iterable[str] = (),
    ) -> None:
        keep = tuple(keep)
        self._passing = {fold(name.encode()): name.lower().encode() for name in passing}
        self._credential = frozenset(name.lower().encode() for name in credential)
        self._lists = frozenset(name.lower().encode() for name in lists)
        ours = (name.encode() for name in (*identity, request_id))
        self._removed = _NOT_FORWARDED | {fold(name) for name in (*ours, *self._credential, *self._lists)}
        self._stripped = HeaderNames((*STRIPPED, *strip, *keep))
        self._kept = ExactHeaderNames(keep)
        self._request_id = request_id.lower().encode()
        self._actions: dict[bytes, tuple[Action, bytes]] = {}

    def classify(self, headers: Headers) -> SortedHeaders:
        """Raises Denied where a name passes itself off as framing (`Transfer_Encoding`)."""
        fields: dict[bytes, list[bytes]] = {}
        kept: list[tuple[bytes, bytes]] = []
        known = self._actions
        for pair in headers:
            action, lower = known.get(pair[0]) or self._learn(pair[0])
            if action is Action.KEEP:
                kept.append(pair)
            elif action is Action.REFUSE:
                raise Denied(Reason.BAD_HEADER)
            elif action is not Action.DROP:
                if action is Action.READ_AND_KEEP:
                    kept.append(pair)
                fields.setdefault(lower, []).append(pair[1])
        return SortedHeaders(fields, kept)

    def reclassify(self, headers: Headers, *, credential: bool, from_proxy: bool) -> list[tuple[bytes, bytes]]:
        """`kept`, in order, together with the credential's headers and those of a trusted proxy."""
        wanted = {Action.KEEP, Action.READ_AND_KEEP}
        if credential:
            wanted.add(Action.CREDENTIAL)
        if from_proxy:
            wanted.add(Action.FROM_PROXY)
        return [pair for pair in headers if (self._actions.get(pair[0]) or self._learn(pair[0]))[0] in wanted]

    def action(self, name: bytes) -> tuple[Action, bytes]:
        """What becomes of the fields of this name, and the name in lower case."""
        return self._actions.get(name) or self._learn(name)

    def _learn(self, name: bytes) -> tuple[Action, bytes]:
        lower = name.lower()
        entry = (self._classify(lower), lower)
        if len(name) > _MAX_LEARNT:
            return entry
        if len(self._actions) >= _MAX_NAMES:
            self._actions.clear()
        self._actions[name] = entry
        return entry

    def _classify(self, lower: bytes) -> Action:
        folded = fold(lower)
        if folded in _FRAMING and lower != folded:
            return Action.REFUSE
        if lower in self._credential:
            return Action.CREDENTIAL
        if lower in _READ or lower == self._request_id:
            return Action.READ
        if lower in self._lists:
            return Action.READ_AND_KEEP
        if folded in self._removed:
            return Action.DROP
        if lower in self._kept:
            return Action.FROM_PROXY
        if folded in self._stripped:
            return Action.DROP
        if folded in _REPLACED or folded.startswith(b"x-forwarded"):
            return Action.FROM_PROXY if lower == folded else Action.DROP
        if self._passing.get(folded, lower) != lower:
            return Action.DROP
        return Action.READ_AND_KEEP if lower == b"cookie" else Action.KEEP


def drop_connection_options(kept: list[tuple[bytes, bytes]], connection: Iterable[bytes]) -> list[tuple[bytes, bytes]]:
    """`kept` without the fields that the Connection lines name (RFC 9110 section 7.6.1)."""
    named = {option.strip().lower() for line in connection for option in line.split(b",")}
    named -= _UNNAMEABLE
    return [pair for pair in kept if pair[0].lower() not in named]


def check_host(values: list[bytes] | None, version: tuple[int, int]) -> bytes:
    """The one Host of the request; empty where HTTP/1.0 sent none. Raises Denied (RFC 9112 section 3.2)."""
    if values is None and version == (1, 0):
        return b""
    if values is None or len(values) != 1 or not _HOST.fullmatch(values[0]):
        raise Denied(Reason.BAD_HEADER)
    return values[0]


def field_value(text: str) -> bytes:
    """`text` as a header value: `%`, and all but printable ASCII, percent-encoded, so that nothing breaks out."""
    return _UNSAFE.sub(_escape, text).encode("ascii")


def _escape(unsafe: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in unsafe[0].encode("utf-8", "surrogatepass"))
