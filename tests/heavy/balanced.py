"""Sidecars on ports that outlive them, behind a real HAProxy that does not retry."""

import asyncio
import contextlib
import re
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.harness.forks import ForkedProcess
from tests.harness.keys import Keys
from tests.harness.ports import comes_to_listen, free_port
from tests.harness.processes import Lines, Process, clean_environ
from tests.harness.tools import needed
from tests.upstreams.scripted import ScriptedUpstream, answering, plain

HAPROXY = """\
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
_CHANGE = re.compile(r"Server sidecars/(\w+) is (UP|DOWN)")
"""Each counts as up until HAProxy says otherwise."""
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
    """HAProxy in front of sidecars, which it knows by name."""

    def __init__(self, folder: Path, instances: Mapping[str, Instance]) -> None:
        self.port, self._names = free_port(), tuple(instances)
        self._file = folder / "haproxy.cfg"
        servers = "".join(SERVER.format(name=name, instance=instance) for name, instance in instances.items())
        self._file.write_text(HAPROXY.format(port=self.port) + servers, encoding="utf-8")

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        command = [needed("haproxy"), "-db", "-f", str(self._file)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            self._told = Lines(process.stderr)
            try:
                assert comes_to_listen(process, self.port), self._told.all()
                yield
            finally:
                process.terminate()
                process.wait()
                self._told.join()

    async def until(self, holds: Callable[[dict[str, str]], bool]) -> None:
        """Wait until HAProxy reports its servers (name to `UP` or `DOWN`) as wanted, which it does on each change."""
        if not holds(self._servers()):
            told = await asyncio.to_thread(self._told.wait_for, lambda line: holds(self._servers()))
            assert told is not None, self._told.all()

    def _servers(self) -> dict[str, str]:
        told = (_CHANGE.search(line) for line in self._told.all())
        return {**dict.fromkeys(self._names, "UP"), **{found[1]: found[2] for found in told if found is not None}}


async def comes_before(event: asyncio.Event, due: float) -> bool:
    """Whether the event is there, at `due` (monotonic seconds) at the latest."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(due - time.monotonic()):
            await event.wait()
    return event.is_set()


@contextlib.asynccontextmanager
async def service() -> AsyncIterator[str]:
    """The URL of an upstream that responds to everything."""
    upstream = ScriptedUpstream(answering(plain()))
    await upstream.start()
    try:
        yield f"http://127.0.0.1:{upstream.address.port}"
    finally:
        await upstream.stop()
