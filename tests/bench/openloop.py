"""Open-loop load: requests leave at fixed times, and latency counts from those times, sent late or not.

python -m tests.bench.openloop PORT REQUESTS_FILE RATE SECONDS CONNECTIONS
Prints one line of JSON with the fields that wrk.lua prints. A slow answer delays nobody else's sending time, so a
stall shows in every request that it would have hit (no coordinated omission).
"""

import asyncio
import ctypes
import json
import os
import sys
from collections import deque
from pathlib import Path
from time import perf_counter

import uvloop

from tests.bench.requests import freshened, read

_CLOCK_MONOTONIC = 1
_NONBLOCK = os.O_NONBLOCK
_GRACE_SECONDS = 2.0


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Timer(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


def ticking(interval: float) -> int:
    """A timerfd that becomes readable every `interval` seconds; the loop's own timers are only as fine as 1 ms."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor: int = libc.timerfd_create(_CLOCK_MONOTONIC, _NONBLOCK)
    every = _Timespec(0, int(interval * 1e9))
    if descriptor < 0 or libc.timerfd_settime(descriptor, 0, ctypes.byref(_Timer(every, every)), None):
        raise OSError(ctypes.get_errno(), "timerfd")
    return descriptor


class Connection(asyncio.Protocol):
    """One exchange at a time; answers need a Content-Length."""

    def __init__(self, load: "Load") -> None:
        self._load = load
        self._transport: asyncio.Transport | None = None
        self._due = 0.0
        self._got = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def send(self, request: bytes, due: float) -> None:
        self._due = due
        if self._transport is not None:
            self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        got = self._got = self._got + data if self._got else data
        end = got.find(b"\r\n\r\n")
        if end < 0 or len(got) < end + 4 + _content_length(got[:end].lower()):
            return
        self._got = b""
        self._load.answered(self, perf_counter() - self._due, ok=got.startswith(b"HTTP/1.1 2"), size=len(got))

    def connection_lost(self, exc: Exception | None) -> None:
        self._load.broken += 1


def _content_length(head: bytes) -> int:
    start = head.index(b"\r\ncontent-length:") + 17
    return int(head[start : head.find(b"\r\n", start) if head.find(b"\r\n", start) > 0 else None])


class Load:
    def __init__(self, requests: list[bytes], rate: float, seconds: float) -> None:
        self._requests, self._interval, self._total = requests, 1 / rate, int(rate * seconds)
        self._idle: list[Connection] = []
        self._waiting: deque[tuple[bytes, float]] = deque()
        self._sent = self._refused = self._bytes = 0
        self.broken = 0
        self._latencies: list[float] = []

    async def run(self, port: int, connections: int) -> dict[str, float]:
        loop = asyncio.get_running_loop()
        for _ in range(connections):
            _, connection = await loop.create_connection(lambda: Connection(self), "127.0.0.1", port)
            self._idle.append(connection)
        # The clock first: a tick then never comes before the request that it stands for is due.
        self._over, self._begun = loop.create_future(), perf_counter()
        descriptor = ticking(self._interval)
        loop.add_reader(descriptor, self._tick, descriptor)
        patience = self._total * self._interval + _GRACE_SECONDS
        try:
            await asyncio.wait_for(self._over, patience)
        except TimeoutError:
            self.broken += self._total - len(self._latencies)
        loop.remove_reader(descriptor)
        return self._summary(perf_counter() - self._begun)

    def answered(self, connection: Connection, seconds: float, *, ok: bool, size: int) -> None:
        self._latencies.append(seconds)
        self._refused += not ok
        self._bytes += size
        if self._waiting:
            connection.send(*self._waiting.popleft())
        else:
            self._idle.append(connection)
        if len(self._latencies) == self._total and not self._over.done():
            self._over.set_result(None)

    def _tick(self, descriptor: int) -> None:
        os.read(descriptor, 8)
        while self._sent < self._total and self._begun + (self._sent + 1) * self._interval <= perf_counter():
            self._sent += 1
            due = self._begun + self._sent * self._interval
            request = freshened(self._requests[self._sent % len(self._requests)], self._sent)
            if self._idle:
                self._idle.pop().send(request, due)
            else:
                self._waiting.append((request, due))

    def _summary(self, seconds: float) -> dict[str, float]:
        ordered = sorted(self._latencies) or [0.0]
        return {
            "requests": len(self._latencies),
            "microseconds": round(seconds * 1e6),
            "bytes": self._bytes,
            "refused": self._refused,
            "broken": self.broken,
            "p50": round(ordered[len(ordered) // 2] * 1e6),
            "p99": round(ordered[int(len(ordered) * 0.99)] * 1e6),
        }


def main(port: str, file: str, rate: str, seconds: str, connections: str) -> None:
    load = Load(read(Path(file)), float(rate), float(seconds))
    print("@" + json.dumps(uvloop.run(load.run(int(port), int(connections)))))


if __name__ == "__main__":
    main(*sys.argv[1:])
