"""The plain aiohttp proxy that the sidecar is compared with: `Application`, `ClientSession`, a dict of keys, uvloop.

python -m tests.bench.plain PORT UPSTREAM_PORT KEYS_FILE
"""

import asyncio
import sys
from pathlib import Path

import uvloop
from aiohttp import ClientResponse, ClientSession, DummyCookieJar, TCPConnector, web

_NOT_FORWARDED = frozenset({"authorization", "connection", "host", "keep-alive", "te", "transfer-encoding", "upgrade"})
_SMALL = 65_536
_FRAMING = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length"})


class Proxy:
    def __init__(self, session: ClientSession, upstream: str, clients: dict[str, str]) -> None:
        self._session, self._upstream, self._clients = session, upstream, clients

    async def handle(self, request: web.Request) -> web.StreamResponse:
        client = self._clients.get(request.headers.get("Authorization", "").removeprefix("Bearer "))
        if client is None:
            return web.json_response({"error": "invalid_key"}, status=401)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _NOT_FORWARDED}
        headers["X-Client"] = client
        body = await request.read() if request.body_exists else None
        async with self._session.request(
            request.method, self._upstream + request.raw_path, headers=headers, data=body, allow_redirects=False
        ) as answer:
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in _FRAMING}
            if (answer.content_length or 0) < _SMALL:
                return web.Response(status=answer.status, body=await answer.read(), headers=kept)
            return await _stream(request, answer, kept)


async def _stream(request: web.Request, answer: ClientResponse, headers: dict[str, str]) -> web.StreamResponse:
    response = web.StreamResponse(status=answer.status, headers=headers)
    response.content_length = answer.content_length
    await response.prepare(request)
    async for piece in answer.content.iter_any():
        await response.write(piece)
    return response


async def serve(port: int, upstream_port: int, keys: Path) -> None:
    clients = {key: f"client-{number}" for number, key in enumerate(keys.read_text().split())}
    connector = TCPConnector(limit=256)
    async with ClientSession(cookie_jar=DummyCookieJar(), connector=connector, auto_decompress=False) as session:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{tail:.*}", Proxy(session, f"http://127.0.0.1:{upstream_port}", clients).handle)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, backlog=4096).start()
        await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])))
