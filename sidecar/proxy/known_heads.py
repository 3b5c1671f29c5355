"""Heads that are known by their bytes: what a line of one means is worked out once, and looked up from then on.

Clients and services send the same lines again and again. This is a shorter way to what the parsers and the gate find
out. It takes requests and responses of the usual kinds only, and leaves all others to them, above all what is malformed
or ambiguous: they alone say what is right, and the same bytes on both ways give the same decisions and the same bytes.

A memory of requests belongs to one gate, so that a reload forgets everything. No line is learnt that may hold a key: a
credential is known by a digest of its line, which is keyed anew for each memory.
"""

import re
import secrets
from asyncio import AbstractEventLoop
from hashlib import sha256
from typing import Any, Final, Literal

from msgspec import Struct

from sidecar.core.credentials import Copies
from sidecar.core.errors import Denied
from sidecar.core.headers import HOP_BY_HOP, Action, Memory, check_host
from sidecar.core.model import RequestHead
from sidecar.core.routing import Match
from sidecar.core.target import parse_target
from sidecar.core.upstream_request import ADMIN_COOKIE, is_request_id
from sidecar.gate.compile import key_prefixes
from sidecar.gate.gate import Gate, KnownCredential, Understood
from sidecar.http.requests import CONTENT_LENGTH, HEADER_LINE, ONCE, REQUEST_LINE
from sidecar.proxy.response_parser import MAX_HEAD_BYTES, UpstreamResponse

_Pairs = list[tuple[bytes, bytes]]
_Fresh = list[tuple[Memory[Any], bytes, Any]]
"""What is to be learnt once the whole request has proved to be of a usual kind."""

_LONGEST: Final = 256
"""Bytes of a line that is learnt."""
_MOST: Final = 2048
"""Lines of a generation. With the longest lines, all memories of a gate together take 11 MiB."""

# What a line is to the request. From _HOST on there may be one of each.
_PLAIN, _DROPPED, _HIDING, _WAY, _HOST, _CREDENTIAL, _LENGTH, _REQUEST_ID, _ONCE = range(9)
_ONCE_ROLES: Final = {name: _ONCE + at for at, name in enumerate(sorted(ONCE))}


class _Line(Struct, frozen=True, gc=False):
    """pair: name and value. role: _HIDING may hide a copy of the credential. secret: of a credential's line only."""

    pair: tuple[bytes, bytes]
    role: int
    passes: bool
    credential: KnownCredential | None = None
    secret: bytes = b""


class _Target(Struct, frozen=True, gc=False):
    """raw: the request-target as it came. upstream: as it is sent. hiding: the query, where it may hide a copy of the
    credential."""

    method: str
    raw: str
    upstream: str
    match: Match | None
    hiding: str


class KnownRequest(Struct, frozen=True, gc=False):
    """framing: the framing header, as a line with CR LF; empty where there is none. body: all of it."""

    head: RequestHead
    understood: Understood
    framing: bytes
    body: bytes


