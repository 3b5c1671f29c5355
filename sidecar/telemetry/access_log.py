"""The access log: one line per request, recorded on the request's path and written off it."""

import fcntl
import json
import os
import re
import select
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, Literal, Protocol

import msgspec
from msgspec.structs import replace

from sidecar.core.model import ApiKey, QuotaState, RequestHead, WouldDeny
from sidecar.core.units import to_the_millisecond
from sidecar.telemetry.batching import Batches
from sidecar.telemetry.redaction import Redaction, query_names

# The format of a line: a JSON object, or Apache's combined log format. Lines are ASCII.


MAX_CHARS: Final = 2048
"""Most characters of one value in a line."""
MAX_CLIENT_CHARS: Final = 512
"""Most characters of a User-Agent or Referer."""
_SHORTEST_KEY: Final = 16
_MAX_KEPT: Final = 2 * MAX_CLIENT_CHARS
_OPTIONAL: Final = frozenset(
    {
        *("environment", "plan", "scopes", "credential", "cause", "query", "trace_id", "config", "sampled"),
        *("quota", "limit", "retry_after", "would_deny"),
    }
)
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_UNQUOTED = re.compile(rb'[^!#-\[\]-~]|"|\\')
_QUOTED = re.compile(rb'[^ !#-\[\]-~]|"|\\')


