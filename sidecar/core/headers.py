"""Strip, then inject: which of the client's header fields reach the upstream.

Names are compared folded, because CGI, WSGI and PHP treat `X_Auth` and `x.auth` as `X-Auth`; some servers (lighttpd,
older Apache) do so with every character except letters and digits.
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
    # Frameworks would serve the method and the path in these fields instead of those that were decided on.
    "X-HTTP-Method-Override",
    "X-Method-Override",
    "X-HTTP-Method",
    "X-HTTP-Path-Override",
    "X-Override-URL",
    # So do Symfony, Zend and IIS with these. Four are named, because most forward-auth proxies cannot remove fields by
    # pattern.
    "X-Original-URL",
    "X-Original-URI",
    "X-Original-Method",
    "X-Rewrite-URL",
    "X-Original-*",
    "X-Rewrite-*",
    # CGI passes it on as HTTP_PROXY, through which a program then sends its own requests (CVE-2016-5385, "httpoxy").
    "Proxy",
    # Content delivery networks and load balancers send the client's address in these, and services trust them.
    "True-Client-IP",
    "CF-Connecting-IP",
    "X-Client-IP",
    "X-Cluster-Client-IP",
    "Forwarded-For",
    # The signed-in user, from Apache, oauth2-proxy, and proxies that terminate TLS with client certificates.
    "Remote-User",
    "X-Remote-User",
    "X-Auth-Request-*",
    "X-SSL-Client-*",
    # Commands to Envoy (retries, timeouts, another path) and nginx (another file, no buffering) behind us.
    "X-Envoy-*",
    "X-Accel-*",
)
"""Removed from all requests, even from a trusted proxy's, which passes on what its own clients sent."""

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
"""Folded names of fields that the sidecar writes or appends to, so that they never reach the upstream unchanged."""

_NOT_FORWARDED = HOP_BY_HOP | {b"proxy-authorization", b"http2-settings", b"expect", b"content-length", b"host"}
_FRAMING = frozenset({b"content-length", b"transfer-encoding"})
_UNNAMEABLE = _FRAMING | {b"host"}
"""Fields that a Connection field cannot remove."""
_REPLACED = frozenset({b"forwarded", b"x-real-ip"})
_READ = frozenset({b"host", b"connection", b"upgrade", b"expect"})

_HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+;=-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
"""A registered name or an address, and a port that may be empty (RFC 3986 sections 3.2.2 and 3.2.3).

No comma, which joins two Host lines, and no escape.
"""
_SEPARATORS = re.compile(rb"[^a-z0-9]+")
_UNSAFE = re.compile(r"[^ -$&-~]")
_MAX_NAMES = 2048
_MAX_LEARNT = 48
"""Longer names are classified each time: clients choose them, and caching takes our memory. Keys are longer, too."""


def fold(name: bytes) -> bytes:
    """The form in which the least careful parser compares names: lower case, and `-` for all but letters and digits."""
    return _SEPARATORS.sub(b"-", name.lower())


class HeaderNames:
    """Names, and patterns with `*` at the end, which match every name with that prefix; compared folded."""

    def __init__(self, names: Iterable[str]) -> None:
        names = tuple(names)
        self._names = frozenset(fold(name.encode()) for name in names if not name.endswith("*"))
        self._beginnings = tuple(fold(name[:-1].encode()) for name in names if name.endswith("*"))

    def __contains__(self, folded: bytes) -> bool:
        return folded in self._names or folded.startswith(self._beginnings)


class ExactHeaderNames:
    """As HeaderNames, but does not match other spellings (`X_Auth_Request_User`): only case is ignored."""

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

    An entry of the older one that is used again moves into the younger, so that a flood of one-time entries evicts no
    others.
    """

    __slots__ = ("_most", "_older", "young")

    def __init__(self, most: int) -> None:
        self._most = most
        self.young: dict[bytes | int, T] = {}
        """The younger generation; look here first."""
        self._older: dict[bytes | int, T] = {}

    def __len__(self) -> int:
        return len(self.young) + len(self._older)

    def recall(self, key: bytes | int) -> T | None:
        """Look up the older generation."""
        found = self._older.get(key)
        if found is not None:
            self.learn(key, found)
        return found

    def learn(self, key: bytes | int, value: T) -> None:
        if len(self.young) >= self._most:
            self._older, self.young = self.young, {}
        self.young[key] = value


class Action(Enum):
    """What happens to a header field."""

    KEEP = auto()
    DROP = auto()
    READ = auto()
    """Inspected, and not passed on as it is."""
    READ_AND_KEEP = auto()
    CREDENTIAL = auto()
    """Inspected; passed on only if the credential is not ours."""
    FROM_PROXY = auto()
    """Inspected; passed on only from a trusted proxy."""
    REFUSE = auto()


class SortedHeaders(NamedTuple):
    """A request's header fields, classified in one pass."""

    fields: dict[bytes, list[bytes]]
    """Lower-case name to values, of the inspected fields."""
    kept: list[tuple[bytes, bytes]]
    """Fields that are passed on unchanged, except those that a Connection field names."""


class HeaderRules:
    """The relevant names, compiled. Names may be given in any case.

    identity: injected headers. strip: removed in addition to these and STRIPPED. keep: passed on only from a trusted
    proxy. credential: headers that may contain a key. passing: headers that may contain a credential that is not ours;
    lookalikes are removed. lists: headers with list items of which one may be a key; only that item is removed. In
    strip and keep, names that end in `*` are patterns.
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
        """Raises Denied if a name imitates a framing header (`Transfer_Encoding`)."""
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
        """`kept`, in order, with the credential's headers and those of a trusted proxy added."""
        wanted = {Action.KEEP, Action.READ_AND_KEEP}
        if credential:
            wanted.add(Action.CREDENTIAL)
        if from_proxy:
            wanted.add(Action.FROM_PROXY)
        return [pair for pair in headers if (self._actions.get(pair[0]) or self._learn(pair[0]))[0] in wanted]

    def action(self, name: bytes) -> tuple[Action, bytes]:
        """What happens to fields of this name, and the name in lower case."""
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
    """The one Host of the request; empty if HTTP/1.0 sent none. Raises Denied (RFC 9112 section 3.2)."""
    if values is None and version == (1, 0):
        return b""
    if values is None or len(values) != 1 or not _HOST.fullmatch(values[0]):
        raise Denied(Reason.BAD_HEADER)
    return values[0]


def field_value(text: str) -> bytes:
    """`text` as a header value: `%`, and everything but printable ASCII, percent-encoded, to prevent injection."""
    return _UNSAFE.sub(_escape, text).encode("ascii")


def _escape(unsafe: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in unsafe[0].encode("utf-8", "surrogatepass"))
