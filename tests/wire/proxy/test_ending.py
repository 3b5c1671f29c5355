"""Requests that arrived before the listener closes are answered, even if not accepted yet."""

import asyncio
import socket
import ssl
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from sidecar.config.document import Limits, ListenerTls
from sidecar.proxy.tls import ListenerCertificates
from tests.upstreams.scripted import PATIENCE_SECONDS, answering, plain
from tests.wire.proxy.certificates import Authority
from tests.wire.proxy.conftest import Bench, SetUp
from tests.wire.proxy.wire import RawClient, get

CLIENTS = 20


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def connected(bench: Bench) -> list[socket.socket]:
    """Connections that only the kernel knows: the loop does not turn meanwhile."""
    address = bench.server.addresses[0]
    sockets = [socket.socket(socket.AF_UNIX if address.path else socket.AF_INET) for _ in range(CLIENTS)]
    for opened in sockets:
        opened.connect(address.path or (address.host, address.port))
        opened.setblocking(False)
    return sockets


@pytest.mark.parametrize("unix", [False, True])
async def test_connections_that_wait_to_be_accepted_are_answered(set_up: SetUp, unix: bool) -> None:
    bench = await set_up(answering(plain()), unix=unix)
    sockets = connected(bench)
    for opened in sockets:
        opened.sendall(get())
    await bench.server.stop(grace_seconds=PATIENCE_SECONDS)
    for opened in sockets:
        opening = asyncio.open_unix_connection if unix else asyncio.open_connection
        client = RawClient(*await opening(sock=opened))
        response = await client.receive()
        assert (response.status, response.all(b"Connection")) == (200, [b"close"])
        await client.close()


async def test_clients_that_have_yet_to_shake_hands_are_answered(set_up: SetUp, authority: Authority) -> None:
    listener = {**speaking_tls(authority), "first_request_seconds": PATIENCE_SECONDS}
    bench = await set_up(answering(plain()), listener=listener)
    sockets = connected(bench)
    stopping = asyncio.create_task(bench.server.stop(grace_seconds=PATIENCE_SECONDS))
    asking = (ask(opened, authority.trusting()) for opened in sockets)
    assert await asyncio.gather(*asking) == [(200, [b"close"])] * CLIENTS
    await stopping


async def test_a_handshake_that_never_begins_does_not_delay_shutdown(set_up: SetUp, authority: Authority) -> None:
    bench = await set_up(answering(plain()), listener=speaking_tls(authority, limits=Limits(head_timeout=60)))
    sockets = connected(bench)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await bench.server.stop(grace_seconds=60)
    for opened in sockets:
        opened.close()


async def test_the_time_for_a_handshake_follows_the_limits(set_up: SetUp, authority: Authority) -> None:
    bench = await set_up(answering(plain()), listener=speaking_tls(authority, limits=Limits(head_timeout=60)))
    bench.server.reconfigure(replace(bench.snapshot, limits=Limits(head_timeout=0.1)))
    client = await bench.client()
    with suppress(ConnectionResetError):
        assert await client.rest() == b""


def speaking_tls(authority: Authority, **more: object) -> dict[str, object]:
    certificate, key = authority.issue("first")
    return {"tls": ListenerCertificates(ListenerTls(certificate=str(certificate), key=str(key))).current, **more}


async def ask(opened: socket.socket, context: ssl.SSLContext) -> tuple[int, list[bytes]]:
    client = RawClient(*await asyncio.open_connection(sock=opened, ssl=context, server_hostname="localhost"))
    response = await client.ask(get())
    await client.close()
    return response.status, response.all(b"Connection")
