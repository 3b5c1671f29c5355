"""Bytes, and what becomes of them when they are flipped, cut, doubled and spliced."""

from dataclasses import dataclass
from itertools import pairwise

from hypothesis import strategies as st

from tests.harness.framing import AMBIGUOUS
from tests.harness.headers import BROKEN_LINES, FRAMING_DISGUISES, disguises
from tests.harness.wire import Connection

FRAGMENTS = [
    b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b"\x0b", b":", b",", b";", b"\\", b"//", b"/", b"%", b"#", b"?",
    b"0", b"9",
    b"closed", b"\xff", b"\r\n folded", b"0\r\n\r\n", b"5\r\nhello\r\n",
    b"HTTP/1.0", b" HTTP/1.1\r\n", b"Host: api.test\r\n", b"Host: evil.test\r\n",
    b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"Content-Length : 5\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding : chunked\r\n", b"Transfer-Encoding:\x0bchunked\r\n",
    b"X: y\nTransfer-Encoding: chunked\r\n",
    *[b"\r\n".join([*fields, b""]) for fields in AMBIGUOUS],
    *[name.encode() + b": 5\r\n" for name in FRAMING_DISGUISES],
    *[name.encode() + b": evil\r\n" for name in disguises("X-Auth-Key-Id")],
    *BROKEN_LINES,
    b"Connection: close\r\n", b"Connection: X-Auth-Key-Id, Authorization\r\n", b"Connection: Content-Length\r\n",
    b"Connection: Upgrade\r\nUpgrade: websocket\r\n", b"Expect: 100-continue\r\n",
    b"ffffffffffffffff\r\n", b";ext\r\n", b"x-auth-subject: root\r\n",
    b"GET /closed/x HTTP/1.1\r\nHost: api.test\r\nX-Auth-Key-Id: evil\r\nX-Auth-Subject: root\r\n\r\n",
]  # fmt: skip

CLIMBS = [
    b"..", b"/..", b"/../", b"/..;/", b"/..;a/", b"/%2e%2e/", b"/%2e%2e%2f", b"/.%2e/", b"/%252e%252e%252f",
    b"\\..\\", b"%5c..%5c",
    b"/./", b"//", b"%00", b"%0d%0a", b"%2f", b";", b"?",
]  # fmt: skip
PREFIX = b"/allowed"
"""Climbs begin within three bytes after it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutation:
    kind: str
    place: int
    size: int
    fragment: bytes

    def apply(self, raw: bytes) -> bytes:
        place = self.place % (len(raw) + 1)
        before, after = raw[:place], raw[place:]
        match self.kind:
            case "climb":
                place = raw.find(PREFIX) + len(PREFIX) + self.place % 3
                return raw[:place] + CLIMBS[self.size % len(CLIMBS)] + raw[place:]
            case "flip":
                return before + bytes(byte ^ (1 << self.size % 8) for byte in after[:1]) + after[1:]
            case "insert":
                return before + self.fragment + after
            case "overwrite":
                return before + self.fragment + after[len(self.fragment) :]
            case "delete":
                return before + after[self.size :]
            case "repeat":
                return before + after[: self.size] * 2 + after[self.size :]
            case "truncate":
                return before
            case _:
                return self._of_lines(raw.split(b"\r\n"))

    def _of_lines(self, lines: list[bytes]) -> bytes:
        here, there = self.place % len(lines), self.size % len(lines)
        match self.kind:
            case "line-twice":
                lines.insert(there, lines[here])
            case "line-gone":
                del lines[here]
            case "line-swap":
                lines[here], lines[there] = lines[there], lines[here]
            case "line-new":
                lines.insert(here, self.fragment.removesuffix(b"\r\n"))
        return b"\r\n".join(lines)


KINDS = [
    "climb", "climb", "flip", "insert", "overwrite", "delete", "repeat", "truncate", "line-twice", "line-gone",
    "line-swap", "line-new",
]  # fmt: skip
MUTATIONS = st.builds(
    Mutation,
    kind=st.sampled_from(KINDS),
    place=st.integers(0, 4000),
    size=st.integers(1, 40),
    fragment=st.one_of(st.sampled_from(FRAGMENTS), st.binary(min_size=1, max_size=6)),
)


@st.composite
def mutated(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """One of `seeds`, or two spliced, changed one to six times; or left as it is and sent in one with another."""
    raw = draw(st.sampled_from(seeds))
    if draw(st.integers(0, 4)) == 0:
        other = draw(st.sampled_from(seeds))
        raw = raw[: draw(st.integers(0, len(raw)))] + other[draw(st.integers(0, len(other))) :]
    for mutation in draw(st.lists(MUTATIONS, min_size=1, max_size=6)):
        raw = mutation.apply(raw)
    return raw


def cut(raw: bytes, places: list[int]) -> list[bytes]:
    """`raw` in segments."""
    return [
        raw[start:end] for start, end in pairwise(sorted({0, len(raw), *(place % (len(raw) + 1) for place in places)}))
    ]


def until_quiet(connection: Connection, seconds: float) -> bytes:
    """What comes until the other end closes, or sends nothing for so long."""
    connection.lose_patience(seconds)
    try:
        return connection.rest()
    except TimeoutError:
        return connection.received
