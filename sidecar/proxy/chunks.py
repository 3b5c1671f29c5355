"""The chunked transfer coding, as we write it (RFC 9112 section 7.1). No extensions, no trailers."""

LAST_CHUNK = b"0\r\n\r\n"


def framed(data: bytes) -> bytes:
    """`data`, not empty, as one chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def framed_whole(data: bytes) -> bytes:
    """`data` as a whole body."""
    return (framed(data) if data else b"") + LAST_CHUNK
