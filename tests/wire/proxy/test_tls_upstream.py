"""A TLS upstream: its certificate is checked, and bytes pass as they do without."""

import asyncio
import ssl
import subprocess
from pathlib import Path

import pytest

from sidecar.config.document import UpstreamSettings, UpstreamTls
from sidecar.config.fields import Address, UpstreamUrl
from sidecar.core.errors import Fault, Reason
from sidecar.proxy.upstream import Upstream


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", folder / "key.pem", "-out", folder / "cert.pem"]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", *names, *files],
        check=True,
        capture_output=True,
    )
    return folder


async def ask(certificate: Path, host: str, trusted: bool) -> bytes:
    """The body of an answer from a TLS upstream on localhost, reached as `host`."""

    async def response(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret")
        await reader.read()
        writer.close()

    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    server = await asyncio.start_server(response, "127.0.0.1", 0, ssl=serving)
    port = server.sockets[0].getsockname()[1]
    tls = ssl.create_default_context(cafile=certificate / "cert.pem") if trusted else None
    settings = UpstreamSettings(url=UpstreamUrl(address=Address(host=host, port=port)), tls=UpstreamTls())
    upstream = Upstream(settings, loop=asyncio.get_running_loop(), tls=tls)
    try:
        got = await upstream.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", method="GET")
        return got.take()
    finally:
        upstream.close()
        server.close()


async def test_a_trusted_upstream_answers(certificate: Path) -> None:
    assert await ask(certificate, "localhost", trusted=True) == b"secret"


@pytest.mark.parametrize(("host", "trusted"), [("localhost", False), ("127.0.0.1", True)])
async def test_an_upstream_with_the_wrong_certificate_is_unreachable(
    certificate: Path, host: str, trusted: bool
) -> None:
    with pytest.raises(Fault) as raised:
        await ask(certificate, host, trusted)
    assert raised.value.reason is Reason.UPSTREAM_UNREACHABLE
