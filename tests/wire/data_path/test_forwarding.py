"""Route options about forwarding."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.harness.recording import Upstream
from tests.harness.running import Sidecar, StartSidecar
from tests.harness.wire import request_bytes
from tests.upstreams.scripted import Peer, ScriptedUpstream, plain
from tests.wire.proxy.wire import get, post
from tests.wire.security.behind import Behind, behind

CONFIG = """\
listen: 127.0.0.1:0
upstream: {url: http://127.0.0.1:1, answer_timeout: 10m}
store: sqlite:///nowhere
limits: {body: 100B}
routes:
  - "* /usual": {public: true}
  - GET /slow: {public: true, answer_timeout: 200ms}
  - POST /small: {public: true, body: 10B}
  - path: /large
    body: "off"
    routes:
      - POST: {public: true}
      - POST /but/not/here: {public: true, body: 10B}
  - GET /api/**: {public: true, strip_prefix: /api}
  - GET /api/v2/**: {public: true, strip_prefix: ""}
"""


PREFIXED = {
    "/api": "/",
    "/api?q=/api": "/?q=/api",
    "/api/": "/",
    "/api/x?a=1&b": "/x?a=1&b",
    "/api/api/x": "/api/x",
    "/api/a%20b": "/a%20b",
    "/api/a//b": "/a//b",
    "/api/v2/x": "/api/v2/x",
    "/%61pi/x": None,
    "/api%2Fx": None,
    "/api//x": None,
    "/api/../api/x": None,
    "/api/a/../../api/x": None,
    "/api;v=1/x": None,
}


async def slow(peer: Peer) -> None:
    """Responds to all but requests for /slow."""
    while b"/slow" not in await peer.request():
        await peer.send(plain())
    await peer.reader.read()


@pytest.fixture
async def stage(start_sidecar: StartSidecar) -> AsyncIterator[Behind]:
    async with behind(start_sidecar, slow, config=CONFIG) as stage:
        yield stage


async def test_a_route_waits_for_its_own_time_on_a_connection_that_another_has_used(stage: Behind) -> None:
    client = await stage.client()
    for _ in range(2):
        assert (await client.ask(get("/usual"))).status == 200
    assert (await client.ask(get("/slow"))).status == 504
    assert (await client.ask(get("/usual"))).status == 200
    await stage.upstream.peers[0].gone()
    await client.close()


BESIDE = (
    CONFIG
    + """\
  - "* /billing/**": {public: true, upstream: billing}
  - GET /files: {public: true, upstream: files}
upstreams:
  billing: {url: "http://127.0.0.1:BILLING", strip_prefix: /billing, add_prefix: /v2, host: upstream, via: toll}
  files: {url: "http://127.0.0.1:1"}
"""
)


async def saying_its_line(peer: Peer) -> None:
    while True:
        await peer.send(plain((await peer.request()).partition(b"\r\n")[0]))


async def test_a_route_is_forwarded_to_the_upstream_that_it_names_and_over_its_connections(
    start_sidecar: StartSidecar,
) -> None:
    billing = ScriptedUpstream(saying_its_line)
    await billing.start()
    async with behind(
        start_sidecar, saying_its_line, config=BESIDE.replace("BILLING", str(billing.address.port))
    ) as stage:
        client = await stage.client()
        for _ in range(3):
            response = await client.ask(get("/billing/x?y"))
            assert response.body == b"GET /v2/x?y HTTP/1.1"
            assert response.all(b"Via") == [b"1.1 toll"]
            assert (await client.ask(post(b"z", target="/billing"))).body == b"POST /v2/ HTTP/1.1"
            response = await client.ask(get("/usual"))
            assert (response.body, response.all(b"Via")) == (b"GET /usual HTTP/1.1", [])
        assert (len(billing.seen), len(stage.upstream.seen)) == (1, 1)
        assert b"\r\nHost: 127.0.0.1:%d\r\n" % billing.address.port in billing.seen[0]
        assert b"\r\nHost: api.test\r\n" in stage.upstream.seen[0]
        assert (await client.ask(get("/files"))).status == 502
        metrics = await asyncio.to_thread(stage.sidecar.metrics)
        await client.close()
    await billing.stop()
    failures = 'sidecar_upstream_failures_total{cause="refused",reason="upstream_unreachable"'
    assert [line for line in metrics.splitlines() if line.startswith(failures)] == [
        failures + "} 0.0",
        failures + ',upstream="billing"} 0.0',
        failures + ',upstream="files"} 1.0',
    ]


@pytest.fixture(scope="module")
def sidecar(start_shared_sidecar: StartSidecar) -> Sidecar:
    return start_shared_sidecar(CONFIG)


@pytest.mark.parametrize(
    ("target", "most"), [("/usual", 100), ("/small", 10), ("/large", None), ("/large/but/not/here", 10)]
)
def test_a_body_may_be_as_long_as_its_route_says(sidecar: Sidecar, target: str, most: int | None) -> None:
    for size in (10, 11, 100, 101, 100_000):
        expected = 200 if most is None or size <= most else 413
        whole = request_bytes("POST", target, body=b"x" * size)
        pieces = request_bytes("POST", target, [("Transfer-Encoding", "chunked")])
        chunked = pieces + b"%x\r\n%b\r\n0\r\n\r\n" % (size, b"x" * size)
        found = [sidecar.exchange(raw).status for raw in (whole, whole, whole, chunked)]
        assert found == [expected] * 4, size


@pytest.mark.parametrize(("target", "expected"), PREFIXED.items())
def test_a_prefix_is_removed_if_every_reading_has_it(
    sidecar: Sidecar, upstream: Upstream, target: str, expected: str | None
) -> None:
    wanted = 400 if expected is None else 200
    assert [sidecar.ask("GET", target).status for _ in range(3)] == [wanted] * 3
    assert {request.target for request in upstream.requests()} == ({expected} if expected else set())


def test_a_websocket_is_forwarded_without_the_prefix_too(sidecar: Sidecar, upstream: Upstream) -> None:
    asking = [("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")]
    sidecar.exchange(request_bytes("GET", "/api/chat", asking))
    (request,) = upstream.requests()
    assert (request.target, request.all("Upgrade")) == ("/chat", ["websocket"])
