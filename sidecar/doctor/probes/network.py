"""Probes over the network: the upstream, ways to bypass the sidecar, and the running sidecar."""

import asyncio
import re
import socket
import ssl
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from time import perf_counter
from typing import Final

from sidecar.config.build.config import Config
from sidecar.config.document import UpstreamSettings
from sidecar.config.fields import Address
from sidecar.core.errors import UpstreamCause
from sidecar.core.units import Clock
from sidecar.doctor.facts import BypassProbe, FileFacts, Location, RunningFacts, Unknown, UpstreamFacts
from sidecar.doctor.probes.host import file_facts, validity_of
from sidecar.proxy.tls import describe, upstream_context
from sidecar.proxy.transport import cause_of

# A minimal HTTP/1.1 client: one request per connection.

_MAX_BYTES: Final = 16 * 1024 * 1024
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})\b")

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """An HTTP response. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float


class ProbeFailed(Exception):
    """There was no connection or no response. The message says briefly why."""


async def connect(address: Address, *, seconds: float, tls: ssl.SSLContext | None = None, name: str = "") -> Streams:
    """Connect within `seconds`; `name` is the server name for TLS. Raises ProbeFailed."""
    try:
        async with asyncio.timeout(seconds):
            if address.path:
                return await asyncio.open_unix_connection(address.path)
            server_name = name or address.host if tls else None
            return await asyncio.open_connection(address.host, address.port, ssl=tls, server_hostname=server_name)
    except TimeoutError:
        raise ProbeFailed(f"no connection within {seconds:g} s") from None
    except ssl.SSLCertVerificationError as error:
        raise ProbeFailed(f"its certificate is not trusted: {error.verify_message}") from error
    except ssl.SSLError as error:
        raise ProbeFailed(f"TLS failed: {error.reason or 'the handshake did not complete'}") from error
    except UnicodeError as error:
        raise ProbeFailed("its host name is invalid") from error
    except OSError as error:
        raise ProbeFailed(_plain(error)) from error


async def exchange(streams: Streams, method: str, target: str, *, host: str, seconds: float) -> Response:
    """Send a request, read the response and close the connection. Raises ProbeFailed."""
    reader, writer = streams
    started = perf_counter()
    try:
        async with asyncio.timeout(seconds):
            fields = f"Host: {host}\r\nUser-Agent: sidecar-doctor\r\nConnection: close\r\n\r\n"
            writer.write(f"{method} {target} HTTP/1.1\r\n{fields}".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            body = b"" if method == "HEAD" else await _rest(reader)
    except TimeoutError:
        raise ProbeFailed(f"no response within {seconds:g} s") from None
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
        raise ProbeFailed("the connection was closed without a response") from None
    finally:
        await close(streams)
    return _parse_response(head, body, perf_counter() - started)


async def close(streams: Streams) -> None:
    streams[1].close()
    with suppress(OSError):
        await streams[1].wait_closed()


async def _rest(reader: asyncio.StreamReader) -> bytes:
    parts, size = list[bytes](), 0
    while size < _MAX_BYTES and (part := await reader.read(65_536)):
        parts.append(part)
        size += len(part)
    return b"".join(parts)


def _parse_response(head: bytes, body: bytes, seconds: float) -> Response:
    first, *lines = head[:-4].split(b"\r\n")
    status = _STATUS.match(first)
    if status is None:
        raise ProbeFailed("the response is not HTTP/1.1")
    fields = (line.decode("latin-1").partition(":") for line in lines)
    headers = {name.strip().lower(): value.strip() for name, _, value in fields}
    return Response(status=int(status[1]), headers=headers, body=body, seconds=seconds)


def _plain(error: OSError) -> str:
    """Return a short text: asyncio's own, for several failed addresses, is long."""
    if isinstance(error, ConnectionRefusedError) or "refused" in str(error):
        return "nothing listens there (connection refused)"
    return error.strerror or str(error) or type(error).__name__


# The probes.

_CONNECT_SECONDS: Final = 1.0
_RESPONSE_SECONDS: Final = 3.0
_SAMPLE = re.compile(r"(sidecar_[a-z0-9_]+(?:\{.*\})?) ([0-9.e+-]+)")
_BUILD: Final = "sidecar_build_info"


async def upstream_facts(settings: UpstreamSettings, clock: Clock) -> UpstreamFacts | Unknown:
    """Connect as the sidecar does, and send one HEAD for the Date. `clock` gives Unix seconds."""
    started = perf_counter()
    try:
        tls = None if settings.tls is None else upstream_context(settings.tls)
        name = settings.tls.server_name if settings.tls else ""
        streams = await connect(settings.address, seconds=settings.connect_timeout, tls=tls, name=name)
    except ProbeFailed as error:
        cause = cause_of(error.__cause__) if error.__cause__ is not None else UpstreamCause.CONNECT
        return Unknown(reason=f"{error} (cause: {cause})")
    except OSError as error:
        return Unknown(reason=describe(error))
    seconds = perf_counter() - started
    ends_at = _certificate_end(streams)
    return UpstreamFacts(
        seconds=seconds, certificate_ends_at=ends_at, clock_ahead=await _clock_ahead(streams, settings, clock)
    )


