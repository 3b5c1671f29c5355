"""The PROXY protocol on the data listener: the client's address, split headers, and refusals."""

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sidecar.config.document import Limits, ListenerTls
from sidecar.config.fields import Address
from sidecar.proxy.tls import ListenerCertificates
from tests.harness.proxy_headers import BAD, GOOD, line
from tests.harness.wire import TIMEOUT_SECONDS
from tests.upstreams.scripted import answering, plain
from tests.wire.proxy.certificates import Authority
from tests.wire.proxy.conftest import Bench, SetUp
from tests.wire.proxy.wire import RawClient, get

PROXY = "127.0.0.1"
STRANGER = "127.0.0.9"
CLOSING = get("/x", b"Connection: close")


def behind(proxy: Callable[[str], bool] = PROXY.__eq__, **more: Any) -> dict[str, Any]:
    return {"proxy_protocol": True, "trusts": proxy, **more}


def clients(bench: Bench) -> list[str]:
    """The client of each finished request."""
    return [record.decision.client_address for record in bench.records.finished_ones if record.decision is not None]


async def is_turned_away(bench: Bench, source: str, raw: bytes = b"") -> bool:
    """Whether a connection from there is reset, without a byte. In a thread, so that it connects first."""

    def connect() -> bool:
        address = bench.server.addresses[0]
        try:
            with socket.create_connection((address.host, address.port), TIMEOUT_SECONDS, (source, 0)) as client:
                client.sendall(raw)
                return client.recv(1) is None
        except ConnectionError:
            return True

    return await asyncio.to_thread(connect)


async def is_reset(client: RawClient) -> bool:
    """Whether it ends with a reset, without a byte."""
    try:
        return await client.rest() is None
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("name", GOOD)
async def test_the_header_gives_the_client_and_the_request_follows_in_the_same_read(set_up: SetUp, name: str) -> None:
    bench = await set_up(answering(plain()), listener=behind())
    header, told = GOOD[name]
    client = await bench.client()
    assert (await client.ask(header + get())).status == 200
    assert (await client.ask(CLOSING)).status == 200
    assert await client.rest() == b""
    assert clients(bench) == [told or PROXY] * 2
    assert bench.records.turned == []


@pytest.mark.parametrize("name", ["v1 TCP4", "v1 UNKNOWN", "v2 TCP6 with TLVs", "v2 LOCAL"])
async def test_the_header_may_come_in_any_two_pieces(set_up: SetUp, name: str) -> None:
    bench = await set_up(answering(plain()), listener=behind())
    header, told = GOOD[name]
    raw = header + CLOSING
    halves = [(raw[:size], raw[size:]) for size in range(1, len(header) + 2)]
    opened = [await bench.client() for _ in halves]
    for client, (first, _) in zip(opened, halves, strict=True):
        await client.send(first)
    await (await bench.client()).ask(raw)  # By then the first halves have been read.
    for client, (_, second) in zip(opened, halves, strict=True):
        assert (await client.ask(second)).status == 200
    assert clients(bench) == [told or PROXY] * (len(halves) + 1)


async def test_the_header_may_come_byte_by_byte(set_up: SetUp) -> None:
    bench = await set_up(answering(plain()), listener=behind())
    client = await bench.client()
    client.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in GOOD["v2 TCP4 with TLVs"][0] + get()[:-1]:
        await client.send(bytes([byte]))
        await asyncio.sleep(0)
    assert (await client.ask(b"\n")).status == 200
    assert clients(bench) == ["192.0.2.7"]


@pytest.mark.requirement("S7.4")
@pytest.mark.parametrize("name", BAD)
async def test_an_invalid_header_resets_the_connection_and_is_counted(set_up: SetUp, name: str) -> None:
    bench = await set_up(answering(plain()), listener=behind())
    client = await bench.client()
    await client.send(BAD[name])
    assert await is_reset(client)
    assert bench.records.turned == ["proxy_protocol"]
    assert bench.records.finished_ones == []


@pytest.mark.requirement("S7.4")
async def test_the_log_says_why_without_logging_the_bytes(set_up: SetUp, caplog: pytest.LogCaptureFixture) -> None:
    bench = await set_up(answering(plain()), listener=behind())
    for _ in range(3):
        client = await bench.client()
        await client.send(get("/secret"))
        assert await is_reset(client)
    assert await is_turned_away(bench, STRANGER)
    await bench.server.stop(grace_seconds=0)
    told = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert [text.partition(" in the last")[0] for text in told] == [
        "sidecar: 3 connections refused (proxy_protocol: malformed header)",
        "sidecar: 1 connection refused (proxy_protocol: the peer is not in trusted_proxies)",
    ]
    assert told[0].endswith(PROXY)
    assert told[1].endswith(STRANGER)
    assert "secret" not in caplog.text


@pytest.mark.requirement("S5.3")
async def test_a_header_from_an_untrusted_peer_is_ignored(set_up: SetUp) -> None:
    bench = await set_up(answering(plain()), listener=behind())
    assert await is_turned_away(bench, STRANGER, GOOD["v1 TCP4"][0] + get())
    assert bench.records.turned == ["proxy_protocol"]
    assert bench.upstream.peers == []


