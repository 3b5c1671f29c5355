"""Request heads that are recognised by their bytes: the meaning of a line is worked out once, and looked up afterwards.

Clients repeat the same lines; most repeat all lines except the first. This is a shorter path to the results of the
parser and the gate. It takes only requests of usual kinds and leaves all others to them, above all malformed or
ambiguous ones: they alone define what is correct, and the same bytes on both paths give the same decisions and the same
bytes.

A memory of requests belongs to one gate, so a reload forgets everything. A line that may contain a key is never learnt:
the credential's line is cut out before the others are looked up, and nothing of it is kept.
"""

import re
from hashlib import sha256
from typing import Any, Final, Literal

from msgspec import Struct

from sidecar.core.credentials import BASIC_SIGN, Copies
from sidecar.core.errors import Denied
from sidecar.core.headers import Action, Memory, check_host
from sidecar.core.model import RequestHead
from sidecar.core.routing import Match
from sidecar.core.target import parse_target
from sidecar.core.upstream_request import ADMIN_COOKIE, is_request_id
from sidecar.gate.compile import key_prefixes
from sidecar.gate.gate import Gate
from sidecar.gate.requests import KnownCredential, Understood
from sidecar.http.requests import CONTENT_LENGTH, ONCE, REQUEST_LINE

_Pairs = list[tuple[bytes, bytes]]
_Fresh = list[tuple[Memory[Any], bytes | int, Any]]
"""Lines to learn once the whole request has turned out to be of a usual kind."""

_LONGEST: Final = 256
"""Most bytes of a line that is learnt."""
_MOST: Final = 2048
"""Lines in a generation. With the longest lines, all memories of a gate together take 11 MiB."""

_LONGEST_BLOCK: Final = 1024
"""Most bytes of header lines that are learnt together."""
_MOST_BLOCKS: Final = 512

# The role of a line in the request. From _HOST on, each may occur once.
_PLAIN, _DROPPED, _HIDING, _WAY, _HOST, _CREDENTIAL, _LENGTH, _REQUEST_ID, _ONCE = range(9)
_BY_VALUE, _NO_NAME = -1, -2
"""Roles that the name alone does not determine, and the one for an invalid name."""
_ONCE_ROLES: Final = {name: _ONCE + at for at, name in enumerate(sorted(ONCE))}


class _Line(Struct, frozen=True, gc=False):
    """pair: name and value. role: _HIDING may hide a copy of the credential."""

    pair: tuple[bytes, bytes]
    role: int
    passes: bool


class _Block(Struct, frozen=True, gc=False):
    """All header lines of a head except the credential's.

    count: of the lines. kept: pairs to forward. hiding: pairs that may hide a copy of the credential. ways: values with
    which trusted proxies describe the path of the request. length: of the body, in bytes. framing: the framing header.
    """

    count: int
    pairs: tuple[tuple[bytes, bytes], ...]
    kept: _Pairs
    hiding: _Pairs
    ways: list[bytes]
    host: bytes
    request_id: str
    length: int
    framing: bytes


class _Target(Struct, frozen=True, gc=False):
    """raw: the request-target as received. upstream: as sent on. hiding: a query that may hide a copy of the key."""

    method: str
    raw: str
    upstream: str
    match: Match | None
    hiding: str


class KnownRequest(Struct, frozen=True, gc=False):
    """framing: the framing header, as a line with CR LF; empty if there is none. body: the whole body."""

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
        # If the credential is forwarded, it keeps its position among the other lines.
        usual = None if gate.injection.forward_credential else gate.credentials.usual_line()
        self._credential = None if usual is None else usual.search
        self._judges_queries = any(source.kind == "query" for source in gate.config.keys.sources)

    def __len__(self) -> int:
        """Lines in memory."""
        return len(self._targets) + len(self._lines) + len(self._lines_of_proxies)

    def read(
        self, data: bytes, peer: str, scheme: Literal["http", "https"], *, most_lines: int, most_bytes: int | None
    ) -> KnownRequest | None:
        """The request, if `data` is exactly one request of a usual kind. most_bytes: limit of its body."""
        start, end = data.find(b"\r\n"), data.find(b"\r\n\r\n")
        if not 0 <= start < end:
            return None
        fresh: _Fresh = []
        line, text, secret, credential = data[:start], data[start:end], b"", None
        found = self._credential(text) if self._credential is not None else None
        if found is not None:
            secret = found[1]
            text = text[: found.start()] + text[found.end() :]
            credential = KnownCredential(sha256(secret).digest(), secret)
        lines = self._lines_of_proxies if self._gate.proxies.trusts(peer) else self._lines
        block = lines.block(text, fresh, most_lines)
        target = self._targets.young.get(line) or self._target(line, fresh) if block is not None else None
        body = data[end + 4 :]
        if block is None or target is None or len(body) != block.length:
            return None
        if body and _is_too_large(body, target.match, most_bytes):
            return None
        if secret and (secret in text or secret in line or _is_hidden(secret, block, target)):
            return None
        for memory, known, value in fresh:
            memory.learn(known, value)
        return KnownRequest(
            RequestHead(method=target.method, target=target.raw, headers=block.pairs, peer=peer, scheme=scheme),
            Understood(
                target.match,
                target.upstream,
                block.kept,
                block.host,
                block.request_id,
                credential,
                block.ways,
            ),
            block.framing,
            body,
        )

    def _target(self, text: bytes, fresh: _Fresh) -> _Target | None:
        target = self._targets.recall(text)
        if target is None:
            target = self._read_target(text)
            if target is not None and len(text) <= _LONGEST and not self._signs_of_key.search(text):
                fresh.append((self._targets, text, target))
        return target

    def _read_target(self, text: bytes) -> _Target | None:
        """The target, if it is in origin form, has one reading, and no query that must be searched for a key."""
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
            match, upstream = gate.routes.match(method, target.path), raw
            if match is not None and (own := match.route.policy.respond) is not None and own.tells_quotas:
                return None
            if match is not None and any(gate.injection.prefixes(rules := match.route.policy.forward)):
                upstream = gate.injection.target(target, (target.path,), None, rules=rules)
        except Denied:
            return None
        query = target.query or ""
        return _Target(method, raw, upstream, match, query if "%" in query or "+" in query else "")


