"""The upstream, the ways around the sidecar, and the sidecar that runs, as the network shows them."""

import asyncio
import re
import socket
import ssl
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from time import perf_counter
from typing import Final

from sidecar.config.build.config import Config
from sidecar.config.document import UpstreamSettings
from sidecar.config.fields import Address
from sidecar.doctor.facts import BypassProbe, FileFacts, Location, RunningSeen, Unknown, UpstreamSeen
from sidecar.doctor.probes.host import file_seen, validity_of
from sidecar.proxy.tls import describe, upstream_context

# One HTTP/1.1 request on a connection of its own.


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


_AROUND_SECONDS: Final = 1.0
_ANSWER_SECONDS: Final = 3.0
_SAMPLE = re.compile(r"(sidecar_[a-z0-9_]+(?:\{.*\})?) ([0-9.e+-]+)")
_BUILD: Final = "sidecar_build_info"

Clock = Callable[[], float]


async def upstream_seen(settings: UpstreamSettings, clock: Clock) -> UpstreamSeen | Unknown:
    """A connection as the sidecar makes it, and one HEAD on it, for its Date. clock: Unix seconds."""
    started = perf_counter()
    try:
        tls = None if settings.tls is None else upstream_context(settings.tls)
        name = settings.tls.server_name if settings.tls else ""
        streams = await connect(settings.address, seconds=settings.connect_timeout, tls=tls, name=name)
    except NoReply as error:
        return Unknown(reason=str(error))
    except OSError as error:
        return Unknown(reason=describe(error))
    seconds = perf_counter() - started
    ends_at = _certificate_end(streams)
    return UpstreamSeen(
        seconds=seconds, certificate_ends_at=ends_at, clock_ahead=await _clock_ahead(streams, settings, clock)
    )


def _certificate_end(streams: Streams) -> float | None:
    spoken = streams[1].get_extra_info("ssl_object")
    shown = spoken.getpeercert(True) if isinstance(spoken, ssl.SSLObject) else None
    try:
        return validity_of(shown)[1] if shown else None
    except ValueError:
        return None


async def _clock_ahead(streams: Streams, settings: UpstreamSettings, clock: Clock) -> float | Unknown:
    target, host = f"{settings.add_prefix}/", settings.authority or "localhost"
    before = clock()
    try:
        reply = await exchange(streams, "HEAD", target, host=host, seconds=_ANSWER_SECONDS)
        at = parsedate_to_datetime(reply.headers["date"]).timestamp()
    except NoReply as error:
        return Unknown(reason=str(error))
    except (KeyError, ValueError):
        return Unknown(reason="its answers carry no Date")
    # A Date is cut off to whole seconds; what lies between asking and answer is nobody's fault.
    return max(at - clock(), 0.0) or min(at + 1 - before, 0.0)


async def way_around(config: Config, own: Iterable[str]) -> BypassProbe | Unknown:
    """own: this host's addresses, without loopback ones."""
    address = config.upstream.address
    if address.path:
        file = await asyncio.to_thread(file_seen, address.path)
        return BypassProbe(location="unix", socket=file if isinstance(file, FileFacts) else None)
    own = tuple(own)
    try:
        found = await asyncio.get_running_loop().getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return Unknown(reason=f"{address.host}: {error}")
    location = _whereabouts([str(entry[4][0]) for entry in found], own)
    if location != "loopback":
        return BypassProbe(location=location)
    wanted = [Address(host=host, port=address.port) for host in own]
    mine = {listener for listener in _listeners(config) if listener.port == address.port}
    tried = [one for one in wanted if one not in mine]
    responses = await asyncio.gather(*map(_responses, tried))
    answered = tuple(one for one, yes in zip(tried, responses, strict=True) if yes)
    return BypassProbe(location="loopback", tried=tuple(one.host for one in tried), answered=answered)


def _whereabouts(found: Iterable[str], own: Iterable[str]) -> Location:
    places = [ip_address(text.partition("%")[0]) for text in found]
    if all(place.is_loopback or place.is_unspecified for place in places):
        return "loopback"
    return "this host" if {str(place) for place in places} & set(own) else "elsewhere"


def _listeners(config: Config) -> list[Address]:
    extra = (config.ops, config.admin and config.admin.listen, config.decision and config.decision.listen)
    return [config.listen, *(address for address in extra if address)]


async def _responses(address: Address) -> bool:
    try:
        await close(await connect(address, seconds=_AROUND_SECONDS))
    except NoReply:
        return False
    return True


async def running_seen(ops: Address | None) -> RunningSeen | Unknown:
    """What the ops listener says."""
    if ops is None:
        return Unknown(reason="there is no ops listener to ask (`ops` in the configuration)")
    if not ops.path and not ops.port:
        return Unknown(reason="the ops listener has no fixed port")
    try:
        ready = await _ask(ops, "/readyz?verbose")
        metrics = await _ask(ops, "/metrics")
    except NoReply as error:
        return Unknown(reason=f"the ops listener at {ops}: {error}")
    samples = _samples(metrics.body.decode("utf-8", "replace"))
    if ready.status not in (200, 503) or not any(sample.startswith(_BUILD) for sample in samples):
        return Unknown(reason=f"what answers at {ops} is no sidecar's ops listener")
    lines = ready.body.decode("utf-8", "replace").splitlines()
    return RunningSeen(seconds=ready.seconds, ready=ready.status == 200, lines=tuple(lines), metrics=samples)


async def _ask(ops: Address, target: str) -> Reply:
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what is bound to, turned into what to ask
    address = Address(host=everywhere.get(ops.host, ops.host), port=ops.port, path=ops.path)
    streams = await connect(address, seconds=_ANSWER_SECONDS)
    return await exchange(streams, "GET", target, host="localhost", seconds=_ANSWER_SECONDS)


def _samples(text: str) -> dict[str, float]:
    found = (_SAMPLE.fullmatch(line) for line in text.splitlines())
    samples: dict[str, float] = {}
    for sample in filter(None, found):
        with suppress(ValueError):
            samples[sample[1]] = float(sample[2])
    return samples
