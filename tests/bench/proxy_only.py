"""The data path alone, by hand: `python -m tests.bench.proxy_only [seconds]`.

An allow-everything gate, nginx as upstream, wrk as load; against nginx directly, and against a plain aiohttp
Application + ClientSession proxy. Servers are pinned to core 0, nginx and wrk to core 1. Needs nginx, wrk and taskset.
"""

import asyncio
import contextlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import uvloop
from aiohttp import ClientSession, DummyCookieJar, TCPConnector, web

from sidecar.config.document import Limits, UpstreamSettings
from sidecar.config.fields import Address, UpstreamUrl
from sidecar.proxy.handler import Snapshot
from sidecar.proxy.server import DataServer
from sidecar.proxy.upstream import Upstream
from sidecar.runtime.tasks import SystemClock
from tests.harness.ports import comes_to_listen, free_port
from tests.wire.proxy.stubs import OpenGate, OpenResponses, Records

NGINX = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log; master_process off;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 100000000; keepalive_timeout 600s; client_max_body_size 0;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{ default_type application/json; return 200 '{{"id":1,"name":"stream","state":"live"}}\\n'; }}
    location /file/ {{ alias {folder}/; }}
  }}
}}
"""


@contextlib.contextmanager
def running(*command: str, port: int) -> Iterator[int]:
    process: subprocess.Popen[bytes] = subprocess.Popen(command)
    try:
        if not comes_to_listen(process, port):
            raise SystemExit(f"{command} does not listen")
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def load(url: str, seconds: int, *options: str) -> dict[str, str]:
    command = ["taskset", "-c", "1", "wrk", "-t1", "-c32", f"-d{seconds}s", "--latency", *options, url]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {
        "rps": re.search(r"Requests/sec:\s+(\S+)", out),
        "p50": re.search(r"\n\s+50%\s+(\S+)", out),
        "p99": re.search(r"\n\s+99%\s+(\S+)", out),
        "transfer": re.search(r"Transfer/sec:\s+(\S+)", out),
        "errors": re.search(r"(Non-2xx.*|Socket errors.*)", out),
    }
    return {name: match[1] for name, match in found.items() if match}


async def serve_sidecar(port: int, upstream_port: int) -> None:
    loop = asyncio.get_running_loop()
    settings = UpstreamSettings(url=UpstreamUrl(address=Address(host="127.0.0.1", port=upstream_port)))
    upstream = Upstream(settings, loop=loop)
    snapshot = Snapshot(gate=OpenGate(), responses=OpenResponses(), upstream=upstream, limits=Limits())
    server = DataServer(snapshot, observer=Records(keep=False), clock=SystemClock())
    await server.start(Address(host="127.0.0.1", port=port))
    await loop.create_future()


async def serve_plain(port: int, upstream_port: int) -> None:
    async with ClientSession(
        cookie_jar=DummyCookieJar(), connector=TCPConnector(limit=256), auto_decompress=False
    ) as session:

        async def forward(request: web.Request) -> web.StreamResponse:
            headers = {name: value for name, value in request.headers.items() if name.lower() != "connection"}
            url = f"http://127.0.0.1:{upstream_port}{request.raw_path}"
            async with session.request(request.method, url, headers=headers, allow_redirects=False) as response:
                body = await response.read()
                return web.Response(status=response.status, body=body, headers={"Content-Type": "application/json"})

        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", forward)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, backlog=4096).start()
        await asyncio.get_running_loop().create_future()


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


def measure(name: str, url: str, pid: int | None, seconds: int) -> None:
    load(url, 1)
    before = cpu_seconds(pid) if pid else 0.0
    result = load(url, seconds)
    spent = cpu_seconds(pid) - before if pid else 0.0
    per_request = spent / (float(result["rps"]) * seconds) * 1e6
    print(f"{name:28} {result}  cpu/request {per_request:.1f}us", flush=True)


def main(seconds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        Path(folder, "64k").write_bytes(b"x" * 65536)
        Path(folder, "10m").write_bytes(b"x" * 10 * 1024 * 1024)
        up, ours, plain = free_port(), free_port(), free_port()
        conf = Path(folder, "nginx.conf")
        conf.write_text("user root;" + NGINX.format(folder=folder, port=up))
        server = ("taskset", "-c", "0", sys.executable, "-m", "tests.bench.proxy_only", "serve")
        with (
            running("taskset", "-c", "1", "nginx", "-c", str(conf), port=up) as nginx,
            running(*server, "sidecar", str(ours), str(up), port=ours) as sidecar,
            running(*server, "plain", str(plain), str(up), port=plain) as aiohttp,
        ):
            measure("nginx directly", f"http://127.0.0.1:{up}/v1", nginx, seconds)
            for _ in range(2):
                measure("sidecar data path", f"http://127.0.0.1:{ours}/v1", sidecar, seconds)
                measure("aiohttp app + session", f"http://127.0.0.1:{plain}/v1", aiohttp, seconds)
            for size in ("64k", "10m"):
                measure(f"nginx directly {size}", f"http://127.0.0.1:{up}/file/{size}", nginx, seconds)
                measure(f"sidecar {size}", f"http://127.0.0.1:{ours}/file/{size}", sidecar, seconds)


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        kind = {"sidecar": serve_sidecar, "plain": serve_plain}[sys.argv[2]]
        uvloop.run(kind(int(sys.argv[3]), int(sys.argv[4])))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
