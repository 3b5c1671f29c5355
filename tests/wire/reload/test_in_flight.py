"""Requests that have begun when the configuration changes end as they began."""

import asyncio

from sidecar.config.fields import Address
from tests.upstreams.scripted import Peer, ScriptedUpstream, plain
from tests.wire.proxy.wire import RawClient, get
from tests.wire.reload.changing import CONFIG
from tests.wire.reload.conftest import StartChanging


async def test_an_answer_that_is_waited_for_comes_though_everything_else_is_new(start_changing: StartChanging) -> None:
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
