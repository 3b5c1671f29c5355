"""Requests in progress during a reload keep their old configuration."""

import asyncio

from sidecar.config.fields import Address
from tests.upstreams.scripted import Peer, ScriptedUpstream, plain
from tests.wire.proxy.wire import RawClient, get
from tests.wire.reload.changing import CONFIG
from tests.wire.reload.conftest import StartChanging


async def test_a_pending_response_arrives_although_everything_was_reloaded(start_changing: StartChanging) -> None:
    release, waiting = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        while True:
            first = (await peer.request()).split(b"\r\n")[0]
            if first.startswith(b"GET /open "):
                waiting.set()
                await release.wait()
            await peer.send(plain(first))

    upstream = ScriptedUpstream(script)
    await upstream.start()
    changing = await asyncio.to_thread(start_changing, upstream_url=f"http://127.0.0.1:{upstream.address.port}")
    address = Address(host=changing.sidecar.data[0], port=changing.sidecar.data[1])
    client, other = await RawClient.connect(address), await RawClient.connect(address)
    await client.send(get("/open"))
    await waiting.wait()
    new = "upstream: {url: 'http://127.0.0.1:1', add_prefix: /v2, max_connections: 1}"
    await asyncio.to_thread(changing.taken, CONFIG.replace("upstream: http://127.0.0.1:1", new))
    assert (await other.ask(get("/open"))).body == b"GET /v2/open HTTP/1.1"
    release.set()
    assert (await client.receive()).body == b"GET /open HTTP/1.1"
    assert (await client.ask(get("/open"))).body == b"GET /v2/open HTTP/1.1"
    for opened in (client, other):
        await opened.close()
    await upstream.stop()


PATIENT = "{url: 'http://127.0.0.1:1', idle_timeout: 5m, max_connection_age: off}"
ALONE = CONFIG.replace("http://127.0.0.1:1", PATIENT)
NAMED = ALONE.replace(
    "  - GET /open: {public: true}\n",
    f"""\
  - GET /open: {{public: true, upstream: billing}}
  - GET /open/held: {{public: true, upstream: billing}}
upstreams: {{billing: {PATIENT.replace("1:1", "1:PORT")}}}
""",
)


async def test_upstreams_come_change_and_go_and_a_request_keeps_its_own(start_changing: StartChanging) -> None:
    release, waiting = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        while True:
            if b" /open/held " in await peer.request():
                waiting.set()
                await release.wait()
            await peer.send(plain())

    upstream, billing, other = ScriptedUpstream(script), ScriptedUpstream(script), ScriptedUpstream(script)
    for one in (upstream, billing, other):
        await one.start()
    changing = await asyncio.to_thread(start_changing, ALONE, upstream_url=f"http://127.0.0.1:{upstream.address.port}")
    address = Address(host=changing.sidecar.data[0], port=changing.sidecar.data[1])
    client, holding = await RawClient.connect(address), await RawClient.connect(address)
    named = NAMED.replace("PORT", str(billing.address.port))
    seen = []

    async def asked() -> None:
        assert (await client.ask(get("/open"))).status == 200
        seen.append([len(one.peers) for one in (upstream, billing, other)])

    await asked()
    await asyncio.to_thread(changing.taken, named)
    await asked()
    await holding.send(get("/open/held"))
    await waiting.wait()
    await asyncio.to_thread(changing.taken, named.replace("before", "after"), count=2)
    await asked()
    await asyncio.to_thread(changing.taken, NAMED.replace("PORT", str(other.address.port)), count=3)
    await asked()
    await asyncio.to_thread(changing.taken, ALONE, count=4)
    await asked()
    assert seen == [[1, 0, 0], [1, 1, 0], [1, 2, 0], [1, 2, 1], [1, 2, 1]]
    release.set()
    assert (await holding.receive()).status == 200
    for opened in (client, holding):
        await opened.close()
    for one in (upstream, billing, other):
        await one.stop()
