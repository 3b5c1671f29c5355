"""Spellings of a request's framing that every listener must refuse (RFC 9112 §6, §7.1)."""

CHUNKED = b"Transfer-Encoding: chunked"
BAD_LENGTHS = [
    b"",
    b"1,1",
    b"1, 1",
    b"1 1",
    b"+1",
    b"-1",
    b"-0",
    b"0x1",
    b"0b1",
    b"1_0",
    b"1.0",
    b"1e0",
    b"1;a",
    b'"1"',
    b"\xb2",
    b"1" * 20,
]
BAD_CODINGS = [
    b"",
    b"xchunked",
    b"chunkedx",
    b"chunked, identity",
    b"chunked, gzip",
    b"chunked, chunked",
    b"chunked,",
    b",chunked",
    b"chunked;q=1",
    b"chunked chunked",
    b'"chunked"',
    b"gzip",
    b"identity",
    b"gzip;q=1, chunked",
    b"gzip, , chunked",
    b"gzip chunked",
]
UNSUPPORTED_CODINGS = [b"gzip, chunked", b"GZIP,Chunked", b"identity , chunked", b"a, b, chunked"]
"""Legal, and not understood: 501 (RFC 9112 §6.1)."""
AMBIGUOUS: list[tuple[bytes, ...]] = [
    (b"Content-Length: 1", CHUNKED),
    (CHUNKED, b"Content-Length: 1"),
    (CHUNKED, b"Content-Length: 0"),
    (b"Content-Length: 1", b"Content-Length: 1"),
    (b"Content-Length: 1", b"content-length: 2"),
    (CHUNKED, CHUNKED),
    (CHUNKED, b"transfer-encoding: identity"),
    *[(b"Content-Length: " + value,) for value in BAD_LENGTHS],
    *[(b"Transfer-Encoding: " + value,) for value in BAD_CODINGS],
]
"""The framing header lines of one request."""
BROKEN_CHUNKS = [
    b"1\na\r\n0\r\n\r\n",
    b"1\r\na\n0\r\n\r\n",
    b"1\ra\r\n0\r\n\r\n",
    b"1\r\nab\r\n0\r\n\r\n",
    b"1\r\naX0\r\n\r\n",
    b"+1\r\na\r\n0\r\n\r\n",
    b"-1\r\na\r\n0\r\n\r\n",
    b"0x1\r\na\r\n0\r\n\r\n",
    b"g\r\na\r\n0\r\n\r\n",
    b"\r\na\r\n0\r\n\r\n",
    b"1 1\r\na\r\n0\r\n\r\n",
    b"ffffffffffffffffff\r\na\r\n0\r\n\r\n",
]
"""Bodies whose chunks are none."""


def name_of(fields: tuple[bytes, ...]) -> str:
    """Of a test's case."""
    return " | ".join(field.decode("latin-1").encode("unicode_escape").decode() for field in fields)
