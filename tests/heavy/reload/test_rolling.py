"""Two sidecars behind a real HAProxy, restarted in turn under 500 requests a second.

HAProxy is told not to try again, so that it hides nothing.
"""

import asyncio
import contextlib
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest

from sidecar.config.fields import Address
from tests.harness.forks import ForkedProcess
from tests.harness.keys import Keys
from tests.harness.ports import free_port
from tests.harness.processes import Process, clean_environ
from tests.harness.tools import needed
from tests.harness.wire import Connection
from tests.upstreams.scripted import ScriptedUpstream, answering, plain
from tests.wire.proxy.wire import RawClient, get

CONFIG = """\
listen: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:///nowhere
scopes: {read: Read}
routes:
- GET /items/**: {scopes: [read]}
drain: {delay: 1500ms, timeout: 30s}
"""
HAPROXY = """\
global
  stats socket {folder}/haproxy.sock
defaults
  mode http
  timeout connect 20s
  timeout client 60s
  timeout server 60s
  timeout check 20s
  retries 0
frontend clients
  bind 127.0.0.1:{port}
  default_backend sidecars
backend sidecars
  option httpchk GET /readyz
  server a 127.0.0.1:{a.data} check port {a.ops} inter 100ms fall 2 rise 1
  server b 127.0.0.1:{b.data} check port {b.ops} inter 100ms fall 2 rise 1
"""
RATE = 500
"""Requests a second, as far as the machine gets."""
WORKERS = 20
ROUNDS = 2
EACH = 100
"""Requests that each restart has to stand at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """A sidecar on ports that outlive it."""

    keys: Keys
    upstream: str
    data: int = field(default_factory=free_port)
    ops: int = field(default_factory=free_port)

    def start(self) -> Process:
        addresses = ["--listen", f"127.0.0.1:{self.data}", "--ops", f"127.0.0.1:{self.ops}"]
        arguments = ["-c", str(self.keys.config), "--store", self.keys.url, "--upstream", self.upstream, *addresses]
        process = Process(ForkedProcess(["serve", *arguments], clean_environ()))
        if process.stderr.wait_for(lambda line: line.startswith("sidecar: ops listener on ")) is None:
            raise process.failure()
        return process


class Balancer:
    """HAProxy before two of them."""

    def __init__(self, folder: Path, *, a: Instance, b: Instance) -> None:
        self.port, self._socket = free_port(), folder / "haproxy.sock"
        self._file = folder / "haproxy.cfg"
        self._file.write_text(HAPROXY.format(folder=folder, port=self.port, a=a, b=b), encoding="utf-8")

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        with subprocess.Popen([needed("haproxy"), "-db", "-f", self._file], stderr=subprocess.PIPE) as process:
            try:
                yield
            finally:
                process.terminate()

    async def until(self, holds: Callable[[dict[str, str]], bool]) -> None:
        """Until HAProxy sees its servers (name to `UP`, `DOWN`, …) as wanted."""
        async with asyncio.timeout(60):
            while not holds(await self._servers()):
                await asyncio.sleep(0.02)

    async def _servers(self) -> dict[str, str]:
        try:
            reader, writer = await asyncio.open_unix_connection(str(self._socket))
        except (FileNotFoundError, ConnectionRefusedError):
            return {}
        writer.write(b"show stat sidecars 4 -1\n")
        rows = [line.split(",") for line in (await reader.read()).decode().splitlines() if line.startswith("sidecars,")]
        writer.close()
        return {row[1]: row[17].split(" ")[0] for row in rows}


@dataclass(slots=True, kw_only=True)
class Load:
    """So many requests a second, whatever becomes of each."""

    port: int
    key: str
    statuses: list[int] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    async def run(self, ends: asyncio.Event) -> None:
        began = time.monotonic()
        await asyncio.gather(*(self._work(ends, began + number / RATE) for number in range(WORKERS)))

    async def _work(self, ends: asyncio.Event, due: float) -> None:
        client: RawClient | None = None
        while not await _comes_before(ends, due):
            due += WORKERS / RATE
            try:
                client = client or await RawClient.connect(Address(host="127.0.0.1", port=self.port))
                response = await client.ask(get("/items/1", f"Authorization: Bearer {self.key}".encode()))
            except (OSError, EOFError, TimeoutError) as failure:
                self.failures.append(repr(failure))
                client = None
                continue
            self.statuses.append(response.status)
            if b"close" in response.all(b"Connection"):
                await client.close()
                client = None
        if client is not None:
            await client.close()


async def _comes_before(event: asyncio.Event, due: float) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(due - time.monotonic()):
            await event.wait()
    return event.is_set()


@contextlib.asynccontextmanager
async def service() -> AsyncIterator[str]:
    upstream = ScriptedUpstream(answering(plain()))
    await upstream.start()
    try:
        yield f"http://127.0.0.1:{upstream.address.port}"
    finally:
        await upstream.stop()


@pytest.mark.requirement("R4.2")
@pytest.mark.timeout(600)
@pytest.mark.alone
async def test_rolling_restarts_behind_haproxy_fail_no_request(tmp_path: Path) -> None:
    config = tmp_path / "sidecar.yaml"
    config.write_text(CONFIG, encoding="utf-8")
    keys = Keys(config, tmp_path / "keys.db")
    key = keys.issue("k", scopes=("read",)).text
    async with service() as url, contextlib.AsyncExitStack() as stack:
        instances = [Instance(keys=keys, upstream=url) for _ in range(2)]
        processes = [instance.start() for instance in instances]
        stack.callback(lambda: [process.stop(signal.SIGINT) for process in processes])
        balancer = Balancer(tmp_path, a=instances[0], b=instances[1])
        stack.enter_context(balancer.running())
        await balancer.until(lambda servers: set(servers.values()) == {"UP"} and len(servers) == 2)
        load, ends = Load(port=balancer.port, key=key), asyncio.Event()
        loading = asyncio.ensure_future(load.run(ends))
        counts = [0]
        for number in [0, 1] * ROUNDS:
            name = "ab"[number]
            processes[number].signal(signal.SIGTERM)
            await balancer.until(lambda servers, name=name: servers[name] == "DOWN")  # type: ignore[misc]
            assert await asyncio.to_thread(processes[number].wait) == 0
            processes[number] = await asyncio.to_thread(instances[number].start)
            await balancer.until(lambda servers, name=name: servers[name] == "UP")  # type: ignore[misc]
            counts.append(len(load.statuses))
        ends.set()
        await loading
        assert load.failures == []
        assert set(load.statuses) == {200}
        assert min(after - before for before, after in pairwise(counts)) > EACH
        with Connection(("127.0.0.1", instances[0].ops)) as ops:
            assert b"sidecar_requests_total" in ops.ask("GET", "/metrics").body
