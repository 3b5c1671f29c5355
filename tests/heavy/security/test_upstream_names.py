"""The upstream's name changes its address, and the whole process follows, with the machine's own resolver.

Where no privileges are needed for that: `tests/wire/proxy/test_upstream_names.py`.
"""

import asyncio
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from sidecar.config.fields import Address
from tests.harness import ownhosts
from tests.harness.keys import Keys
from tests.harness.processes import Process, clean_environ, python
from tests.wire.proxy.wire import RawClient, get
from tests.wire.security.behind import configured

Ask = Callable[[int, str], Awaitable[RawClient]]
LISTENER = re.compile(r"sidecar: data listener on (.+):(\d+)")


@pytest.fixture
def hosts(tmp_path: Path) -> Path:
    """A hosts file for the sidecar alone; skips where the machine allows none."""
    file = tmp_path / "hosts"
    file.write_text("127.0.0.1 upstream.test\n")
    if reason := ownhosts.why_impossible(str(file)):
        pytest.skip(f"no /etc/hosts of its own for a process here: {reason}")
    return file


async def speak(name: bytes, address: str, port: int, *, keep: bool) -> asyncio.Server:
    """A server that answers everything with its name."""
    close = b"" if keep else b"Connection: close\r\n"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readline():
            while await reader.readline() != b"\r\n":
                pass
            writer.write(b"HTTP/1.1 200 OK\r\n" + close + b"Content-Length: %d\r\n\r\n" % len(name) + name)
            if not keep:
                break
        writer.close()

    return await asyncio.start_server(serve, address, port)


@pytest.fixture
async def asking(hosts: Path, tmp_path: Path) -> AsyncIterator[Ask]:
    """Starts a sidecar before `upstream.test` and a port, with settings of the upstream; a client of it."""
    processes: list[Process] = []

    async def start(port: int, settings: str) -> RawClient:
        config = tmp_path / "sidecar.yaml"
        config.write_text(configured(settings))
        keys = Keys(config, tmp_path / "keys.db")
        await asyncio.to_thread(keys.issue, "the key that makes the store")
        options = ["--store", keys.url, "--upstream", f"http://upstream.test:{port}", "--listen", "127.0.0.1:0"]
        arguments = ["sidecar", "serve", "-c", str(config), *options, "--ops", "127.0.0.1:0"]
        process = Process(python(["tests.harness.ownhosts", str(hosts), *arguments], clean_environ()))
        processes.append(process)
        line = await asyncio.to_thread(process.stderr.wait_for, lambda line: LISTENER.fullmatch(line) is not None)
        found = LISTENER.fullmatch(line or "")
        if found is None:
            raise process.failure()
        return await RawClient.connect(Address(host=found[1], port=int(found[2])))

    yield start
    for process in processes:
        await asyncio.to_thread(process.stop, signal.SIGINT)


async def responses(client: RawClient) -> bytes:
    return (await client.ask(get("/public/x"))).body


@pytest.mark.requirement("R1.7")
@pytest.mark.parametrize("keep", [False, True])
async def test_a_changed_dns_name_is_followed(asking: Ask, hosts: Path, keep: bool) -> None:
    """With each new connection; kept ones end at their greatest age, although the traffic never pauses."""
    first = await speak(b"first", "127.0.0.1", 0, keep=keep)
    port = first.sockets[0].getsockname()[1]
    second = await speak(b"second", "127.0.0.2", port, keep=keep)
    client = await asking(port, "idle_timeout: 60s, max_connection_age: 100ms")
    assert await responses(client) == b"first"
    hosts.write_text("127.0.0.2 upstream.test\n")
    async with asyncio.timeout(60):
        while await responses(client) != b"second":
            assert keep
    await client.close()
    first.close()
    second.close()
