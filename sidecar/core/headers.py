"""Strip, then inject: what of the client's header fields reaches the upstream.

Names are compared folded, because CGI, WSGI and PHP see `X_Auth` and `x.auth` as one name with `X-Auth`; some servers
(lighttpd, older Apache) read everything but letters and digits so.
"""

import re
from collections.abc import Iterable
from enum import Enum, auto
from typing import NamedTuple

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

_NOT_FORWARDED = HOP_BY_HOP | {b"proxy-authorization", b"http2-settings", b"expect", b"content-length", b"host"}
_FRAMING = frozenset({b"content-length", b"transfer-encoding"})
_UNNAMEABLE = _FRAMING | {b"host"}
"""What a Connection field cannot take away."""
_REPLACED = frozenset({b"forwarded", b"x-real-ip", b"x-original-url", b"x-original-uri", b"x-rewrite-url"})
_READ = frozenset({b"host", b"connection", b"upgrade", b"expect"})

_HOST = re.compile(rb"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_SEPARATORS = re.compile(rb"[^a-z0-9]+")
_UNSAFE = re.compile(r"[^ -$&-~]")
_MAX_NAMES = 2048
_MAX_LEARNT = 64
"""Longer names are classified each time: strangers choose them, and their memory is ours."""


class _Action(Enum):
    KEEP = auto()
    DROP = auto()
    READ = auto()
    """Looked at, and not passed on as it is."""
    READ_AND_KEEP = auto()
    CREDENTIAL = auto()
    """Looked at; passed on only where the credential is not ours."""
    FORWARDING = auto()
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

    identity: injected headers. strip: removed beside them. credential: headers that may hold a key.
    """

    def __init__(
        self, *, identity: Iterable[str], strip: Iterable[str], credential: Iterable[str], request_id: str
    ) -> None:
        self._stripped = frozenset(fold(name.encode()) for name in (*identity, *strip))
        self._credential = frozenset(name.lower().encode() for name in credential)
        self._credential_folded = frozenset(fold(name) for name in self._credential)
        self._request_id = request_id.lower().encode()
        self._actions: dict[bytes, tuple[_Action, bytes]] = {}

    def classify(self, headers: Headers) -> SortedHeaders:
        """Raises Denied where a name passes itself off as framing (`Transfer_Encoding`)."""
        fields: dict[bytes, list[bytes]] = {}
        kept: list[tuple[bytes, bytes]] = []
        known = self._actions
        for pair in headers:
            action, lower = known.get(pair[0]) or self._learn(pair[0])
            if action is _Action.KEEP:
                kept.append(pair)
            elif action is _Action.REFUSE:
                raise Denied(Reason.BAD_HEADER)
            elif action is not _Action.DROP:
                if action is _Action.READ_AND_KEEP:
                    kept.append(pair)
                fields.setdefault(lower, []).append(pair[1])
        return SortedHeaders(fields, kept)

    def reclassify(self, headers: Headers, *, credential: bool, forwarding: bool) -> list[tuple[bytes, bytes]]:
        """`kept`, in order, together with the credential's headers and those of a trusted proxy."""
        wanted = {_Action.KEEP, _Action.READ_AND_KEEP}
        if credential:
            wanted.add(_Action.CREDENTIAL)
        if forwarding:
            wanted.add(_Action.FORWARDING)
        return [pair for pair in headers if (self._actions.get(pair[0]) or self._learn(pair[0]))[0] in wanted]

    def _learn(self, name: bytes) -> tuple[_Action, bytes]:
        lower = name.lower()
        entry = (self._classify(lower), lower)
        if len(name) > _MAX_LEARNT:
            return entry
        if len(self._actions) >= _MAX_NAMES:
            self._actions.clear()
        self._actions[name] = entry
        return entry

    def _classify(self, lower: bytes) -> _Action:
        folded = fold(lower)
        if folded in _FRAMING and lower != folded:
            return _Action.REFUSE
        if lower in self._credential:
            return _Action.CREDENTIAL
        if folded in self._stripped or folded in self._credential_folded:
            return _Action.READ if lower == self._request_id else _Action.DROP
        if lower in _READ or lower == self._request_id:
            return _Action.READ
        if folded in _NOT_FORWARDED or folded == fold(self._request_id):
            return _Action.DROP
        if folded in _REPLACED or folded.startswith(b"x-forwarded"):
            return _Action.FORWARDING if lower == folded else _Action.DROP
        return _Action.READ_AND_KEEP if lower == b"cookie" else _Action.KEEP


def fold(name: bytes) -> bytes:
    """The form in which names are the same to the least careful reader: lower case, all but letters and digits `-`."""
    return _SEPARATORS.sub(b"-", name.lower())


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