class Access(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One request and its response. A Struct, since a dataclass takes three times as long to make."""

    at: float
    """Unix seconds at which the head was complete."""
    request_id: str
    key: ApiKey | None = None
    """The recognised key, even if it was refused."""
    credential: Literal["key", "pass_through"] | None = None
    """What the client presented; a key need not be valid."""
    route: str | None = None
    method: str
    target: str
    """Raw target or canonical path; values of its query are never written."""
    status: int
    reason: str | None = None
    cause: str | None = None
    """What was wrong with the upstream."""
    seconds: float
    upstream_seconds: float | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    cut: bool = False
    """Whether the sidecar ended the connection before the response was whole."""
    client_address: str
    version: tuple[int, int] = (1, 1)
    referer: str = ""
    """As sent, with undecodable bytes as surrogates; like `agent`, only given if the format contains it."""
    agent: str = ""
    trace_id: str | None = None
    """32 hexadecimal digits, if requests are traced."""
    config: str | None = None
    """The beginning of the hash of the configuration in force at the end of the response."""
    refused_quota: QuotaState | None = None
    """The exhausted quota, enforced or only observed."""
    would_deny: str | None = None
    """Why it would have been refused without `mode: observe`."""


def with_client(access: Access, head: RequestHead) -> Access:
    """With Referer and User-Agent, truncated so that waiting lines stay small."""
    values = {name.lower(): value for name, value in reversed(head.headers)}
    referer, agent = (values.get(name, b"").decode("utf-8", "surrogateescape") for name in (b"referer", b"user-agent"))
    return replace(access, version=head.version, referer=referer[:_MAX_KEPT], agent=agent[:_MAX_KEPT])


def with_trace(access: Access, trace_id: str) -> Access:
    return replace(access, trace_id=trace_id)


def with_quota(access: Access, refused: QuotaState | None) -> Access:
    return replace(access, refused_quota=refused)


def with_refusal(access: Access, seen: WouldDeny) -> Access:
    return replace(access, would_deny=seen.reason, refused_quota=seen.quota)


class LineFormat(Protocol):
    """Makes the line of a request, without a line end."""

    @property
    def tells_client(self) -> bool:
        """Whether it contains `referer` and `agent`."""

    def __call__(self, access: Access) -> bytes: ...


class _Line(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """A line as written; the names are a contract."""

    time: str
    request_id: str
    key_id: str | None
    key_prefix: str | None
    tenant: str | None
    environment: str | None = None
    plan: str | None = None
    scopes: tuple[str, ...] = ()
    credential: str | None = None
    route: str | None
    method: str
    path: str
    query: str | None = None
    status: int
    reason: str | None
    cause: str | None = None
    quota: str | None = None
    limit: int | None = None
    retry_after: int | None = None
    seconds: float
    upstream_seconds: float | None
    bytes_in: int
    bytes_out: int
    cut: bool = False
    client_address: str
    trace_id: str | None = None
    would_deny: str | None = None
    config: str | None = None
    sampled: float | None = None


class JsonLines:
    """One object per line. Surrogates of undecodable bytes are written as `\\\\udcff`, all else outside ASCII escaped.

    with_query: `query` has the names of the query's parameters. share: the sample rate of lines that may be left out.
    """

    tells_client = False

    def __init__(
        self,
        redaction: Redaction,
        *,
        with_query: bool = False,
        share: float = 1.0,
    ) -> None:
        self._redaction, self._with_query = redaction, with_query
        self._share = None if share >= 1.0 else share

    def __call__(self, access: Access) -> bytes:
        line = self._line(access)
        try:
            encoded = msgspec.json.encode(line)
        except UnicodeEncodeError:
            return _encode_ascii(line)
        return encoded if encoded.isascii() else _encode_ascii(line)

    def _line(self, access: Access) -> _Line:
        key, quota = access.key, access.refused_quota
        return _Line(
            time=to_the_millisecond(access.at),
            request_id=self._redaction.text(access.request_id, longest=MAX_CHARS),
            key_id=key.id if key else None,
            key_prefix=key.prefix if key else None,
            tenant=key.tenant if key else None,
            environment=key.environment if key else None,
            plan=key.plan if key else None,
            scopes=key.scopes if key else (),
            credential=access.credential,
            route=access.route,
            method=_method(access, self._redaction),
            path=self._redaction.path(access.target, longest=MAX_CHARS),
            query=query_names(access.target, longest=MAX_CHARS) if self._with_query else None,
            status=access.status,
            reason=access.reason,
            cause=access.cause,
            quota=None if quota is None else quota.quota.name,
            limit=None if quota is None else quota.limit,
            retry_after=None if quota is None else quota.retry_after_seconds,
            seconds=_to_the_microsecond(access.seconds),
            upstream_seconds=None if access.upstream_seconds is None else _to_the_microsecond(access.upstream_seconds),
            bytes_in=access.bytes_in,
            bytes_out=access.bytes_out,
            cut=access.cut,
            client_address=access.client_address,
            trace_id=access.trace_id,
            would_deny=access.would_deny,
            config=access.config,
            sampled=None if self._share is None or is_always_written(access) else self._share,
        )


class CombinedLines:
    """`address - key id [time] "request" status bytes "referer" "user agent"`, escaped as by Apache's mod_log_config.

    The key's id is in place of the user's name. The referer has no query; the request has only names of parameters, and
    only if `with_query` is set.
    """

    tells_client = True

    def __init__(
        self,
        redaction: Redaction,
        *,
        with_query: bool = False,
        share: float = 1.0,
    ) -> None:
        """share: as in JsonLines; unused, because the format has no field for it."""
        self._redaction, self._with_query = redaction, with_query

    def __call__(self, access: Access) -> bytes:
        return b'%b - %b [%b] "%b" %d %b "%b" "%b"' % (
            _escaped(access.client_address, _UNQUOTED),
            _escaped(access.key.id if access.key else "", _UNQUOTED),
            _apache_time(int(access.at)),
            self._request(access),
            access.status,
            str(access.bytes_out).encode() if access.bytes_out else b"-",
            _escaped(self._redaction.address(access.referer, longest=MAX_CLIENT_CHARS), _QUOTED),
            _escaped(self._redaction.text(access.agent, longest=MAX_CLIENT_CHARS), _QUOTED),
        )

    def _request(self, access: Access) -> bytes:
        query = query_names(access.target, longest=MAX_CHARS) if self._with_query else None
        shown = self._redaction.path(access.target, longest=MAX_CHARS) + ("" if query is None else f"?{query}")
        text = f"{_method(access, self._redaction)} {shown} HTTP/{access.version[0]}.{access.version[1]}"
        return _escaped(text, _QUOTED)


def _method(access: Access, redaction: Redaction) -> str:
    """A client may send any text as a method; a shorter one cannot contain a key."""
    method = access.method
    return method if len(method) < _SHORTEST_KEY else redaction.text(method, longest=MAX_CHARS)


def _to_the_microsecond(seconds: float) -> float:
    """Faster than `round` to six places, which goes through decimal digits and takes five times as long."""
    return int(seconds * 1e6 + 0.5) / 1e6


@lru_cache(maxsize=8)
def _apache_time(unix_seconds: int) -> bytes:
    at = datetime.fromtimestamp(unix_seconds, UTC)
    return f"{at.day:02d}/{_MONTHS[at.month - 1]}/{at.year}:{at:%H:%M:%S} +0000".encode()


def _encode_ascii(line: _Line) -> bytes:
    values = msgspec.structs.asdict(line).items()
    kept = ((name, value) for name, value in values if name not in _OPTIONAL or value not in (None, ()))
    fields = {name: well_formed(value) if isinstance(value, str) else value for name, value in kept}
    if not line.cut:
        del fields["cut"]
    return json.dumps(fields, separators=(",", ":")).encode("ascii")


def well_formed(text: str) -> str:
    """The text with lone surrogates, which UTF-8 lacks, escaped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _escaped(text: str, unsafe: re.Pattern[bytes]) -> bytes:
    try:
        raw = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raw = text.encode("utf-8", "backslashreplace")
    return unsafe.sub(_escape, raw) or b"-"


def _escape(unsafe: re.Match[bytes]) -> bytes:
    byte = unsafe[0]
    return b"\\" + byte if byte in (b'"', b"\\") else b"\\x%02x" % byte[0]


def is_always_written(access: Access) -> bool:
    """Whether it was refused, would have been, or failed, so that no sample leaves it out."""
    return access.status >= 400 or access.reason is not None or access.would_deny is not None or access.cut


_LINES_AT_ONCE = 256
"""Lines encoded between two turns of the loop: about a millisecond."""


class AccessLog(Batches[Access, bytes]):
    """Lines waiting to be written by `write`, which may block; see Batches.

    line: the format. sample: decides for each request that was neither refused nor failed whether to write it; None:
    write all.
    """

    def __init__(
        self,
        write: Callable[[bytes], None],
        *,
        line: LineFormat | None = None,
        sample: Callable[[], bool] | None = None,
        max_lines: int = 100_000,
        max_chars: int = 32 * 1024 * 1024,
    ) -> None:
        line = line or JsonLines(Redaction())
        super().__init__(
            write,
            prepare=lambda batch: b"\n".join([*[line(access) for access in batch], b""]),
            weigh=_chars,
            at_once=_LINES_AT_ONCE,
            max_items=max_lines,
            max_weight=max_chars,
        )
        self.tells_client = line.tells_client
        """Whether an Access must contain referer and user agent."""
        self._sample = sample

    def wants(self, access: Access) -> bool:
        """Whether to record it: always for refusals, failures, and requests that would have been refused."""
        return self._sample is None or is_always_written(access) or self._sample()


_ATOMIC: Final = 4096
"""PIPE_BUF of Linux: a write up to this size is never interleaved with those of other processes."""


def lines_writer(descriptor: int, lock: int) -> Callable[[bytes], None]:
    """As `descriptor_writer`, if other processes write lines to the same file: each line stays whole.

    lock: a file that they share. A line that is longer than an atomic write to a pipe is written under its lock.
    """
    write = descriptor_writer(descriptor)

    def write_lines(batch: bytes) -> None:
        fcntl.lockf(lock, fcntl.LOCK_EX, 1)
        try:
            for piece in _pieces(batch):
                write(piece)
        finally:
            fcntl.lockf(lock, fcntl.LOCK_UN, 1)

    return write_lines


def _pieces(batch: bytes) -> Iterator[bytes]:
    """Whole lines: as many as fit into one atomic write, or a single longer one."""
    start = 0
    while start < len(batch):
        end = batch.rfind(b"\n", start, start + _ATOMIC) + 1 or batch.find(b"\n", start) + 1 or len(batch)
        yield batch[start:end]
        start = end


def descriptor_writer(descriptor: int) -> Callable[[bytes], None]:
    """A `write` to an open file descriptor, without a buffer that would be flushed, and stuck, at exit."""

    def write(batch: bytes) -> None:
        rest = memoryview(batch)
        while rest:
            try:
                rest = rest[os.write(descriptor, rest) :]
            except BlockingIOError:
                select.select([], [descriptor], [])

    return write


def _chars(access: Access) -> int:
    """The characters of the fields whose length a client controls."""
    return len(access.target) + len(access.request_id) + len(access.method) + len(access.referer) + len(access.agent)