class KnownRequests:
    """The memory of one gate."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._targets: Memory[_Target] = Memory(_MOST)
        self._lines = _Lines(gate, trusted=False)
        self._lines_of_proxies = _Lines(gate, trusted=True)
        self._signs_of_key = re.compile(_signs_of_key(gate))
        self._judges_queries = any(source.kind == "query" for source in gate.config.keys.sources)

    def __len__(self) -> int:
        """Lines in memory."""
        return len(self._targets) + len(self._lines) + len(self._lines_of_proxies)

    def read(
        self, data: bytes, peer: str, scheme: Literal["http", "https"], *, most_lines: int, most_bytes: int | None
    ) -> KnownRequest | None:
        """The request, where `data` is exactly one of a usual kind. most_bytes: of its body."""
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return None
        request_line, *texts = data[:end].split(b"\r\n")
        lines = self._lines_of_proxies if self._gate.proxies.trusts(peer) else self._lines
        fresh: _Fresh = []
        found = lines.read(texts, fresh) if len(texts) <= most_lines else None
        if found is None:
            return None
        pairs, kept, roles, hiding = found
        host, length, target = roles.get(_HOST), roles.get(_LENGTH), self._target(request_line, fresh)
        body = data[end + 4 :]
        if target is None or host is None or len(body) != (int(length.pair[1]) if length is not None else 0):
            return None
        if most_bytes is not None and len(body) > most_bytes:
            return None
        line = roles.get(_CREDENTIAL)
        if line is not None and line.secret and _is_copied(line.secret, data, end, hiding, target):
            return None
        for memory, text, value in fresh:
            memory.learn(text, value)
        request_id = roles.get(_REQUEST_ID)
        return KnownRequest(
            RequestHead(method=target.method, target=target.raw, headers=tuple(pairs), peer=peer, scheme=scheme),
            Understood(
                target.match,
                target.upstream,
                kept,
                host.pair[1],
                "" if request_id is None else request_id.pair[1].decode(),
                None if line is None else line.credential,
                [way.pair[1] for way in hiding if way.role == _WAY],
            ),
            b"" if length is None else b"%b: %d\r\n" % (length.pair[0], len(body)),
            body,
        )

    def _target(self, text: bytes, fresh: _Fresh) -> _Target | None:
        target = self._targets.young.get(text) or self._targets.recall(text)
        if target is None:
            target = self._read_target(text)
            if target is not None and len(text) <= _LONGEST and not self._signs_of_key.search(text):
                fresh.append((self._targets, text, target))
        return target

    def _read_target(self, text: bytes) -> _Target | None:
        """Of the origin form, with a path that has one reading, and no query that is to be searched for a key."""
        gate, found = self._gate, REQUEST_LINE.fullmatch(text)
        if found is None or found[3] != b"1" or not text.isascii() or found[2] == b"*":
            return None
        method, raw = found[1].decode(), found[2].decode()
        try:
            gate.methods.check(method)
            if method == "OPTIONS" and gate.answers_preflights:
                return None
            target = parse_target(raw, "")
            if not target.ordinary or (target.query and self._judges_queries):
                return None
            if target.query is not None and gate.credentials.find({}, target.query) is not None:
                return None
            upstream = raw
            if gate.injection.strip_prefix or gate.injection.add_prefix:
                upstream = gate.injection.target(target, (target.path,), None)
        except Denied:
            return None
        match = gate.routes.match(method, target.path)
        query = target.query or ""
        return _Target(method, raw, upstream, match, query if "%" in query or "+" in query else "")


def _is_copied(secret: bytes, data: bytes, end: int, hiding: list[_Line], target: _Target) -> bool:
    """Whether the credential stands elsewhere in the head, too."""
    if data.count(secret, 0, end) != 1:
        return True
    if not hiding and not target.hiding:
        return False
    copies, pairs = Copies(secret.decode()), [line.pair for line in hiding]
    return copies.removed_from(pairs) != pairs or copies.removed_from_query(target.hiding) != target.hiding


class _Lines:
    """Header lines under one gate. trusted: whether they are of peers that tell of the way before them."""

    def __init__(self, gate: Gate, *, trusted: bool) -> None:
        keys = gate.config.keys
        self._gate, self._trusted = gate, trusted
        self._memory: Memory[_Line] = Memory(_MOST)
        self._credentials: Memory[tuple[KnownCredential, int]] = Memory(_MOST)
        """With the number of bytes before the credential in its line."""
        self._salt = secrets.token_bytes(16)
        self._signs = re.compile(_signs_of_key(gate) + rb"|(?i:asic )|" + ADMIN_COOKIE.encode())
        """Of a key, of a copy of one that is not written as it is, of a cookie that is withheld."""
        self._names: Memory[tuple[bytes, int]] = Memory(_MOST_NAMES)
        self._id_field = gate.config.identity.request_id.lower().encode()
        self._sources = frozenset(name.encode() for name in gate.credentials.header_names)
        self._passing = frozenset(each.name.lower().encode() for each in keys.pass_through if each.kind == "header")
        self._judges_cookies = any(source.kind == "cookie" for source in (*keys.sources, *keys.pass_through))

    def __len__(self) -> int:
        return len(self._memory) + len(self._credentials)

    def read(self, texts: list[bytes], fresh: _Fresh) -> tuple[_Pairs, _Pairs, dict[int, _Line], list[_Line]] | None:
        """All but credentials, what passes on, the lines that there is one of, and those to be searched or believed."""
        known = self._memory.young
        pairs: _Pairs = []
        kept: _Pairs = []
        roles: dict[int, _Line] = {}
        several: list[_Line] = []
        for text in texts:
            line = known.get(text) or self._line(text, fresh)
            if line is None:
                return None
            pair = line.pair
            pairs.append(pair)
            if line.passes:
                kept.append(pair)
            role = line.role
            if role >= _HOST:
                if role in roles:
                    return None
                roles[role] = line
            elif role >= _HIDING:
                several.append(line)
        return pairs, kept, roles, several

    def _line(self, text: bytes, fresh: _Fresh) -> _Line | None:
        line = self._memory.recall(text)
        if line is not None:
            return line
        name = text[: text.find(b":")]
        lower, role = self._names.young.get(name) or self._names.recall(name) or self._name(name)
        if role == _CREDENTIAL:
            return self._credential_line(text)
        found = HEADER_LINE.fullmatch(text)
        if found is None:
            return None
        suspect = self._signs.search(text) is not None
        pair = (name, found[2])
        line = _Line(pair, role, role != _DROPPED) if role >= 0 and not suspect else self._classify(lower, pair)
        if line is not None and not suspect and lower not in _NOT_LEARNT and len(text) <= _LONGEST:
            fresh.append((self._memory, text, line))
        return line

    def _name(self, name: bytes) -> tuple[bytes, int]:
        """The name in lower case, and the role of its lines; -1 where that depends on their values, too."""
        lower = name.lower()
        role = _CREDENTIAL if lower in self._sources else -1
        if role < 0 and lower not in self._passing and lower not in _VALUED and lower != self._id_field:
            action, _ = self._gate.rules.action(name)
            dropped = -1 if lower in _ONCE_ROLES else _DROPPED
            role = {Action.KEEP: _ONCE_ROLES.get(lower, _PLAIN), Action.DROP: dropped}.get(action, -1)
        if len(name) <= _LONGEST_NAME:
            self._names.learn(name, (lower, role))
        return lower, role

    def _credential_line(self, text: bytes) -> _Line | None:
        digest = sha256(self._salt + text).digest()
        known = self._credentials.young.get(digest) or self._credentials.recall(digest) or self._learn(text, digest)
        if known is None:
            return None
        credential, at = known
        forwarded = self._gate.injection.forward_credential
        name, _, value = text.partition(b":") if forwarded else (b"", b"", b"")
        secret = b"" if forwarded else text[at:]
        return _Line((name, value.strip(b" \t")), _CREDENTIAL, forwarded, credential, secret)

    def _learn(self, text: bytes, digest: bytes) -> tuple[KnownCredential, int] | None:
        found = HEADER_LINE.fullmatch(text)
        if found is None:
            return None
        try:
            credential = self._gate.credentials.find({found[1].lower(): [found[2]]}, None)
        except Denied:
            return None
        secret = b"" if credential is None or credential.foreign else credential.text.encode()
        if credential is None or not secret or not text.endswith(secret):
            return None
        known = KnownCredential(sha256(secret).digest(), self._gate.may_be_stored(credential.text))
        self._credentials.learn(digest, (known, len(text) - len(secret)))
        return known, len(text) - len(secret)

    def _classify(self, lower: bytes, pair: tuple[bytes, bytes]) -> _Line | None:
        value = pair[1]
        if lower == b"content-length":
            return _Line(pair, _LENGTH, False) if CONTENT_LENGTH.fullmatch(value) else None
        if lower == b"connection":
            return _Line(pair, _DROPPED, False) if value.lower() == b"keep-alive" else None
        if lower == b"host":
            return _host(pair)
        if lower == self._id_field:
            return _Line(pair, _REQUEST_ID, False) if is_request_id(value) else None
        if lower in _UNUSUAL or lower in self._passing or (lower == b"cookie" and not self._keeps_cookie(value)):
            return None
        action, _ = self._gate.rules.action(pair[0])
        once = _ONCE_ROLES.get(lower)
        if action is Action.DROP or (action is Action.FROM_PROXY and not self._trusted):
            return _Line(pair, _DROPPED if once is None else once, False)
        if action is Action.FROM_PROXY:
            return _Line(pair, _WAY if lower == self._gate.proxies.header else _HIDING, True)
        if action is not Action.KEEP and action is not Action.READ_AND_KEEP:
            return None
        if b"%" in value or b"asic " in value.lower():
            return None if once is not None else _Line(pair, _HIDING, True)
        return _Line(pair, _PLAIN if once is None else once, True)

    def _keeps_cookie(self, value: bytes) -> bool:
        withheld = self._gate.injection.withheld_cookies
        return not self._judges_cookies and not any(name.encode() in value for name in withheld)


_UNUSUAL: Final = frozenset({b"transfer-encoding", b"expect", b"upgrade", b"content_length", b"transfer_encoding"})
_VALUED: Final = _UNUSUAL | {b"content-length", b"connection", b"host"}
"""Headers whose values decide."""
_NOT_LEARNT: Final = frozenset(
    {
        b"authorization", b"cookie", b"proxy-authorization",
        b"traceparent", b"tracestate", b"baggage", b"b3", b"sentry-trace", b"x-amzn-trace-id", b"x-b3-spanid",
        b"x-b3-traceid", b"x-cloud-trace-context", b"x-correlation-id", b"x-request-id", b"idempotency-key",
    }
)  # fmt: skip
"""Headers that may hold a secret, and those that are another one each time."""
_LONGEST_NAME: Final = 48
"""Shorter than a key is, which a client may take for a header's name."""
_MOST_NAMES: Final = 1024


