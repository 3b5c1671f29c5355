"""Heads of answers, as bytes."""

from collections.abc import Iterable
from functools import lru_cache
from http import HTTPStatus

from sidecar.core.model import Answer, Headers
from sidecar.proxy.answers import HeaderList, UpstreamAnswer

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_NO_BODY = frozenset({204, 304})
_PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}


def answer_of_ours(answer: Answer, *, persistence: bytes) -> bytes:
    """A whole answer but for its body."""
    return _head_of_ours(answer) + persistence


@lru_cache(maxsize=256)
def _head_of_ours(answer: Answer) -> bytes:
    """Refusals are the same again and again."""
    lines = [_status_line(answer.status, _PHRASES.get(answer.status, b"")), *field_lines(answer.headers)]
    if answer.status not in _NO_BODY:
        lines.append(b"Content-Length: %d" % len(answer.body))
    return b"\r\n".join(lines)


def interim(status: int, reason: bytes, headers: HeaderList) -> bytes:
    """An interim answer of the upstream's."""
    return b"\r\n".join([_status_line(status, reason), *field_lines(headers)]) + b"\r\n\r\n"


def upstream_head(answer: UpstreamAnswer, ours: Headers, *, chunked: bool, persistence: bytes) -> bytes:
    """The upstream's head as it sent it; fields of `ours` stand in place of its own of the same names."""
    headers = answer.headers
    names = [name.lower() for name, _ in ours]
    if not answer.names.isdisjoint(names):
        headers = [field for field in headers if field[0].lower() not in names]
    lines = [_status_line(answer.status, answer.reason), *field_lines(headers), *field_lines(ours)]
    if chunked:
        lines.append(b"Transfer-Encoding: chunked")
    return b"\r\n".join(lines) + persistence


def field_lines(fields: Iterable[tuple[bytes, bytes]]) -> Iterable[bytes]:
    """Header fields as lines without their ends."""
    return map(b": ".join, fields)


def has_body(method: str, status: int) -> bool:
    """Whether an answer has a body at all (RFC 9112 section 6.3)."""
    return method != "HEAD" and status not in _NO_BODY


def persistence(keep_alive: bool, version: tuple[int, int]) -> bytes:
    """The end of a head: what the client is told of the connection's future."""
    if not keep_alive:
        return b"\r\nConnection: close\r\n\r\n"
    return b"\r\n\r\n" if version >= (1, 1) else b"\r\nConnection: keep-alive\r\n\r\n"


def switched(protocol: bytes) -> bytes:
    """The end of a 101's head."""
    return b"\r\nConnection: Upgrade\r\nUpgrade: %b\r\n\r\n" % protocol


def _status_line(status: int, reason: bytes) -> bytes:
    return b"HTTP/1.1 %d %b" % (status, reason)
