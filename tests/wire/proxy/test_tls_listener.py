"""TLS on the data listener: certificates read again when they change, client certificates, TLS 1.2 at least."""

import asyncio
import logging
import os
import ssl
from contextlib import suppress
from pathlib import Path

import pytest

from sidecar.config.document import Limits, ListenerTls
from sidecar.proxy.tls import ListenerCertificates
from tests.harness.waiting import eventually
from tests.upstreams.scripted import Peer, answering, plain
from tests.wire.proxy.certificates import Authority
from tests.wire.proxy.conftest import Bench, SetUp
from tests.wire.proxy.test_upgrade import ASKING, echo, tunnelling
from tests.wire.proxy.wire import RawClient, get


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def served(authority: Authority, tmp_path: Path) -> ListenerTls:
    """The files of a listener named `first`."""
    certificate, key = authority.issue("first")
    (tmp_path / "tls.crt").write_bytes(certificate.read_bytes())
    (tmp_path / "tls.key").write_bytes(key.read_bytes())
    return ListenerTls(certificate=str(tmp_path / "tls.crt"), key=str(tmp_path / "tls.key"))


def put(files: ListenerTls, certificate: Path, key: Path) -> None:
    """Replace the files, as a secret's volume does."""
    for name, source in ((files.certificate, certificate), (files.key, key)):
        Path(f"{name}.new").write_bytes(source.read_bytes())
        os.replace(f"{name}.new", name)


async def connect(bench: Bench, context: ssl.SSLContext) -> RawClient:
    address = bench.server.addresses[0]
    client = RawClient(
        *await asyncio.open_connection(address.host, address.port, ssl=context, server_hostname="localhost")
    )
    bench.stack.push_async_callback(client.close)
    return client


def name_of(client: RawClient) -> str:
    """The name in the server's certificate."""
    shown = client.writer.get_extra_info("peercert")
    return str(dict(pair for (pair,) in shown["subject"])["commonName"])


def serving(files: ListenerTls, **more: object) -> dict[str, object]:
    return {"tls": ListenerCertificates(files).current, **more}


async def test_requests_pass_over_tls(set_up: SetUp, authority: Authority, served: ListenerTls) -> None:
    bench = await set_up(answering(plain()), listener=serving(served))
    client = await connect(bench, authority.trusting())
    for _ in range(3):
        assert (await client.ask(get())).status == 200
    assert (await client.ask(get("/x", b"Connection: close"))).status == 200
    assert await client.rest() == b""


async def test_a_large_answer_passes_over_tls(set_up: SetUp, authority: Authority, served: ListenerTls) -> None:
    bench = await set_up(answering(plain(bytes(16 << 20))), listener=serving(served))
    client = await connect(bench, authority.trusting())
    assert len((await client.ask(get())).body) == 16 << 20


async def test_a_tunnel_over_tls_ends_with_the_client(set_up: SetUp, authority: Authority, served: ListenerTls) -> None:
    bench = await set_up(tunnelling(echo), listener=serving(served))
    client = await connect(bench, authority.trusting())
    await client.send(get("/chat", *ASKING))
    await client.reader.readuntil(b"\r\n\r\n")
    await client.send(b"hello")
    assert await client.reader.readexactly(5) == b"hello"
    client.writer.close()
    await bench.upstream.peers[0].gone()
    await eventually(lambda: bench.records.finished_ones)


async def test_a_tunnel_over_tls_ends_with_the_upstream(
    set_up: SetUp, authority: Authority, served: ListenerTls
) -> None:
    async def talk(peer: Peer) -> None:
        await peer.send(b"bye")

    bench = await set_up(tunnelling(talk), listener=serving(served))
    client = await connect(bench, authority.trusting())
    await client.send(get("/chat", *ASKING))
    await client.reader.readuntil(b"\r\n\r\n")
    assert await client.rest() == b"bye"


async def test_a_changed_certificate_applies_to_new_connections_and_open_ones_continue(
    set_up: SetUp, authority: Authority, served: ListenerTls
) -> None:
    bench = await set_up(answering(plain()), listener=serving(served))
    before = await connect(bench, authority.trusting())
    put(served, *authority.issue("second"))
    after = await connect(bench, authority.trusting())
    assert (name_of(before), name_of(after)) == ("first", "second")
    assert (await before.ask(get())).status == 200


@pytest.mark.parametrize("broken", ["nonsense", "another's key", "gone"])
async def test_a_broken_new_certificate_keeps_the_old_one_and_is_logged_once(
    set_up: SetUp, authority: Authority, served: ListenerTls, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    bench = await set_up(answering(plain()), listener=serving(served))
    if broken == "nonsense":
        Path(served.certificate).write_text("no certificate at all")
    elif broken == "another's key":
        Path(served.key).write_bytes(authority.issue("second")[1].read_bytes())
    else:
        Path(served.key).unlink()
    for _ in range(3):
        assert name_of(await connect(bench, authority.trusting())) == "first"
    told = [record.getMessage() for record in caplog.records if record.name.startswith("sidecar")]
    assert len(told) == 1
    assert "stays in use" in told[0]
    assert "tls." in told[0]
    put(served, *authority.issue("third"))
    assert name_of(await connect(bench, authority.trusting())) == "third"


async def test_a_client_without_the_certificate_that_is_asked_for_is_not_served(
    set_up: SetUp, authority: Authority, served: ListenerTls
) -> None:
    files = ListenerTls(certificate=served.certificate, key=served.key, client_ca=str(authority.certificate))
    bench = await set_up(answering(plain()), listener=serving(files))
    context = authority.trusting()
    with suppress(ConnectionError, ssl.SSLError):
        client = await connect(bench, context)
        await client.send(get())
        assert await client.rest() == b""
    assert bench.upstream.peers == []
    context.load_cert_chain(*authority.issue("client"))
    assert (await (await connect(bench, context)).ask(get())).status == 200


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_tls_before_1_2_is_refused(set_up: SetUp, authority: Authority, served: ListenerTls) -> None:
    bench = await set_up(answering(plain()), listener=serving(served))
    context = authority.trusting()
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await connect(bench, context)
    context.maximum_version = context.minimum_version = ssl.TLSVersion.TLSv1_2
    assert (await (await connect(bench, context)).ask(get())).status == 200


@pytest.mark.requirement("S7.1")
async def test_a_handshake_that_does_not_end_in_time_frees_its_place(
    set_up: SetUp, authority: Authority, served: ListenerTls, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    limits = Limits(connections=1, head_timeout=2)
    bench = await set_up(answering(plain()), listener=serving(served, limits=limits))
    silent = await bench.client()
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await connect(bench, authority.trusting())
    assert await silent.rest() == b""
    assert (await (await connect(bench, authority.trusting())).ask(get())).status == 200
    assert [record for record in caplog.records if record.exc_info] == []


@pytest.mark.requirement("S7.4")
async def test_a_connection_without_tls_is_closed_quietly(
    set_up: SetUp, served: ListenerTls, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    bench = await set_up(answering(plain()), listener=serving(served))
    client = await bench.client()
    with suppress(ConnectionResetError):
        await client.send(get())
        assert b"HTTP" not in await client.rest()
    assert caplog.records == []


@pytest.mark.parametrize("missing", ["certificate", "key", "client_ca"])
def test_a_missing_file_is_named(served: ListenerTls, missing: str) -> None:
    names = {"certificate": served.certificate, "key": served.key, missing: "/nowhere/at.pem"}
    with pytest.raises(OSError, match=r"at\.pem"):
        ListenerCertificates(ListenerTls(**names))
