"""Reads an access log of JSON lines as recorded requests, however long it is."""

import os
import stat
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, BinaryIO, Final, Literal

import msgspec
from msgspec import Meta

from sidecar.core.model import ApiKey
from sidecar.telemetry.access_log import MAX_CHARS
from sidecar.telemetry.redaction import HIDDEN

MOST_BYTES: Final = 64 * 1024
"""Bytes of a line; the sidecar's own lines are shorter. Longer lines are skipped, and never kept in memory."""
_AT_ONCE: Final = 256 * 1024
_BOM: Final = b"\xef\xbb\xbf"
_GZIP: Final = b"\x1f\x8b"
_UNREAD: Final = {
    b"\x28\xb5\x2f\xfd": "is packed with zstd: send what `zstd -dc` prints to stdin",
    b"BZh": "is packed with bzip2: send what `bzip2 -dc` prints to stdin",
    b"\xfd7zXZ": "is packed with xz: send what `xz -dc` prints to stdin",
    b"PK\x03\x04": "is a zip archive: send what `unzip -p` prints to stdin",
    b"\xff\xfe": "is UTF-16: convert it to UTF-8",
    b"\xfe\xff": "is UTF-16: convert it to UTF-8",
}
"""Other formats of logs, by their first bytes, and what to do."""
_LONGEST_MAGIC: Final = max(map(len, _UNREAD))
_SMALLEST_SHARE: Final = 1e-9
"""The smallest share of requests that are logged."""


class RecordedRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A line of the access log. Fields that older versions did not write have defaults."""

    time: str = ""
    """RFC 3339."""
    request_id: str = ""
    key_id: str | None = None
    key_prefix: str | None = None
    tenant: str | None = None
    environment: str | None = None
    plan: str | None = None
    scopes: tuple[str, ...] = ()
    """As stored on the key."""
    credential: Literal["key", "pass_through"] | None = None
    route: str | None = None
    method: str
    path: str
    """The raw target without its query, perhaps redacted or cut: see `hidden`."""
    status: int
    reason: str | None = None
    cause: str | None = None
    """What was wrong with the upstream."""
    quota: str | None = None
    """The exhausted quota; `limit` and the seconds to wait belong to it."""
    limit: int | None = None
    retry_after: int | None = None
    cut: bool = False
    """The response did not come to its end."""
    client_address: str = ""
    would_deny: str | None = None
    """The reason that would have refused it, if it was forwarded because of `mode: observe`."""
    config: str | None = None
    """The beginning of the hash of the configuration in force; None in lines of older versions."""
    sampled: Annotated[float, Meta(ge=_SMALLEST_SHARE, le=1)] | None = None

    @property
    def key(self) -> ApiKey | None:
        """A key with the rights of the recorded one, and a digest that belongs to no key."""
        if self.key_id is None:
            return None
        return ApiKey(
            id=self.key_id,
            name="",
            prefix=self.key_prefix or "",
            digest=b"",
            algorithm="sha256",
            tenant=self.tenant,
            environment=self.environment,
            scopes=self.scopes,
            plan=self.plan,
            created_at=0,
            created_by="",
        )

    @property
    def weight(self) -> float:
        """How many requests the line represents."""
        return 1.0 if self.sampled is None else 1.0 / self.sampled

    @property
    def path_alone(self) -> str:
        """The target without a query, which another program may have logged: a query may contain secrets."""
        return self.path.partition("?")[0]

    @property
    def hidden(self) -> Literal["redacted", "cut"] | None:
        """Why its path, or method, is not what the client sent; None if it is."""
        if HIDDEN in self.path or HIDDEN in self.method:
            return "redacted"
        return "cut" if len(self.path) >= MAX_CHARS or len(self.method) >= MAX_CHARS else None


class LogError(Exception):
    """The log cannot be read, or not to its end; the lines read so far remain valid. The message follows the log's
    name.
    """


@contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """The log at `path`, or stdin for `-`. Raises LogError."""
    if path == "-":
        yield sys.stdin.buffer
        return
    try:
        file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed below
    except (OSError, ValueError) as error:
        raise LogError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    with file:
        if _is_endless(file):
            raise LogError("is a device, not a log")
        yield file


def _is_endless(file: BinaryIO) -> bool:
    """Whether it is an endless device such as /dev/zero. A terminal ends, and so does /dev/null."""
    mode = os.fstat(file.fileno()).st_mode
    return stat.S_ISBLK(mode) or (stat.S_ISCHR(mode) and not file.isatty() and file.name != os.devnull)


@dataclass(slots=True)
class LineCounts:
    """Counts of the lines by kind. Blank lines do not count."""

    requests: int = 0
    foreign: int = 0
    """Lines that are not requests: in another format, or written by another program."""
    too_long: int = 0
    first_unread: int | None = None
    """The number of the first line that is foreign or too long, from 1."""

    @property
    def lines(self) -> int:
        return self.requests + self.foreign + self.too_long


class RecordedRequests:
    """Yields the requests of a log, plain or gzip, once and in order. Iterating raises LogError.

    progress: called with the number of bytes read from the file, before decompression.
    """

    def __init__(self, file: BinaryIO, *, progress: Callable[[int], None] = lambda _: None) -> None:
        self._file, self._progress = file, progress
        self.counts = LineCounts()

    def __iter__(self) -> Iterator[RecordedRequest]:
        decode, counts = msgspec.json.Decoder(RecordedRequest).decode, self.counts
        for number, line in enumerate(_lines(_unpacked(self._chunks())), 1):
            if line == b"":
                continue  # A compressed file may contain very many of them.
            try:
                request = decode(line or b"")
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                self._unread(number, line)
            else:
                counts.requests += 1
                yield request

    def _unread(self, number: int, line: bytes | None) -> None:
        counts = self.counts
        if line is None:
            counts.too_long += 1
        elif line and not line.isspace():
            counts.foreign += 1
        else:
            return
        counts.first_unread = counts.first_unread or number

    def _chunks(self) -> Iterator[bytes]:
        read = 0
        try:
            while chunk := self._file.read(_AT_ONCE):
                read += len(chunk)
                yield chunk
                self._progress(read)
        except OSError as error:
            raise LogError(f"cannot be read any further: {error.strerror or error}") from None


def _unpacked(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Recognises the format by the first bytes, not by the file's name. Raises LogError."""
    first = b""
    for chunk in chunks:
        first += chunk
        if len(first) >= _LONGEST_MAGIC:
            break
    for magic, what in _UNREAD.items():
        if first.startswith(magic):
            raise LogError(what)
    texts = _gunzipped(first, chunks) if first.startswith(_GZIP) else chain([first], chunks)
    yield next(texts, b"").removeprefix(_BOM)
    yield from texts


def _gunzipped(first: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Unpacks several members in sequence, as in concatenated rotated logs (RFC 1952)."""
    unpacker, packed = zlib.decompressobj(zlib.MAX_WBITS | 16), first
    try:
        while True:
            yield unpacker.decompress(packed, _AT_ONCE)
            packed = unpacker.unconsumed_tail
            if unpacker.eof:
                packed = unpacker.unused_data.lstrip(b"\0") or next(chunks, b"").lstrip(b"\0")
                if not packed:
                    return
                unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
            elif not packed:
                packed = next(chunks, b"")
                if not packed:
                    raise LogError("is a gzip file that is cut off: only the part before that was read")
    except zlib.error as error:
        raise LogError(f"is a gzip file that is damaged ({error}): only the part before that was read") from None


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes | None]:
    """Lines without line ends; None for a line of over MOST_BYTES. Keeps at most one line and a chunk in memory."""
    rest, skipping = b"", False
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        if not others:
            rest, skipping = (b"", True) if skipping or len(rest) + len(first) > MOST_BYTES else (rest + first, False)
            continue
        yield _bounded(rest + first, skipping)
        rest, skipping = others.pop(), False
        for line in others:
            yield line if len(line) <= MOST_BYTES else None
    if rest or skipping:
        yield _bounded(rest, skipping)


def _bounded(line: bytes, skipping: bool) -> bytes | None:
    return None if skipping or len(line) > MOST_BYTES else line