def _host(pair: tuple[bytes, bytes]) -> _Line | None:
    try:
        check_host([pair[1]], (1, 1))
    except Denied:
        return None
    return _Line(pair, _HOST, False)


def _signs_of_key(gate: Gate) -> bytes:
    """What a line that is learnt must not hold, because it stays in memory. An escape may hide a key."""
    return b"|".join([b"%", *(re.escape(prefix.encode()) for prefix in key_prefixes(gate.config) if prefix)])


# Responses.


_STATUS_LINE: Final = re.compile(rb"HTTP/1\.1 ([2-5][0-9][0-9]) ([\t\x20-\x7e\x80-\xff]*)")
_UNUSUAL_STATUSES: Final = frozenset({204, 304})
"""Those without a body (RFC 9110 section 6.4.1)."""
_MOST_RESPONSE_LINES: Final = 1024
_HARMLESS: Final = frozenset(
    {
        b"accept-ranges", b"access-control-allow-origin", b"cache-control", b"connection", b"content-encoding",
        b"content-language", b"content-length", b"content-security-policy", b"content-type", b"date", b"expires",
        b"keep-alive", b"pragma", b"referrer-policy", b"server", b"strict-transport-security", b"vary",
        b"x-content-type-options", b"x-frame-options", b"x-powered-by",
    }
)  # fmt: skip
"""Headers that hold no secret, and so may stay in memory."""


