"""Parses the bytes of a client's connection into requests, one at a time. No I/O.

Bytes after a request wait until its response is sent, so a valid request is served whatever follows it. A parser that
reads ahead (llhttp) would refuse both.
"""

import re
from collections.abc import Iterator
from enum import Enum, auto
from typing import Final

from sidecar.core.errors import Reason
from sidecar.http.requests import HeadLimits, MessageHead, empty_lines, find_end, read_head

# The chunked transfer coding (RFC 9112 §7.1). Strict: each line has one reading, so that no proxy or server sees
# another end of the body.


MOST_EXTRA_BYTES: Final = 16 * 1024
"""Most bytes of extensions, and of trailers, in a message: they carry nothing, and do not count as body."""
MOST_TRAILERS: Final = 100
_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_QUOTED: Final = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*+"'
_SIZE_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})((?:;%b(?:=(?:%b|%b))?)*+)\r\n" % (_TOKEN, _TOKEN, _QUOTED))
_TRAILERS: Final = re.compile(rb"(?:%b:[\t\x20-\x7e\x80-\xff]*+\r\n)*+\r\n" % _TOKEN)
_PLAIN_SIZE: Final = re.compile(rb"([1-9A-Fa-f][0-9A-Fa-f]{0,7})\r\n")
"""The usual form of every chunk except the last."""
_SIZE_BYTES: Final = 16
_MANY_CHUNKS: Final = 256
"""In one read. A body in such small chunks should be read in smaller pieces, because each chunk takes time."""
_CRLF: Final = b"\r\n"


class BrokenBody(Exception):
    """The client's body cannot be read to its end, or is refused: malformed, too large or too slow."""

    def __init__(self, reason: Reason = Reason.BAD_REQUEST) -> None:
        super().__init__(reason.value)
        self.reason = reason


class ChunkReader:
    """Reads one body."""

    __slots__ = ("_extra", "_in_trailers", "_left", "_line", "in_small_pieces")

    def __init__(self) -> None:
        self._line = b""
        """An incomplete line, or incomplete trailers."""
        self._left = 0
        """Bytes of a chunk that are still to come, including its CR LF."""
        self._extra = 0
        self._in_trailers = False
        self.in_small_pieces = False
        """Whether many chunks arrived at once."""

    def feed(self, data: bytes) -> tuple[bytes, int | None]:
        """The body's data in `data`, and, if the body ends there, how many bytes of `data` belong to it.

        Raises BrokenBody.
        """
        before, data = len(self._line), self._line + data
        self._line = b""
        pieces: list[bytes] = []
        at = 0
        while at < len(data) and not self._in_trailers:
            at = self._read_chunk(data, at, pieces) if self._left else _read_whole_chunks(data, at, pieces)
            if not self._left and at < len(data):
                at = self._read_size(data, at)
        end = self._read_trailers(data, at) if self._in_trailers else None
        self.in_small_pieces = len(pieces) > _MANY_CHUNKS
        return pieces[0] if len(pieces) == 1 else b"".join(pieces), None if end is None else end - before

    def _read_chunk(self, data: bytes, at: int, pieces: list[bytes]) -> int:
        end = min(at + self._left, len(data))
        ending_left = min(self._left, len(_CRLF))
        ending_at = min(at + self._left - ending_left, end)
        if ending_at > at:
            pieces.append(data[at:ending_at])
        self._left -= end - at
        if data[ending_at:end] != _CRLF[len(_CRLF) - ending_left : len(_CRLF) - min(self._left, len(_CRLF))]:
            raise BrokenBody
        return end

    def _read_size(self, data: bytes, at: int) -> int:
        end = data.find(b"\n", at) + 1
        if not end:
            self._keep(data, at)
            return len(data)
        size = _SIZE_LINE.fullmatch(data, at, end)
        if size is None:
            raise BrokenBody
        self._count_extra(len(size[2]) + len(size[1]) - len(size[1].lstrip(b"0")))
        number = int(size[1], 16)
        self._left, self._in_trailers = (number + 2, False) if number else (0, True)
        return end

    def _read_trailers(self, data: bytes, at: int) -> int | None:
        end = data.find(b"\r\n\r\n", at)
        end = at + 2 if data.startswith(b"\r\n", at) else end + 4 if end >= 0 else -1
        if end < 0:
            self._keep(data, at)
            return None
        self._count_extra(end - at)
        if data.count(b"\n", at, end) > MOST_TRAILERS or _TRAILERS.fullmatch(data, at, end) is None:
            raise BrokenBody
        return end

    def _keep(self, data: bytes, at: int) -> None:
        """An incomplete line."""
        self._line = data[at:]
        if len(self._line) > _SIZE_BYTES + MOST_EXTRA_BYTES - self._extra:
            raise BrokenBody
        if not self._in_trailers and b"\r" in self._line[:-1]:
            raise BrokenBody

    def _count_extra(self, size: int) -> None:
        self._extra += size
        if self._extra > MOST_EXTRA_BYTES:
            raise BrokenBody


def _read_whole_chunks(data: bytes, at: int, pieces: list[bytes]) -> int:
    """Read chunks of the usual form, from `at` on. Returns where the last one ends."""
    while (size := _PLAIN_SIZE.match(data, at)) is not None:
        begin = size.end()
        end = begin + int(size[1], 16)
        if data[end : end + 2] != _CRLF:
            break
        pieces.append(data[begin:end])
        at = end + 2
    return at


# Requests.


class End(Enum):
    """The end of a request."""

    END = auto()


