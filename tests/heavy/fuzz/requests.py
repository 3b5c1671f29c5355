"""Strategies of requests: valid ones, and what becomes of them by mutation."""

import re
from dataclasses import dataclass
from itertools import pairwise

from hypothesis import strategies as st

Fields = list[tuple[bytes, bytes]]

TOKEN = "!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SEGMENT = "-_~!$&'()*+,=:@ABYZabyz059."
_QUERY = "".join(map(chr, range(0x21, 0x7F))).replace("#", "")
_ORDINARY = re.compile(r"[A-Za-z0-9]")
_SPECIAL = re.compile(
    r"connection|keepalive|proxyconnection|proxyauthorization|te|trailer|transferencoding|upgrade|http2settings|expect"
    r"|contentlength|host|authorization|xapikey|forwarded|xforwarded.*|xrealip|xoriginalur[il]|xrewriteurl"
    r"|xhttpmethod.*|xmethodoverride|xrequestid|xauth.*|proxy|xoriginal.*|xrewrite.*|xenvoy.*|xaccel.*|xsslclient.*"
    r"|xhttppathoverride|xoverrideurl|trueclientip|cfconnectingip|xclientip|xclusterclientip|forwardedfor|x?remoteuser|"
)
"""Names, letters and digits only, that have a meaning to the sidecar."""


ONCE = {b"content-location", b"content-range", b"content-type", b"etag", b"max-forwards", b"server", b"user-agent"}
"""Fields of a single value: a request with two of one is malformed (RFC 9110 section 5.3), and refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A valid request. chunks: None for a length."""

    method: bytes
    target: bytes
    fields: Fields
    body: bytes
    chunks: tuple[tuple[int, bytes], ...] | None
    """Size of each chunk, and its extension."""
    length: bool
    """A Content-Length, where there are no chunks."""
    cuts: tuple[int, ...]
    """Where the bytes are cut into segments."""

    @property
    def framing(self) -> Fields:
        if self.chunks is not None:
            return [(b"Transfer-Encoding", b"chunked")]
        return [(b"Content-Length", b"%d" % len(self.body))] if self.length else []

    def raw(self, *more: tuple[bytes, bytes]) -> bytes:
        fields = [(b"Host", b"api.test"), *more, *self.fields, *self.framing]
        lines = [
            b"%b %b HTTP/1.1" % (self.method, self.target),
            *[b"%b:%b" % (name, _padded(value)) for name, value in fields],
        ]
        return b"\r\n".join(lines) + b"\r\n\r\n" + self._framed()

    def segments(self, raw: bytes) -> list[bytes]:
        places = sorted({0, len(raw), *(cut % len(raw) for cut in self.cuts)})
        return [raw[start:end] for start, end in pairwise(places)]

    def _framed(self) -> bytes:
        if self.chunks is None:
            return self.body
        framed, left = b"", self.body
        for size, extension in self.chunks:
            piece, left = left[:size], left[size:]
            framed += b"%x%b\r\n%b\r\n" % (len(piece), extension, piece) if piece else b""
        return framed + (b"%X\r\n%b\r\n" % (len(left), left) if left else b"") + b"0\r\n\r\n"


def _padded(value: bytes) -> bytes:
    """With optional white space around it, which is no part of a value (RFC 9110 section 5.5)."""
    return (b" ", b"", b"\t ", b"  ")[len(value) % 4] + value + (b"", b" ", b"\t")[len(value) % 3]


def _names() -> st.SearchStrategy[bytes]:
    known = ["Accept", "accept", "Cookie", "User-Agent", "If-None-Match", "X-Twice", "x-twice", "Content-Type", "Via"]
    made = st.text(TOKEN, min_size=1, max_size=20).filter(_is_ordinary)
    return st.one_of(st.sampled_from(known), made).map(str.encode)


def _is_ordinary(name: str) -> bool:
    return _SPECIAL.fullmatch("".join(_ORDINARY.findall(name)).lower()) is None


def _once(fields: Fields) -> Fields:
    firsts = {name.lower(): place for place, (name, _) in reversed(list(enumerate(fields)))}
    return [
        field for place, field in enumerate(fields) if field[0].lower() not in ONCE or firsts[field[0].lower()] == place
    ]


_VALUE_BYTES = bytes([9, *range(0x20, 0x7F), *range(0x80, 0x100)])
VALUES = st.lists(st.sampled_from(_VALUE_BYTES), max_size=30).map(bytes).map(lambda value: value.strip(b" \t"))
_ESCAPES = st.sampled_from(["%20", "%41", "%c3%a4", "%C3%A4", "%2B", "%26", "%3D", "%E2%82%AC", "%7E"])
_PIECES = st.one_of(st.text(_SEGMENT, min_size=1, max_size=8), _ESCAPES)
SEGMENTS = st.lists(_PIECES, min_size=1, max_size=4).map("".join).filter(lambda text: text.strip(".") == text)
QUERIES = st.one_of(st.just(""), st.text(_QUERY, max_size=30).map(lambda text: f"?{text}"))
CHUNKS = st.lists(
    st.tuples(st.integers(1, 5000), st.sampled_from([b"", b";a", b";a=b", b';a="b c"', b";a=1;b=2"])), max_size=5
).map(tuple)


@st.composite
def valid(draw: st.DrawFn, prefix: str, methods: list[str]) -> Request:
    """Under `prefix`, in a path that has one reading or whose readings all stay there."""
    path = "".join(f"/{segment}" for segment in draw(st.lists(SEGMENTS, min_size=1, max_size=4)))
    body = draw(st.one_of(st.just(b""), st.binary(max_size=200), st.binary(max_size=8).map(lambda piece: piece * 2000)))
    chunks = draw(st.one_of(st.none(), CHUNKS))
    return Request(
        method=draw(st.sampled_from(methods)).encode(),
        target=f"{prefix}{path}{draw(QUERIES)}".encode(),
        fields=_once(draw(st.lists(st.tuples(_names(), VALUES), max_size=12))),
        body=body,
        chunks=chunks,
        length=bool(body) or draw(st.booleans()),
        cuts=tuple(draw(st.lists(st.integers(0, 1 << 16), max_size=4))),
    )
