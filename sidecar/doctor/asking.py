"""One HTTP/1.1 request on a connection of its own."""

import asyncio
import re
import ssl
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Final

from sidecar.config.settings import Address

_MOST_BYTES: Final = 16 * 1024 * 1024
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})\b")

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer. Names of headers in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float


class NoReply(Exception):
    """There was none. The message says what happened, in a few words."""


async def connect(address: Address, *, seconds: float, tls: ssl.SSLContext | None = None, name: str = "") -> Streams:
    """A connection, within `seconds`; `name` is the server's for TLS. Raises NoReply."""
    try:
        async with asyncio.timeout(seconds):
            if address.path:
                return await asyncio.open_unix_connection(address.path)
            server_name = name or address.host if tls else None
            return await asyncio.open_connection(address.host, address.port, ssl=tls, server_hostname=server_name)
    except TimeoutError:
        raise NoReply(f"no connection within {seconds:g} s") from None
    except ssl.SSLCertVerificationError as error:
        raise NoReply(f"its certificate is not trusted: {error.verify_message}") from error
    except ssl.SSLError as error:
        raise NoReply(f"no TLS: {error.reason or 'the handshake failed'}") from error
    except UnicodeError:
        raise NoReply("its name cannot be looked up") from None
    except OSError as error:
        raise NoReply(_plain(error)) from error


async def exchange(streams: Streams, method: str, target: str, *, host: str, seconds: float) -> Reply:
    """Ask, and close the connection. Raises NoReply."""
    reader, writer = streams
    started = perf_counter()
    try:
        async with asyncio.timeout(seconds):
            fields = f"Host: {host}\r\nUser-Agent: sidecar-doctor\r\nConnection: close\r\n\r\n"
            writer.write(f"{method} {target} HTTP/1.1\r\n{fields}".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            body = b"" if method == "HEAD" else await _rest(reader)
    except TimeoutError:
        raise NoReply(f"no answer within {seconds:g} s") from None
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
        raise NoReply("the connection ended without an answer") from None
    finally:
        await close(streams)
    return _reply(head, body, perf_counter() - started)


async def close(streams: Streams) -> None:
    streams[1].close()
    with suppress(OSError):
        await streams[1].wait_closed()


async def _rest(reader: asyncio.StreamReader) -> bytes:
    parts, size = list[bytes](), 0
    while size < _MOST_BYTES and (part := await reader.read(65_536)):
        parts.append(part)
        size += len(part)
    return b"".join(parts)


def _reply(head: bytes, body: bytes, seconds: float) -> Reply:
    first, *lines = head[:-4].split(b"\r\n")
    status = _STATUS.match(first)
    if status is None:
        raise NoReply("what answers does not speak HTTP/1.1")
    fields = (line.decode("latin-1").partition(":") for line in lines)
    headers = {name.strip().lower(): value.strip() for name, _, value in fields}
    return Reply(status=int(status[1]), headers=headers, body=body, seconds=seconds)


def _plain(error: OSError) -> str:
    """asyncio's own words for several failed addresses are long."""
    if isinstance(error, ConnectionRefusedError) or "refused" in str(error):
        return "nothing listens there (connection refused)"
    return error.strerror or str(error) or type(error).__name__
