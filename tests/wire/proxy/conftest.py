"""A data listener in front of a scripted upstream, on both event loops."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvloop

from sidecar.app import REMEMBERS
from sidecar.config.document import Limits, UpstreamSettings
from sidecar.config.fields import Address, UpstreamUrl
from sidecar.core.model import Headers
from sidecar.proxy.handler import Snapshot
from sidecar.proxy.known_heads import KnownRequests
from sidecar.proxy.server import DataServer
from sidecar.proxy.transport import HeldBytes
from sidecar.proxy.upstream import Upstream
from sidecar.runtime.tasks import SystemClock
from tests.upstreams.scripted import Script, ScriptedUpstream
from tests.wire.proxy.stubs import OpenGate, OpenResponses, Records
from tests.wire.proxy.wire import RawClient, Received

ON_ONE_LOOP = {"test_bad_client", "test_faithful", "test_framing", "test_keep_alive", "test_via"}
"""The meaning of bytes is the same on each loop; flow control, TLS, timeouts and closing may differ."""


LoopFactories = Mapping[str, Callable[[], asyncio.AbstractEventLoop]]


def pytest_asyncio_loop_factories(item: pytest.Item) -> LoopFactories:
    """A module that needs its own loops names them in `LOOPS`."""
    own: LoopFactories | None = getattr(getattr(item, "module", None), "LOOPS", None)
    if own is not None:
        return own
    others = {} if item.path.stem in ON_ONE_LOOP else {"asyncio": asyncio.new_event_loop}
    return {**others, "uvloop": uvloop.new_event_loop}


MIB = 1 << 20
HELD = 16 + sum(2 * int(Path(f"/proc/sys/net/ipv4/tcp_{kind}mem").read_text().split()[2]) // MIB for kind in "rw")
"""MiB that may be between an upstream and a client: the kernel's largest buffers, and a few more."""
MUCH = max(64, HELD + 16)
"""MiB, more than that."""
PATIENT = {"connect_timeout": 60.0, "queue_timeout": 60.0, "idle_timeout": 60.0}
"""Longer than any test waits, so that no timeout is mistaken for the expected effect."""


@dataclass
class Bench:
    """The listener, its records, and its upstream."""

    server: DataServer
    snapshot: Snapshot
    upstream: ScriptedUpstream
    records: Records
    gate: OpenGate
    held: HeldBytes
    stack: AsyncExitStack

    async def client(self) -> RawClient:
        client = await RawClient.connect(self.server.addresses[0])
        self.stack.push_async_callback(client.close)
        return client

    async def ask(self, raw: bytes) -> Received:
        """One request on its own connection."""
        return await (await self.client()).ask(raw)


SetUp = Callable[..., Awaitable[Bench]]


@pytest.fixture
async def set_up(tmp_path: Path) -> AsyncIterator[SetUp]:
    """`await set_up(script, told=, unix=, address=, authority=, at=[…], listener={…}, **…)`

    at: addresses of the listener. listener: options of DataServer; `**`: fields of UpstreamSettings.
    """
    async with AsyncExitStack() as stack:

        async def start(
            script: Script,
            *,
            told: Headers = (),
            unix: bool = False,
            address: Address | None = None,
            authority: str = "",
            at: Sequence[Address] = (),
            listener: Mapping[str, Any] | None = None,
            **settings: Any,
        ) -> Bench:
            scripted = ScriptedUpstream(script)
            await scripted.start(str(tmp_path / "upstream.sock") if unix else "")
            stack.push_async_callback(scripted.stop)
            url = UpstreamUrl(address=address or scripted.address, authority=authority)
            gate, options = OpenGate(), dict(listener or {})
            limits = options.pop("limits", Limits())
            held = HeldBytes(limits.held_bytes)
            target = UpstreamSettings(url=url, **{**PATIENT, **settings})
            upstream = Upstream(target, loop=asyncio.get_running_loop(), held=held)
            stack.callback(upstream.close)
            records = Records()
            snapshot = Snapshot(
                gate=gate,
                responses=OpenResponses(told),
                upstream=upstream,
                limits=limits,
                trusts=options.pop("trusts", lambda peer: False),
                known=None if os.environ.get(REMEMBERS) == "off" else KnownRequests(gate),
            )
            server = DataServer(snapshot, observer=records, clock=SystemClock(), held=held, **options)
            usual = Address(path=str(tmp_path / "data.sock")) if unix else Address(host="127.0.0.1")
            await server.start(*(at or [usual]))
            stack.push_async_callback(lambda: server.stop(grace_seconds=0))
            return Bench(server, snapshot, scripted, records, gate, held, stack)

        yield start