def _is_too_large(body: bytes, match: Match | None, most_bytes: float | None) -> bool:
    """most_bytes: the limit if the route has none of its own."""
    own = None if match is None else match.route.policy.forward.body_bytes
    most = most_bytes if own is None else own
    return most is not None and len(body) > most


def _is_hidden(secret: bytes, block: _Block, target: _Target) -> bool:
    """Whether another spelling of the credential occurs elsewhere in the request."""
    if not block.hiding and not target.hiding:
        return False
    copies = Copies(secret.decode())
    if copies.removed_from(block.hiding) != block.hiding:
        return True
    return copies.removed_from_query(target.hiding) != target.hiding


class _Lines:
    """Header lines under one gate. trusted: whether they come from trusted proxies."""

    def __init__(self, gate: Gate, *, trusted: bool) -> None:
        keys = gate.config.keys
        self._gate, self._trusted = gate, trusted
        self._memory: Memory[_Line] = Memory(_MOST)
        self._blocks: Memory[_Block] = Memory(_MOST_BLOCKS)
        self._unlearnt = False
        """Whether the current block has a line that is never learnt."""
        self._signs = re.compile((_signs_of_key(gate) + b"|" + BASIC_SIGN + b"|" + ADMIN_COOKIE.encode()).lower())
        """Signs of a key, of another spelling of one, and of a withheld cookie; in lower case."""
        self._names: Memory[tuple[bytes, int]] = Memory(_MOST_NAMES)
        self._id_field = gate.config.identity.request_id.lower().encode()
        self._sources = frozenset(name.encode() for name in gate.credentials.header_names)
        self._lists = frozenset(name.encode() for name in gate.credentials.list_names)
        self._passing = frozenset(each.name.lower().encode() for each in keys.pass_through if each.kind == "header")
        self._judges_cookies = any(source.kind == "cookie" for source in (*keys.sources, *keys.pass_through))

    def __len__(self) -> int:
        return len(self._memory) + len(self._blocks)

    def block(self, text: bytes, fresh: _Fresh, most_lines: int) -> _Block | None:
        """The meaning of these lines, each after a CR LF. None unless they are fewer than `most_lines` and usual."""
        block = self._blocks.young.get(text) or self._blocks.recall(text)
        if block is not None:
            return block if block.count < most_lines else None
        self._unlearnt = False
        block = self._read_block(text, fresh, most_lines)
        # Only from lines that are already known one by one, so that a flood of new lines is not learnt.
        if block is not None and not fresh and not self._unlearnt and len(text) <= _LONGEST_BLOCK:
            fresh.append((self._blocks, text, block))
        return block

    def _read_block(self, text: bytes, fresh: _Fresh, most_lines: int) -> _Block | None:
        texts = text.split(b"\r\n")[1:]
        found = self._read(texts, fresh) if len(texts) < most_lines else None
        host = None if found is None else found[2].get(_HOST)
        if found is None or host is None:
            return None
        pairs, kept, roles, several = found
        request_id, length = roles.get(_REQUEST_ID), roles.get(_LENGTH)
        return _Block(
            count=len(texts),
            pairs=tuple(pairs),
            kept=kept,
            hiding=[line.pair for line in several],
            ways=[line.pair[1] for line in several if line.role == _WAY],
            host=host.pair[1],
            request_id="" if request_id is None else request_id.pair[1].decode(),
            length=0 if length is None else int(length.pair[1]),
            framing=b"" if length is None else b"%b: %d\r\n" % (length.pair[0], int(length.pair[1])),
        )

    def _read(self, texts: list[bytes], fresh: _Fresh) -> tuple[_Pairs, _Pairs, dict[int, _Line], list[_Line]] | None:
        """All pairs, pairs to forward, lines that occur once, pairs to search, and values of trusted proxies."""
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
        name, colon, rest = text.partition(b":")
        lower, role = self._names.young.get(name) or self._names.recall(name) or self._name(name)
        if role in (_CREDENTIAL, _NO_NAME) or not colon or rest.translate(None, _OF_VALUES):
            return None
        suspect = self._signs.search(text.lower()) is not None
        pair = (name, rest.strip(b" \t"))
        line = _Line(pair, role, role != _DROPPED) if role >= 0 and not suspect else self._classify(lower, pair)
        if line is not None and not suspect and lower not in _NOT_LEARNT and len(text) <= _LONGEST:
            fresh.append((self._memory, text, line))
        else:
            self._unlearnt = True
        return line

    def _name(self, name: bytes) -> tuple[bytes, int]:
        """The name in lower case, and the role of its lines."""
        lower = name.lower()
        if not _TOKEN.fullmatch(name):
            return lower, _NO_NAME
        role = _CREDENTIAL if lower in self._sources else _BY_VALUE
        if role < 0 and lower not in self._passing and lower not in _VALUED and lower != self._id_field:
            action, _ = self._gate.rules.action(name)
            dropped = _BY_VALUE if lower in _ONCE_ROLES else _DROPPED
            role = {Action.KEEP: _ONCE_ROLES.get(lower, _PLAIN), Action.DROP: dropped}.get(action, _BY_VALUE)
        if len(name) <= _LONGEST_NAME:
            self._names.learn(name, (lower, role))
        return lower, role

    def _classify(self, lower: bytes, pair: tuple[bytes, bytes]) -> _Line | None:
        value = pair[1]
        if lower == b"content-length":
            return _Line(pair, _LENGTH, False) if CONTENT_LENGTH.fullmatch(value) else None
        if lower == b"connection":
            return _Line(pair, _DROPPED, False) if value.lower() == b"keep-alive" else None
        if lower == b"host":
            return _host(pair)
        if lower == self._id_field:
            return _Line(pair, _REQUEST_ID, False) if is_request_id(value, self._gate.key_pattern) else None
        if (
            lower in _UNUSUAL
            or lower in self._lists
            or lower in self._passing
            or (lower == b"cookie" and not self._keeps_cookie(value))
        ):
            return None
        action, _ = self._gate.rules.action(pair[0])
        once = _ONCE_ROLES.get(lower)
        if action is Action.DROP or (action is Action.FROM_PROXY and not self._trusted):
            return _Line(pair, _DROPPED if once is None else once, False)
        if action is Action.FROM_PROXY:
            return _Line(pair, _WAY if lower == self._gate.proxies.header else _HIDING, True)
        if action is not Action.KEEP and action is not Action.READ_AND_KEEP:
            return None
        if b"%" in pair[0] or b"%" in value or BASIC_SIGN in value.lower():
            return None if once is not None else _Line(pair, _HIDING, True)
        return _Line(pair, _PLAIN if once is None else once, True)

    def _keeps_cookie(self, value: bytes) -> bool:
        withheld = self._gate.injection.withheld_cookies
        return not self._judges_cookies and not any(name.encode() in value for name in withheld)


