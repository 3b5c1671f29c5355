"""Framing, through the real process. The corpus has the same attacks in more disguises."""

import gzip
import hashlib
import os
import time
from collections import Counter

import pytest

from tests.harness.framing import AMBIGUOUS, BROKEN_CHUNKS, CHUNKED, name_of
from tests.harness.running import StartSidecar
from tests.harness.wire import request_bytes
from tests.upstreams.scripted import Peer, answering, plain
from tests.wire.proxy.wire import RawClient, Received, get
from tests.wire.security.behind import GROWTH_BYTES, MIB, behind, forget_peak, peak
from tests.wire.security.site import Site

SECOND = request_bytes("GET", "/public/second")


def post(*fields: bytes, version: bytes = b"1.1", target: bytes = b"/public/x") -> bytes:
    return b"\r\n".join([b"POST " + target + b" HTTP/" + version, b"Host: api.test", *fields, b"", b""])


def refused(site: Site, raw: bytes) -> None:
    """One 400 that ends the connection; U=0."""
    with site.sidecar.connect() as connection:
        response = connection.exchange(raw)
        site.check_ours(response, 400, [])
        assert response.header("Connection") == "close"
        assert connection.rest() == b""
    assert site.upstream.requests() == []


@pytest.mark.requirement("S3.1")
@pytest.mark.parametrize("fields", AMBIGUOUS, ids=name_of)
def test_ambiguous_framing_is_400_and_the_end(site: Site, fields: tuple[bytes, ...]) -> None:
    refused(site, post(*fields) + b"0\r\n\r\n" + SECOND)


@pytest.mark.requirement("S3.1")
def test_chunked_in_http_1_0_is_400_and_the_end(site: Site) -> None:
    refused(site, post(CHUNKED, version=b"1.0") + b"0\r\n\r\n" + SECOND)


@pytest.mark.requirement("S3.2")
@pytest.mark.parametrize("body", BROKEN_CHUNKS)
def test_broken_chunks_are_400_and_the_end(site: Site, body: bytes) -> None:
    with site.sidecar.connect() as connection:
        assert connection.exchange(post(CHUNKED) + body + SECOND).status == 400
        assert connection.rest() == b""
    assert [request.target for request in site.upstream.requests()] == []


@pytest.mark.requirement("S3.2")
@pytest.mark.parametrize(
    "body",
    [
        b"00000000000000001\r\na\r\n0\r\n\r\n",
        b"10000000000000001\r\na\r\n0\r\n\r\n",
        b"1;" + b"x" * 65536 + b"\r\na\r\n0\r\n\r\n",
        *[b"1\r\na\r\n0\r\n" + field + b"\r\n\r\n" for field in (b"Content-Length: 9", CHUNKED, b"Host: evil.test")],
    ],
)
def test_odd_chunks_are_400_or_are_normalised(site: Site, body: bytes) -> None:
    with site.sidecar.connect() as connection:
        response = connection.exchange(post(CHUNKED) + body)
    assert response.status in (200, 400)
    seen = site.upstream.requests()
    assert len(seen) == (response.status == 200)
    for request in seen:
        assert request.body == b"a"
        assert (request.all("Host"), request.all("Content-Length")) == (["api.test"], [])


@pytest.mark.requirement("S3.3")
def test_what_follows_a_bad_request_never_runs(site: Site) -> None:
    refused(site, b"GET /public/x HTTP/1.1\r\nHost: api.test\r\nBad Name: 1\r\n\r\n" + SECOND)


@pytest.mark.requirement("S3.4")
@pytest.mark.parametrize("willing", [True, False])
async def test_a_waiting_client_gets_100_continue_within_a_second(start_sidecar: StartSidecar, willing: bool) -> None:
    async def script(peer: Peer) -> None:
        while True:
            await peer.head()
            if willing:
                await peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            await peer.exactly(3)
            await peer.send(plain(b"done"))

    async with behind(start_sidecar, script) as stage:
        seconds = []
        for _ in range(5):
            client = await stage.client()
            began = time.perf_counter()
            await client.send(post(b"Content-Length: 3", b"Expect: 100-continue"))
            assert (await client.receive()).status_line == b"HTTP/1.1 100 Continue"
            seconds.append(time.perf_counter() - began)
            await client.send(b"abc")
            assert (await client.receive()).body == b"done"
            await client.close()
        # The quickest of them: a busy machine holds up some, not all.
        assert min(seconds) < 1