def _certificate_end(streams: Streams) -> float | None:
    tls = streams[1].get_extra_info("ssl_object")
    der = tls.getpeercert(True) if isinstance(tls, ssl.SSLObject) else None
    try:
        return validity_of(der)[1] if der else None
    except ValueError:
        return None


async def _clock_ahead(streams: Streams, settings: UpstreamSettings, clock: Clock) -> float | Unknown:
    target, host = f"{settings.add_prefix}/", settings.authority or "localhost"
    before = clock.seconds()
    try:
        response = await exchange(streams, "HEAD", target, host=host, seconds=_RESPONSE_SECONDS)
        at = parsedate_to_datetime(response.headers["date"]).timestamp()
    except ProbeFailed as error:
        return Unknown(reason=str(error))
    except (KeyError, ValueError):
        return Unknown(reason="its responses have no Date header")
    # A Date is truncated to whole seconds, and the time between request and response is not an error of the clock.
    return max(at - clock.seconds(), 0.0) or min(at + 1 - before, 0.0)


async def probe_bypass(config: Config, own: Iterable[str]) -> BypassProbe | Unknown:
    """Try the upstream's port on this host's other addresses. own: these addresses, without loopback ones."""
    address = config.upstream.address
    if address.path:
        file = await asyncio.to_thread(file_facts, address.path)
        return BypassProbe(location="unix", socket=file if isinstance(file, FileFacts) else None)
    own = tuple(own)
    try:
        found = await asyncio.get_running_loop().getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return Unknown(reason=f"{address.host}: {error}")
    location = _location([str(entry[4][0]) for entry in found], own)
    if location != "loopback":
        return BypassProbe(location=location)
    wanted = [Address(host=host, port=address.port) for host in own]
    mine = {listener for listener in _listeners(config) if listener.port == address.port}
    tried = [one for one in wanted if one not in mine]
    open_ports = await asyncio.gather(*map(_accepts, tried))
    reachable = tuple(one for one, is_open in zip(tried, open_ports, strict=True) if is_open)
    return BypassProbe(location="loopback", tried=tuple(one.host for one in tried), reachable=reachable)


def _location(found: Iterable[str], own: Iterable[str]) -> Location:
    places = [ip_address(text.partition("%")[0]) for text in found]
    if all(place.is_loopback or place.is_unspecified for place in places):
        return "loopback"
    return "this host" if {str(place) for place in places} & set(own) else "elsewhere"


def _listeners(config: Config) -> list[Address]:
    extra = (config.ops, config.admin and config.admin.listen, config.decision and config.decision.listen)
    return [*config.listen, *(address for addresses in extra for address in addresses or ())]


async def _accepts(address: Address) -> bool:
    try:
        await close(await connect(address, seconds=_CONNECT_SECONDS))
    except ProbeFailed:
        return False
    return True


async def running_facts(addresses: Sequence[Address] | None) -> RunningFacts | Unknown:
    """Query the ops listener, at the first of its addresses."""
    if addresses is None:
        return Unknown(reason="no ops listener is configured (`ops`)")
    ops = addresses[0]
    if not ops.path and not ops.port:
        return Unknown(reason="the ops listener has no fixed port")
    try:
        ready = await _get(ops, "/readyz?verbose")
        metrics = await _get(ops, "/metrics")
    except ProbeFailed as error:
        return Unknown(reason=f"the ops listener at {ops}: {error}")
    samples = _samples(metrics.body.decode("utf-8", "replace"))
    if ready.status not in (200, 503) or not any(sample.startswith(_BUILD) for sample in samples):
        return Unknown(reason=f"the server at {ops} is not a sidecar's ops listener")
    lines = ready.body.decode("utf-8", "replace").splitlines()
    return RunningFacts(seconds=ready.seconds, ready=ready.status == 200, lines=tuple(lines), metrics=samples)


async def _get(ops: Address, target: str) -> Response:
    wildcards = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - a wildcard is listened on, but not connected to
    address = Address(host=wildcards.get(ops.host, ops.host), port=ops.port, path=ops.path)
    streams = await connect(address, seconds=_RESPONSE_SECONDS)
    return await exchange(streams, "GET", target, host="localhost", seconds=_RESPONSE_SECONDS)


def _samples(text: str) -> dict[str, float]:
    found = (_SAMPLE.fullmatch(line) for line in text.splitlines())
    samples: dict[str, float] = {}
    for sample in filter(None, found):
        with suppress(ValueError):
            samples[sample[1]] = float(sample[2])
    return samples