async def test_trust_follows_a_reload(set_up: SetUp) -> None:
    trusted = {PROXY}
    bench = await set_up(answering(plain()), listener=behind(lambda peer: peer in trusted))
    trusted.clear()
    assert await is_turned_away(bench, PROXY, GOOD["v1 TCP4"][0] + get())
    trusted.add(PROXY)
    assert (await bench.ask(GOOD["v1 TCP4"][0] + get())).status == 200


@pytest.mark.requirement("S7.1")
@pytest.mark.parametrize("begun", [b"", b"PROXY TCP4 ", GOOD["v2 TCP4"][0][:20]])
async def test_a_header_that_does_not_come_in_time_frees_its_place(set_up: SetUp, begun: bytes) -> None:
    bench = await set_up(answering(plain()), listener=behind(limits=Limits(connections=1, head_timeout=2)))
    slow = await bench.client()
    await slow.send(begun)
    assert await is_reset(slow)
    assert bench.records.turned == ["proxy_protocol"]
    assert (await bench.ask(GOOD["v1 TCP4"][0] + get())).status == 200


async def test_a_connection_without_a_byte_is_a_health_check_and_not_counted(
    set_up: SetUp, caplog: pytest.LogCaptureFixture
) -> None:
    bench = await set_up(answering(plain()), listener=behind(limits=Limits(connections=1)))
    client = await bench.client()
    client.writer.write_eof()
    assert await client.rest() == b""
    assert (await bench.ask(GOOD["v2 LOCAL"][0] + get())).status == 200
    assert bench.records.turned == []
    assert caplog.records == []


async def test_a_header_that_is_cut_short_is_refused(set_up: SetUp) -> None:
    bench = await set_up(answering(plain()), listener=behind())
    client = await bench.client()
    await client.send(b"PROXY TCP4 192.")
    client.writer.write_eof()
    assert await is_reset(client)
    assert bench.records.turned == ["proxy_protocol"]


@pytest.mark.requirement("S7.1")
async def test_the_limit_by_address_counts_clients_not_the_proxy(set_up: SetUp) -> None:
    bench = await set_up(answering(plain()), listener=behind(limits=Limits(connections_per_address=2)))
    served = [await bench.client() for _ in range(6)]
    for number, client in enumerate(served):
        assert (await client.ask(line(f"192.0.2.{number % 3}") + get())).status == 200
    refused = await bench.client()
    await refused.send(line("192.0.2.1") + get())
    assert await is_reset(refused)
    assert bench.records.turned == ["connections_per_address"]
    await served[1].ask(CLOSING)
    assert await served[1].rest() == b""
    assert (await bench.ask(line("192.0.2.1") + get())).status == 200


async def test_connections_without_a_known_client_count_for_the_total_limit(set_up: SetUp) -> None:
    bench = await set_up(answering(plain()), listener=behind(limits=Limits(connections=2)))
    waiting = [await bench.client() for _ in range(2)]
    for client in waiting:
        await client.send(b"PROXY ")
    assert await (await bench.client()).rest() == b""
    assert bench.records.turned == ["connections"]
    assert (await waiting[0].ask(GOOD["v1 TCP4"][0][6:] + get())).status == 200


async def test_the_header_comes_before_the_tls_handshake(set_up: SetUp, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("localhost")
    files = ListenerTls(certificate=str(certificate), key=str(key))
    bench = await set_up(answering(plain()), listener=behind(tls=ListenerCertificates(files).current))
    for header, told in (GOOD["v1 TCP4"], GOOD["v2 TCP6 with TLVs"], GOOD["v2 LOCAL"]):
        answer = await asyncio.to_thread(_over_tls, bench.server.addresses[0], header, authority.trusting())
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert clients(bench)[-1] == (told or PROXY)


def _over_tls(address: Address, header: bytes, context: ssl.SSLContext) -> bytes:
    """The response to one request. The header and the first bytes of the handshake are sent together."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    received = b""
    with socket.create_connection((address.host, address.port), timeout=TIMEOUT_SECONDS) as client:
        pending, asked = header, False
        while not received:
            try:
                if not asked:
                    tls.do_handshake()
                    tls.write(CLOSING)
                    asked = True
                received = tls.read(65536)
            except ssl.SSLWantReadError:
                client.sendall(pending + outgoing.read())
                pending = b""
                incoming.write(client.recv(65536))
    return received


async def test_a_unix_socket_is_protected_by_its_mode(set_up: SetUp) -> None:
    bench = await set_up(answering(plain()), unix=True, listener=behind(lambda peer: False))
    assert (await bench.ask(GOOD["v1 TCP4"][0] + get())).status == 200
    assert (await bench.ask(GOOD["v2 LOCAL"][0] + get())).status == 200
    assert clients(bench) == ["192.0.2.7", ""]
    client = await bench.client()
    await client.send(get())
    with suppress(ConnectionResetError):
        assert await client.rest() == b""
    assert bench.records.turned == ["proxy_protocol"]


async def test_the_sidecars_own_probe_needs_no_header(set_up: SetUp) -> None:
    bench = await set_up(answering(plain()), listener=behind())
    assert await bench.server.answers()
    assert bench.records.turned == []


async def test_stopping_closes_connections_that_sent_nothing(set_up: SetUp) -> None:
    bench = await set_up(answering(plain()), listener=behind())
    silent = await bench.client()
    await bench.server.stop(grace_seconds=0)
    with suppress(ConnectionResetError):
        assert await silent.rest() == b""
