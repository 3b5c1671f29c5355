"""Two sidecars behind a real HAProxy, restarted in turn under 500 requests a second.

HAProxy is told not to try again, so that it hides nothing.
"""

import asyncio
import contextlib
import signal
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest

from sidecar.config.fields import Address
from tests.harness.keys import Keys
from tests.harness.wire import Connection
from tests.heavy.balanced import Balancer, Instance, comes_before, service
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
RATE = 500
"""Requests a second, as far as the machine gets."""
WORKERS = 20
ROUNDS = 2
EACH = 100
"""Requests that each restart has to stand at least."""


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
        while not await comes_before(ends, due):
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
        balancer = Balancer(tmp_path, {"a": instances[0], "b": instances[1]})
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