_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++")
_OF_VALUES: Final = bytes(code for code in range(256) if code == 9 or 32 <= code != 127)
"""The characters of a field value (RFC 9110 section 5.5), as in HEADER_LINE."""
_UNUSUAL: Final = frozenset({b"transfer-encoding", b"expect", b"upgrade", b"content_length", b"transfer_encoding"})
_VALUED: Final = _UNUSUAL | {b"content-length", b"connection", b"host"}
"""Headers whose role depends on their value."""
_NOT_LEARNT: Final = frozenset(
    {
        b"authorization", b"cookie", b"proxy-authorization",
        b"traceparent", b"tracestate", b"baggage", b"b3", b"sentry-trace", b"x-amzn-trace-id", b"x-b3-spanid",
        b"x-b3-traceid", b"x-cloud-trace-context", b"x-correlation-id", b"x-request-id", b"idempotency-key",
    }
)  # fmt: skip
"""Headers that may contain a secret, and headers whose value changes each time."""
_LONGEST_NAME: Final = 48
"""Shorter than a key: a client may put a key in place of a header name."""
_MOST_NAMES: Final = 1024


def _host(pair: tuple[bytes, bytes]) -> _Line | None:
    try:
        check_host([pair[1]], (1, 1))
    except Denied:
        return None
    return _Line(pair, _HOST, False)


def _signs_of_key(gate: Gate) -> bytes:
    """What a learnt line must not contain, because it stays in memory. An escape may hide a key."""
    return b"|".join([b"%", *(re.escape(prefix.encode()) for prefix in key_prefixes(gate.config) if prefix)])
