"""What a route says of how its requests are forwarded."""

from collections.abc import AsyncIterator

import pytest

from tests.harness.running import Sidecar, StartSidecar
from tests.harness.wire import request_bytes
from tests.upstreams.scripted import Peer, plain
from tests.wire.proxy.wire import get
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
"""


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
