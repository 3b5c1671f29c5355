"""The access log: one JSON object a line, gathered on the request's path and written off it."""

import asyncio
import json
import os
import select
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from threading import Thread

import msgspec

from sidecar.core.model import ApiKey

_LINES_AT_ONCE = 256
"""Encoded between two turns of the loop: about a millisecond."""
_MAX_CHARS = 2048
"""Of one value in a line."""


class Access(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One request and its answer. A Struct, since a dataclass takes three times as long to make."""

    at: float
    """Unix seconds at which the head was there."""
    request_id: str
    key: ApiKey | None = None
    """What was recognised, even where it was refused."""
    route: str | None = None
    method: str
    target: str
    """Raw target or canonical path; only the part before `?` is written."""
    status: int
    reason: str | None = None
    seconds: float
    upstream_seconds: float | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    client_address: str


class _Line(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """As written; the names are a contract."""

    time: str
    request_id: str
    key_id: str | None
    key_prefix: str | None
    tenant: str | None
    route: str | None
    method: str
    path: str
    status: int
    reason: str | None
    seconds: float
    upstream_seconds: float | None
    bytes_in: int
    bytes_out: int
    client_address: str


class AccessLog:
    """Lines waiting to be written by `write`, which may block: it is called in a thread of its own, one at a time.

    What is past `max_lines` or `max_chars` is dropped and counted, and so is what `write` failed to write.
    """

    def __init__(
        self, write: Callable[[bytes], None], *, max_lines: int = 100_000, max_chars: int = 32 * 1024 * 1024
    ) -> None:
        self.dropped = 0
        self._write = write
        self._max_lines = max_lines
        self._max_chars = max_chars
        self._chars = 0
        self._waiting: list[Access] = []
        self._writing: asyncio.Future[None] | None = None

    def record(self, access: Access) -> None:
        """Keep a line for the next batch."""
        chars = self._chars + _chars(access)
        if len(self._waiting) >= self._max_lines or chars > self._max_chars:
            self.dropped += 1
            return
        self._chars = chars
        self._waiting.append(access)

    async def run(self, interval: float = 0.2) -> None:
        """Write what waits, every `interval` seconds, until cancelled; what then still waits is `flush`'s."""
        while True:
            await asyncio.sleep(interval)
            await self._write_waiting()

    async def flush(self, timeout: float = 2.0) -> None:  # noqa: ASYNC109 - running out of time is no error here
        """Write all that waits. Whoever reads may be stuck: what is not written in `timeout` seconds is dropped."""
        try:
            async with asyncio.timeout(timeout):
                await self._write_waiting()
        except TimeoutError:
            self.dropped += len(self._waiting)
            self._waiting.clear()
            self._chars = 0

    async def _write_waiting(self) -> None:
        while self._waiting or self._writing is not None:
            await asyncio.shield(self._writing or self._hand_over(self._next_batch()))

    def _next_batch(self) -> list[bytes]:
        batch = self._waiting[:_LINES_AT_ONCE]
        del self._waiting[:_LINES_AT_ONCE]
        self._chars -= sum([_chars(access) for access in batch])
        return [encode(access) for access in batch]

    def _hand_over(self, lines: list[bytes]) -> asyncio.Future[None]:
        """Done when `lines` are written or lost. A daemon thread, since a stuck one must not keep the process alive."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._writing = done

        def settle(lost: int) -> None:
            self.dropped += lost
            self._writing = None
            done.set_result(None)

        def work() -> None:
            lost = 0 if _written(self._write, b"".join(lines)) else len(lines)
            with suppress(RuntimeError):  # the loop is closed; nobody waits
                loop.call_soon_threadsafe(settle, lost)

        try:
            Thread(target=work, daemon=True).start()
        except RuntimeError:  # no thread to be had; the next batch may have more luck
            settle(len(lines))
        return done


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


def encode(access: Access) -> bytes:
    """One line of ASCII. Surrogates of undecodable bytes are written as `\\\\udcff`, all else outside ASCII escaped."""
    key = access.key
    line = _Line(
        time=_rfc3339(access.at),
        request_id=access.request_id[:_MAX_CHARS],
        key_id=key.id if key else None,
        key_prefix=key.prefix if key else None,
        tenant=key.tenant if key else None,
        route=access.route,
        method=access.method[:_MAX_CHARS],
        path=access.target.partition("?")[0][:_MAX_CHARS],
        status=access.status,
        reason=access.reason,
        seconds=round(access.seconds, 6),
        upstream_seconds=None if access.upstream_seconds is None else round(access.upstream_seconds, 6),
        bytes_in=access.bytes_in,
        bytes_out=access.bytes_out,
        client_address=access.client_address,
    )
    try:
        encoded = msgspec.json.encode(line)
    except UnicodeEncodeError:
        return _encode_ascii(line)
    return encoded + b"\n" if encoded.isascii() else _encode_ascii(line)


def _encode_ascii(line: _Line) -> bytes:
    fields = {name: _well_formed(value) for name, value in msgspec.structs.asdict(line).items()}
    return json.dumps(fields, separators=(",", ":")).encode("ascii") + b"\n"


def _well_formed(value: object) -> object:
    return value.encode("utf-8", "backslashreplace").decode("utf-8") if isinstance(value, str) else value


def _rfc3339(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _chars(access: Access) -> int:
    """What a client can make long."""
    return len(access.target) + len(access.request_id) + len(access.method)


def _written(write: Callable[[bytes], None], batch: bytes) -> bool:
    try:
        write(batch)
    except Exception:  # a log that cannot be written (broken pipe, full disk) must not end the process
        return False
    return True