@pytest.mark.requirement("S3.4")
async def test_http_1_0_gets_no_interim_response(start_sidecar: StartSidecar) -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    async with behind(start_sidecar, answering(interim + plain(b"done"))) as stage:
        client = await stage.client()
        await client.send(post(b"Content-Length: 3", b"Expect: 100-continue", version=b"1.0") + b"abc")
        response = await client.rest()
        assert response.startswith(b"HTTP/1.1 200 OK\r\n")
        assert response.count(b"HTTP/1.1") == 1
        await client.close()


EVIL = plain(b"evil")
MISBEHAVIOURS = [
    lambda body: plain(body),
    lambda body: plain(body) + EVIL,
    lambda body: plain(body, b"Content-Length: 1"),
    lambda body: plain(body, b"Transfer-Encoding: chunked"),
    lambda body: plain(body) + b"x",
    lambda body: b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n" + EVIL,
    lambda body: plain(body, b"X: a\0b"),
    lambda body: plain(body, b"X: a\rb"),
    lambda body: b"HTTP/1.1 204 No Content\r\n\r\n" + EVIL,
    lambda body: b"HTTP/1.1 103 Early Hints\r\n\r\n" + plain(body) + b"\r\n" + EVIL,
]


@pytest.mark.requirement("S3.5")
async def test_every_client_gets_its_own_response_over_1000_alternating_requests(
    start_sidecar: StartSidecar,
) -> None:
    async def script(peer: Peer) -> None:
        while True:
            target = (await peer.request()).split(b" ")[1]
            number = int(target.rpartition(b"/")[2])
            await peer.send(MISBEHAVIOURS[number % 7 * number % len(MISBEHAVIOURS)](target))

    async with behind(start_sidecar, script) as stage:
        clients = [await stage.client() for _ in range(4)]
        statuses = Counter[int]()
        for number in range(1000):
            target = f"/public/{number}"
            response = await own_answer(clients[number % len(clients)], get(target))
            statuses[response.status] += 1
            assert response.body == target.encode() or response.status in (204, 502), response
        for client in clients:
            await client.close()
    assert statuses.keys() == {200, 204, 502}
    assert statuses[200] > 400


async def own_answer(client: RawClient, raw: bytes) -> Received:
    """Past interim answers."""
    response = await client.ask(raw)
    while response.status < 200:
        response = await client.receive()
    return response


@pytest.mark.requirement("S3.6")
@pytest.mark.parametrize(
    "body",
    [gzip.compress(os.urandom(100_000)), b"\x1f\x8b\x08 no gzip at all", gzip.compress(bytes(MIB)) * 500],
    ids=["valid", "invalid", "500-mib-bomb"],
)
async def test_coded_bodies_pass_and_are_never_unpacked(start_sidecar: StartSidecar, body: bytes) -> None:
    digest = hashlib.sha256(body).digest()
    coding = b"Content-Encoding: gzip"
    arrived: list[bytes] = []

    async def script(peer: Peer) -> None:
        while b"Encoding: gzip" in await peer.head():
            arrived.append(hashlib.sha256(await peer.exactly(len(body))).digest())
            await peer.send(plain(body, coding))

    async with behind(start_sidecar, script) as stage:
        client = await stage.client()
        before = forget_peak(stage.sidecar)
        response = await client.ask(post(coding, b"Content-Length: %d" % len(body)) + body)
        await client.close()
        assert peak(stage.sidecar) - before < GROWTH_BYTES
    assert arrived == [digest]
    assert hashlib.sha256(response.body).digest() == digest
    assert response.all(b"Content-Encoding") == [b"gzip"]


@pytest.mark.requirement("S3.7")
def test_head_204_and_304_carry_no_body_and_the_next_answer_is_right(site: Site) -> None:
    length = b"Content-Length: 1234\r\n"
    with site.sidecar.connect() as connection:
        for method, status, field in [
            ("HEAD", b"200 OK", length),
            ("GET", b"204 No Content", b""),
            ("GET", b"304 Not Modified", length),
        ]:
            site.upstream.plan(b"HTTP/1.1 " + status + b"\r\n" + field + b"\r\n")
            response = connection.ask(method, "/public/x")
            assert (response.status, response.body) == (int(status[:3]), b"")
            assert response.all("Content-Length") == (["1234"] if field else [])
            assert connection.ask("GET", "/public/next").json()["target"] == "/public/next"


@pytest.mark.requirement("S3.7")
def test_pipelined_requests_are_answered_in_order(site: Site) -> None:
    targets = [f"/public/{number}" for number in range(60)]
    with site.sidecar.connect() as connection:
        connection.send(b"".join(request_bytes("GET", target) for target in targets))
        assert [connection.receive().json()["target"] for _ in targets] == targets
