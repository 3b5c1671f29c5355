"""Microseconds of the sidecar's own code for a request, without sockets: `python -m tests.bench.in_process [ROUNDS]`.

Everything is on but the access log. The event loop is asyncio's; the transports on both sides are faked, so that
neither the kernel nor another process is measured. The minimum of many short rounds is steady where the machine is not.
"""

import asyncio
import json
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any

from sidecar.app import running
from sidecar.config.load import load
from tests.harness.keys import run_cli

CONFIG = """\
listen: 127.0.0.1:18080
upstream: http://127.0.0.1:18081
scopes: {read: Read}
keys: {environments: {live: hv_live_}}
quotas: {many: {limit: 1000000000, per: hour, by: key}}
routes:
  - GET|POST /items/**: {scopes: [read], quotas: [many]}
limits: {connections: 100}
"""
RESPONSE = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n{"ok": true}\n'
REQUESTS = 2000
CONNECTIONS = 16


class Transport(asyncio.Transport):
    """Answers what is written with a call of `on_written`, in the loop's next turn."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_written: Callable[[], None]) -> None:
        super().__init__({"peername": ("127.0.0.1", 1)})
        self._loop, self._on_written = loop, on_written

    def write(self, data: Any) -> None:
        self._loop.call_soon(self._on_written)

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Everything is taken."""

    def close(self) -> None:
        """Nothing is open."""

    abort = close


class Loop(asyncio.SelectorEventLoop):
    """Gives faked connections to the upstream, and the factory of the data listener's."""

    make: Callable[[], asyncio.Protocol]

    async def create_connection(self, factory: Any, *_: Any, **__: Any) -> Any:  # type: ignore[override]
        protocol = factory()
        transport = Transport(self, lambda: protocol.data_received(RESPONSE))
        protocol.connection_made(transport)
        return transport, protocol

    async def create_server(self, factory: Any, host: Any = None, port: Any = None, **more: Any) -> Any:  # type: ignore[override]
        if port == 18080:
            self.make = factory
            port = 0
        return await super().create_server(factory, host, port, **more)


async def microseconds(loop: Loop, raw: Callable[[int], bytes], rounds: int) -> float:
    """The least of `rounds`, per request."""
    done = asyncio.Event()
    left = 0
    made = 0

    def ask(protocol: asyncio.Protocol) -> None:
        nonlocal left, made
        left -= 1
        if left > 0:
            made += 1
            protocol.data_received(raw(made))
        elif left <= -CONNECTIONS + 1:
            done.set()

    protocols: list[asyncio.Protocol] = []
    for _ in range(CONNECTIONS):
        protocol = loop.make()
        protocol.connection_made(Transport(loop, partial(ask, protocol)))
        protocols.append(protocol)
    best = float("inf")
    for _ in range(rounds):
        done.clear()
        left = REQUESTS
        began = process_time()
        for protocol in protocols:
            protocol.data_received(raw(made))
        await done.wait()
        best = min(best, process_time() - began)
    return best / (REQUESTS + CONNECTIONS - 1) * 1e6


async def measure(loop: Loop, config: Path, key: str, rounds: int) -> None:
    lines = f"Host: api.test\r\nAuthorization: Bearer {key}\r\nAccept: */*\r\nUser-Agent: bench/1.0\r\n"
    lines += "Accept-Encoding: gzip, deflate, br\r\nAccept-Language: en\r\nX-Client: a-client/1.2.3\r\n"
    wrong = lines.replace(key, "hv_live_nope")
    kinds: dict[str, Callable[[int], bytes]] = {
        "the same heads": lambda n: f"GET /items/7 HTTP/1.1\r\n{lines}\r\n".encode(),
        "a fresh path each time": lambda n: f"GET /items/{n} HTTP/1.1\r\n{lines}\r\n".encode(),
        "a fresh trace header each time": lambda n: (
            f"GET /items/7 HTTP/1.1\r\n{lines}traceparent: 00-{n:032x}-{n:016x}-01\r\n\r\n".encode()
        ),
        "refused: mistyped": lambda n: f"GET /items/7 HTTP/1.1\r\n{wrong}\r\n".encode(),
    }
    wanted = load(str(config), environ={})
    async with running(wanted, read_again=lambda: wanted):
        for kind, raw in kinds.items():
            print(f"{kind:34} {await microseconds(loop, raw, rounds):6.1f} µs")


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "sidecar.yaml"
        config.write_text(
            f"{CONFIG}store: sqlite://{folder}/keys.db\nops: 127.0.0.1:0\naccess_log: off\n", encoding="utf-8"
        )
        told = run_cli("keys", "issue", "-c", str(config), "--name", "bench", "--scope", "read", "--json")
        loop = Loop()
        loop.run_until_complete(measure(loop, config, json.loads(told.stdout)["key"], rounds))


if __name__ == "__main__":
    main()
