"""A client of raw bytes on the test's own loop."""

import asyncio
import re
from dataclasses import dataclass, field

from sidecar.config.fields import Address
from tests.harness.wire import TIMEOUT_SECONDS

_NO_BODY = (204, 304)
_DATE = re.compile(rb"\r\nDate: [A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9:]{8} GMT(?=\r\n)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """One response as received."""

    status_line: bytes
    headers: list[tuple[bytes, bytes]]
    """Except Date, which every response has."""
    body: bytes
    dates: list[bytes] = field(default_factory=list)

    @property
    def status(self) -> int:
        return int(self.status_line.split(b" ")[1])

    def all(self, name: bytes) -> list[bytes]:
        return [value for field, value in self.headers if field.lower() == name.lower()]


class RawClient:
    """A connection. Reads have a timeout, so that missing data fails the test."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, address: Address) -> "RawClient":
        if address.path:
            return cls(*await asyncio.open_unix_connection(address.path))
        return cls(*await asyncio.open_connection(address.host, address.port, limit=1 << 20))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def ask(self, raw: bytes) -> Received:
        await self.send(raw)
        return await self.receive(raw.split(b" ", 1)[0])

    async def receive(self, method: bytes = b"GET") -> Received:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            head = await self.reader.readuntil(b"\r\n\r\n")
            status_line, *lines = head[:-4].split(b"\r\n")
            headers = [(name, value) for name, _, value in (line.partition(b": ") for line in lines)]
            fields = {name.lower(): value for name, value in headers}
            bodyless = method == b"HEAD" or int(status_line.split(b" ")[1]) in _NO_BODY or b" 1" in status_line[8:10]
            body = b"" if bodyless else await self._body(fields)
            dates = [value for name, value in headers if name.lower() == b"date"]
            others = [pair for pair in headers if pair[0].lower() != b"date"]
            return Received(status_line=status_line, headers=others, body=body, dates=dates)

    async def rest(self) -> bytes:
        """Everything until the other end closes. Raises ConnectionResetError on a reset."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            return _DATE.sub(b"", await self.reader.read())

    async def _body(self, fields: dict[bytes, bytes]) -> bytes:
        if b"content-length" in fields:
            return await self.reader.readexactly(int(fields[b"content-length"]))
        if fields.get(b"transfer-encoding") != b"chunked":
            return await self.reader.read()
        body = bytearray()
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            body += (await self.reader.readexactly(size + 2))[:-2]
        assert await self.reader.readuntil(b"\r\n") == b"\r\n"
        return bytes(body)

    async def close(self) -> None:
        self.writer.transport.abort()


def get(target: str = "/x", *headers: bytes, method: str = "GET", version: str = "1.1") -> bytes:
    lines = [f"{method} {target} HTTP/{version}".encode(), b"Host: api.test", *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def post(body: bytes, *headers: bytes, target: str = "/x") -> bytes:
    return get(target, b"Content-Length: %d" % len(body), *headers, method="POST") + body
