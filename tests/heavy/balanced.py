"""Sidecars on ports that outlive them, and a real HAProxy before them that hides nothing."""

import asyncio
import contextlib
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.harness.forks import ForkedProcess
from tests.harness.keys import Keys
from tests.harness.ports import free_port
from tests.harness.processes import Process, clean_environ
from tests.harness.tools import needed
from tests.upstreams.scripted import ScriptedUpstream, answering, plain

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
"""
SERVER = "  server {name} 127.0.0.1:{instance.data} check port {instance.ops} inter 100ms fall 2 rise 1\n"


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
    """HAProxy before sidecars, which it knows by name."""

    def __init__(self, folder: Path, instances: Mapping[str, Instance]) -> None:
        self.port, self._socket = free_port(), folder / "haproxy.sock"
        self._file = folder / "haproxy.cfg"
        servers = "".join(SERVER.format(name=name, instance=instance) for name, instance in instances.items())
        self._file.write_text(HAPROXY.format(folder=folder, port=self.port) + servers, encoding="utf-8")

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


async def comes_before(event: asyncio.Event, due: float) -> bool:
    """Whether the event is there, at `due` (monotonic seconds) at the latest."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(due - time.monotonic()):
            await event.wait()
    return event.is_set()


@contextlib.asynccontextmanager
async def service() -> AsyncIterator[str]:
    """The URL of an upstream that answers everything."""
    upstream = ScriptedUpstream(answering(plain()))
    await upstream.start()
    try:
        yield f"http://127.0.0.1:{upstream.address.port}"
    finally:
        await upstream.stop()