END: Final = End.END
Event = MessageHead | bytes | End
"""The head of a request, a piece of its body, or its end."""


_END: Final = b"\r\n\r\n"
_NOTHING: Final[Iterator[Event]] = iter(())


class Phase(Enum):
    """What the parser waits for."""

    HEAD = auto()
    BODY = auto()
    CHUNKS = auto()
    RESPONSE = auto()
    """`next_request`; bytes of further requests are kept until then."""
    CLOSED = auto()
    """Nothing: all bytes are discarded."""


# Used by each request: in Python 3.11, looking up an enum member takes as long as a call.
_HEAD, _RESPONSE = Phase.HEAD, Phase.RESPONSE


class RequestParser:
    """`feed` returns the events of one request, and nothing after its END until `next_request`."""

    __slots__ = ("_body_bytes", "_chunks", "_limits", "_phase", "_received", "_searched")

    def __init__(self, limits: HeadLimits) -> None:
        self._limits = limits
        self._phase = Phase.HEAD
        self._received = bytearray()
        self._searched = 0
        """How many bytes of `_received` were already searched for the end of a head."""
        self._body_bytes = 0
        """Bytes of the body that are still to come."""
        self._chunks: ChunkReader | None = None

    @property
    def in_head(self) -> bool:
        """Whether the first byte of a head has arrived, but not its end."""
        return self._phase is Phase.HEAD and bool(self._received.strip(b"\r\n"))

    @property
    def in_small_pieces(self) -> bool:
        """Whether the body arrives in many small chunks."""
        return self._chunks is not None and self._chunks.in_small_pieces

    @property
    def holds_more(self) -> bool:
        """Whether bytes have arrived after the request."""
        return bool(self._received)

    @property
    def is_full(self) -> bool:
        """Whether more bytes than the longest head are waiting for the response."""
        return self._phase is Phase.RESPONSE and len(self._received) > self._limits.head_bytes

    def feed(self, data: bytes) -> Iterator[Event]:
        """Raises MalformedHead, and BrokenBody for a malformed body; nothing may be fed after that."""
        match self._phase:
            case Phase.CLOSED:
                return
            case Phase.BODY if len(data) <= self._body_bytes:
                yield from self._take(data)
            case Phase.CHUNKS if self._chunks is not None:
                yield from self._take_chunks(self._chunks, data)
            case _:
                self._received += data
                yield from self._read()

    @property
    def is_empty(self) -> bool:
        """Whether it waits for a head of which nothing has arrived."""
        return self._phase is _HEAD and not self._received

    def hold(self) -> None:
        """A request was read in another way: keep what follows until `next_request`."""
        self._phase = _RESPONSE

    def read_whole(self, data: bytes) -> MessageHead | None:
        """The head, if `data` is exactly one head and nothing came before it; its body follows. Raises MalformedHead.

        Most reads are of this kind. None: call `feed` instead.
        """
        if self._received or self._phase is not Phase.HEAD:
            return None
        end = data.find(_END)
        if end < 0 or end + len(_END) < len(data):
            return None
        if len(data) > self._limits.head_bytes or data[0] in b"\r\n":
            return None
        head = read_head(data, self._limits)
        self._expect_body(head)
        return head

    def next_request(self) -> Iterator[Event]:
        """The response is sent: return the events of the bytes that arrived meanwhile. Raises as `feed` does."""
        self._phase = _HEAD
        return self._read() if self._received else _NOTHING

    def close(self) -> None:
        """Discard all bytes from now on."""
        self._phase = Phase.CLOSED
        self._received.clear()
        self._chunks = None

    def rest(self) -> bytes:
        """The bytes after the request: the beginning of another protocol. All later bytes are discarded."""
        rest = bytes(self._received)
        self.close()
        return rest

    def _read(self) -> Iterator[Event]:
        if self._phase is Phase.HEAD:
            head = self._read_head()
            if head is None:
                return
            yield head
            if head.body_bytes == 0:
                yield END
                return
            if self._received:
                data = bytes(self._received)
                self._received.clear()
                yield from self._take(data) if self._chunks is None else self._take_chunks(self._chunks, data)
        elif self._phase is Phase.BODY:
            data = bytes(self._received)
            self._received.clear()
            yield from self._take(data)

    def _read_head(self) -> MessageHead | None:
        received = self._received
        if self._searched == 0:
            del received[: empty_lines(received)]
        if not received or received == b"\r":
            return None
        end = find_end(received, self._searched, self._limits)
        if end is None:
            self._searched = len(received)
            return None
        head = read_head(bytes(received[:end]), self._limits)
        del received[:end]
        self._searched = 0
        self._expect_body(head)
        return head

    def _expect_body(self, head: MessageHead) -> None:
        if head.body_bytes is None:
            self._phase, self._chunks = Phase.CHUNKS, ChunkReader()
        elif head.body_bytes:
            self._phase, self._body_bytes = Phase.BODY, head.body_bytes
        else:
            self._phase = Phase.RESPONSE

    def _take(self, data: bytes) -> Iterator[Event]:
        piece = data[: self._body_bytes]
        self._body_bytes -= len(piece)
        if piece:
            yield piece
        if not self._body_bytes:
            self._received += data[len(piece) :]
            self._phase = Phase.RESPONSE
            yield END

    def _take_chunks(self, chunks: ChunkReader, data: bytes) -> Iterator[Event]:
        body, end = chunks.feed(data)
        if body:
            yield body
        if end is not None:
            self._received += data[end:]
            self._phase, self._chunks = Phase.RESPONSE, None
            yield END
