"""A TLS upstream: its certificate is verified, and bytes pass as without TLS."""

import asyncio
import socket
import ssl
import subprocess
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from sidecar.config.document import UpstreamSettings, UpstreamTls
from sidecar.config.fields import Address, UpstreamUrl
from sidecar.core.errors import Fault, Reason, UpstreamCause
from sidecar.proxy.upstream import Upstream
from tests.upstreams.scripted import PATIENCE_SECONDS

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=folder)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a key, its certificate, and one of the same key that has expired."""
    folder = tmp_path_factory.mktemp("tls")
    names = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "key.pem")
    openssl(folder, "req", "-x509", *key, *names, "-out", "cert.pem")
    openssl(folder, "x509", "-in", "cert.pem", "-signkey", "key.pem", "-days", "0", "-out", "expired.pem")
    return folder


async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret")
    await reader.read()
    writer.close()


def serving(certificate: Path, name: str = "cert") -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate / f"{name}.pem", certificate / "key.pem")
    return context


def trusting(certificate: Path, name: str = "cert") -> ssl.SSLContext:
    return ssl.create_default_context(cafile=certificate / f"{name}.pem")


async def ask(
    server_tls: ssl.SSLContext | None, tls: ssl.SSLContext | None, host: str = "localhost", serve: Serve = respond
) -> bytes:
    """The body of a response from an upstream on localhost, reached over TLS as `host`."""
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_tls)
    try:
        return await body_of(server.sockets[0].getsockname()[1], tls, host)
    finally:
        server.close()


async def body_of(port: int, tls: ssl.SSLContext | None, host: str = "localhost") -> bytes:
    settings = UpstreamSettings(url=UpstreamUrl(address=Address(host=host, port=port)), tls=UpstreamTls())
    upstream = Upstream(settings, loop=asyncio.get_running_loop(), tls=tls)
    try:
        got = await upstream.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", method="GET")
        return got.take()
    finally:
        upstream.close()


def refuse(listening: socket.socket, tls: ssl.SSLContext) -> None:
    """A handshake that fails, with the alert that asyncio's own server does not send."""
    accepted, _ = listening.accept()
    accepted.settimeout(PATIENCE_SECONDS)
    with accepted, suppress(OSError):
        with suppress(ssl.SSLError):
            tls.wrap_socket(accepted.dup(), server_side=True).read()
        accepted.shutdown(socket.SHUT_WR)
        while accepted.recv(65536):
            pass


async def refused(server_tls: ssl.SSLContext, tls: ssl.SSLContext) -> Fault:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        serving = asyncio.to_thread(refuse, listening, server_tls)
        with pytest.raises(Fault) as raised:
            await asyncio.gather(serving, body_of(listening.getsockname()[1], tls))
    return raised.value


async def test_a_trusted_upstream_answers(certificate: Path) -> None:
    assert await ask(serving(certificate), trusting(certificate)) == b"secret"


async def failure(server_tls: ssl.SSLContext, tls: ssl.SSLContext | None, host: str = "localhost") -> Fault:
    with pytest.raises(Fault) as raised:
        await ask(server_tls, tls, host)
    assert raised.value.reason is Reason.UPSTREAM_UNREACHABLE
    return raised.value


async def test_an_upstream_with_the_wrong_certificate_is_unreachable_and_the_cause_says_what_is_wrong(
    certificate: Path,
) -> None:
    good, old = serving(certificate), serving(certificate, "expired")
    assert (await failure(good, None)).cause is UpstreamCause.TLS_UNKNOWN_ISSUER
    assert (await failure(good, trusting(certificate), "127.0.0.1")).cause is UpstreamCause.TLS_HOSTNAME_MISMATCH
    assert (await failure(old, trusting(certificate, "expired"))).cause is UpstreamCause.TLS_EXPIRED


async def test_an_upstream_that_wants_a_certificate_says_so(certificate: Path) -> None:
    strict = serving(certificate)
    strict.load_verify_locations(certificate / "cert.pem")
    strict.verify_mode = ssl.CERT_REQUIRED
    assert (await refused(strict, trusting(certificate))).cause is UpstreamCause.TLS_CLIENT_CERTIFICATE
    strict.maximum_version = ssl.TLSVersion.TLSv1_2  # Its alert is that of any failed handshake.
    assert (await refused(strict, trusting(certificate))).cause is UpstreamCause.TLS_PROTOCOL


async def test_an_upstream_that_speaks_another_protocol_than_tls_or_no_version_in_common_says_so(
    certificate: Path,
) -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()
        writer.close()

    with pytest.raises(Fault) as raised:
        await ask(None, trusting(certificate), serve=plain)
    assert raised.value.cause is UpstreamCause.TLS_PROTOCOL
    older, newer = serving(certificate), trusting(certificate)
    older.maximum_version, newer.minimum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
    assert (await refused(older, newer)).cause is UpstreamCause.TLS_PROTOCOL