class _ResponseLine(Struct, frozen=True, gc=False):
    """length: of a Content-Length, else -1."""

    pair: tuple[bytes, bytes]
    lower: bytes
    passes: bool
    length: int = -1


class KnownResponses:
    """The memory of one upstream."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._status_lines: Memory[tuple[int, bytes]] = Memory(_MOST_RESPONSE_LINES)
        self._lines: Memory[_ResponseLine] = Memory(_MOST_RESPONSE_LINES)

    def read(self, data: bytes) -> UpstreamResponse | None:
        """The response to another method than HEAD, where `data` is exactly one that is whole, of a told length."""
        end = data.find(b"\r\n\r\n")
        if not 0 <= end <= MAX_HEAD_BYTES - 4:
            return None
        first, *texts = data[:end].split(b"\r\n")
        status = self._status_lines.young.get(first) or self._status(first)
        if status is None:
            return None
        known, length, names = self._lines.young, -1, set[bytes]()
        headers: list[tuple[bytes, bytes]] = []
        for text in texts:
            line = known.get(text) or self._line(text)
            if line is None:
                return None
            if line.length >= 0:
                if length >= 0:
                    return None
                length = line.length
            if line.passes:
                headers.append(line.pair)
                names.add(line.lower)
        body = data[end + 4 :]
        if len(body) != length:
            return None
        response = UpstreamResponse(status[0], status[1], headers, names, self._loop)
        response.has_length = response.complete = True
        response.version = "1.1"
        response.feed(body)
        return response

    def _status(self, text: bytes) -> tuple[int, bytes] | None:
        known = self._status_lines.recall(text)
        if known is None:
            found = _STATUS_LINE.fullmatch(text)
            if found is None or int(found[1]) in _UNUSUAL_STATUSES:
                return None
            known = (int(found[1]), found[2])
            if len(text) <= _LONGEST:
                self._status_lines.learn(text, known)
        return known

    def _line(self, text: bytes) -> _ResponseLine | None:
        known = self._lines.recall(text)
        if known is None:
            found = HEADER_LINE.fullmatch(text)
            # Of white space at a line's end the parser keeps tabs.
            known = None if found is None or text.endswith(b"\t") else _response_line(found[1], found[2])
            if known is not None and known.lower in _HARMLESS and len(text) <= _LONGEST:
                self._lines.learn(text, known)
        return known


def _response_line(name: bytes, value: bytes) -> _ResponseLine | None:
    lower = name.lower()
    if lower == b"content-length":
        if CONTENT_LENGTH.fullmatch(value) is None:
            return None
        return _ResponseLine((name, b"%d" % int(value)), lower, True, int(value))
    if lower == b"connection":
        return _ResponseLine((name, value), lower, False) if value.lower() == b"keep-alive" else None
    if lower in HOP_BY_HOP:
        return _ResponseLine((name, value), lower, False) if lower == b"keep-alive" else None
    return _ResponseLine((name, value), lower, True)
