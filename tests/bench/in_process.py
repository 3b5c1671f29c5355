"""Microseconds of the sidecar's own code for a request, without sockets.

    python -m tests.bench.in_process                             every kind
    python -m tests.bench.in_process same fresh-lines --rounds 100
    python -m tests.bench.in_process --against ../other          this checkout and another one, in turn; and the ratio

Everything is on but the access log. The event loop is asyncio's; the transports on both sides are faked, so that
neither the kernel nor another process is measured. The kinds take turns in many short rounds: the least of them is
steady where the machine is not, the median tells how far to trust it. Kinds:

"""

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

from sidecar.app import running
from sidecar.config.load import load
from sidecar.core.apikey import KeyFormat
from tests.harness.keys import run_cli

CONFIG = """\
listen: 127.0.0.1:0
upstream: http://127.0.0.1:18081
scopes: {read: Read}
keys: {environments: {live: hv_live_}}
quotas: {many: {limit: 1000000000, per: hour, by: key}}
routes:
  - GET|POST /items/**: {scopes: [read], quotas: [many]}
limits: {connections: 1000}
ops: 127.0.0.1:0
access_log: off
"""
RESPONSE = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n{"ok": true}\n'
BODY = '{"name": "stream", "labels": ["a", "b"]}'
REQUESTS = 1000
CONNECTIONS = 16
_PATIENCE_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Requests that are alike. `more`: header lines; {n} is replaced by 16 digits that are others each time."""

    title: str
    key: str | None = "good"
    path: str = "/items/7"
    more: str = ""
    body: str = ""

    def requests(self, keys: Mapping[str, str], first: int) -> list[bytes]:
        """The `REQUESTS` from number `first` on."""
        lines = "Host: api.test\r\n"
        if self.key is not None:
            lines += f"Authorization: Bearer {keys.get(self.key, '{key}')}\r\n"
        lines += "Accept: */*\r\nUser-Agent: bench/1.0\r\nAccept-Encoding: gzip, deflate, br\r\n"
        lines += f"Accept-Language: en\r\nX-Client: a-client/1.2.3\r\n{self.more}"
        if self.body:
            lines += f"Content-Type: application/json\r\nContent-Length: {len(self.body)}\r\n"
        whole = f"{'POST' if self.body else 'GET'} {self.path} HTTP/1.1\r\n{lines}\r\n{self.body}"
        numbers = range(first, first + REQUESTS)
        return [whole.replace("{n}", f"{n:016x}").replace("{key}", _stranger(n)).encode() for n in numbers]

    def statuses(self, *, failures: bool) -> Collection[bytes]:
        """Those that a response may have. `failures`: after 300 wrong keys a minute from one address, it is 429."""
        if self.key == "good":
            return [b"200"]
        return [b"401", b"429"] if failures else [b"401"]


def _stranger(number: int) -> str:
    """A key of a right form that nobody issued."""
    return KeyFormat().make("hv_live_", random.Random(number).randrange)  # noqa: S311 - nothing is protected by it


_TRACE = "traceparent: 00-{n}{n}-{n}-01\r\n"
KINDS: Mapping[str, Kind] = {
    "same": Kind(title="the same heads"),
    "fresh-path": Kind(title="a fresh path each time", path="/items/{n}"),
    "fresh-trace": Kind(title="a fresh trace header each time", more=_TRACE),
    "fresh-lines": Kind(title="a fresh trace header and cookie each time", more=_TRACE + "Cookie: session={n}{n}\r\n"),
    "small-post": Kind(title="a small JSON POST in one segment", body=BODY),
    "refused-none": Kind(title="refused: no key", key=None),
    "refused-mistyped": Kind(title="refused: mistyped", key="mistyped"),
    "refused-unknown": Kind(title="refused: unknown", key="unknown"),
    "refused-strangers": Kind(title="refused: unknown, another each time", key="strangers"),
    "refused-revoked": Kind(title="refused: revoked", key="revoked"),
}


class Transport(asyncio.Transport):
    """Answers a complete message that is written with a call of `on_message`, in the loop's next turn."""

    last = b""

    def __init__(self, loop: asyncio.AbstractEventLoop, peer: str, on_message: Callable[[], None]) -> None:
        super().__init__({"peername": (peer, 1)})
        self._loop, self._on_message = loop, on_message

    def write(self, data: Any) -> None:
        start = data[:5]
        if start == b"HTTP/":
            self.last = data
        # Messages here end with a body, but for GET requests. What ends with an empty line is the head of more to come.
        if data[-4:] != b"\r\n\r\n" or start[:4] == b"GET ":
            self._loop.call_soon(self._on_message)

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
        transport = Transport(self, "127.0.0.1", lambda: protocol.data_received(RESPONSE))
        protocol.connection_made(transport)
        return transport, protocol

    async def create_server(self, factory: Any, host: Any = None, port: Any = None, **more: Any) -> Any:  # type: ignore[override]
        """The data listener is the first."""
        self.__dict__.setdefault("make", factory)
        return await super().create_server(factory, host, port, **more)


class Client:
    """Some connections from one address; each sends its next request when it has its response."""

    def __init__(self, loop: Loop, address: str) -> None:
        self._loop = loop
        self._connections: list[tuple[asyncio.Protocol, Transport]] = []
        for _ in range(CONNECTIONS):
            protocol = loop.make()
            transport = Transport(loop, address, partial(self._answered, protocol))
            protocol.connection_made(transport)
            self._connections.append((protocol, transport))

    async def seconds(self, requests: Sequence[bytes], statuses: Collection[bytes]) -> float:
        """CPU seconds until all are answered. Raises RuntimeError for a status that is none of `statuses`."""
        self._requests, self._left = iter(requests), len(requests)
        self._over = self._loop.create_future()
        began = process_time()
        for protocol, _ in self._connections:
            protocol.data_received(next(self._requests))
        await asyncio.wait_for(self._over, _PATIENCE_SECONDS)
        spent = process_time() - began
        for _, transport in self._connections:
            if bytes(transport.last[9:12]) not in statuses:
                raise RuntimeError(f"answered with {bytes(transport.last[:200])!r}")
        return spent

    def _answered(self, protocol: asyncio.Protocol) -> None:
        self._left -= 1
        request = next(self._requests, None)
        if request is not None:
            protocol.data_received(request)
        elif not self._left:
            self._over.set_result(None)


async def measure(
    loop: Loop, config: Path, kinds: Sequence[str], *, rounds: int, failures: bool
) -> dict[str, list[float]]:
    """Microseconds for a request, by kind, round by round."""
    keys = _keys(config)
    wanted = load(str(config), environ={})
    found: dict[str, list[float]] = {name: [] for name in kinds}
    async with running(wanted, read_again=lambda: wanted):
        # An address for each, because wrong keys count by address.
        clients = {name: Client(loop, f"192.0.2.{number}") for number, name in enumerate(kinds, 1)}
        for number in range(-1, rounds):
            for name, client in clients.items():
                requests = KINDS[name].requests(keys, (number + 1) * REQUESTS)
                seconds = await client.seconds(requests, KINDS[name].statuses(failures=failures))
                # The first round is for warming up.
                if number >= 0:
                    found[name].append(seconds / REQUESTS * 1e6)
    return found


def _keys(config: Path) -> dict[str, str]:
    good, revoked = _issued(config), _issued(config)
    run_cli("keys", "revoke", "-c", str(config), revoked["id"])
    unknown = KeyFormat().make("hv_live_", random.Random(2).randrange)  # noqa: S311 - nothing is protected by it
    mistyped = good["key"][:-1] + ("0" if good["key"][-1] != "0" else "1")
    return {"good": good["key"], "mistyped": mistyped, "unknown": unknown, "revoked": revoked["key"]}


def _issued(config: Path) -> dict[str, str]:
    told = run_cli("keys", "issue", "-c", str(config), "--name", "bench", "--scope", "read", "--json")
    issued: dict[str, str] = json.loads(told.stdout)
    return issued


def _here(kinds: Sequence[str], rounds: int, failures: bool) -> dict[str, list[float]]:
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "sidecar.yaml"
        text = CONFIG if failures else CONFIG.replace("hv_live_}}", "hv_live_}, failures: off}")
        config.write_text(f"{text}store: sqlite://{folder}/keys.db\n", encoding="utf-8")
        loop = Loop()
        return loop.run_until_complete(measure(loop, config, kinds, rounds=rounds, failures=failures))


def _elsewhere(checkout: Path, options: argparse.Namespace) -> dict[str, list[float]]:
    """What this very file measures with the package, and the harness, of a checkout."""
    command = [sys.executable, "-P", __file__, *options.kinds, "--rounds", str(options.rounds), "--json"]
    command += [] if options.failures else ["--no-failures"]
    environ = {**os.environ, "PYTHONPATH": str(checkout.resolve())}
    done = subprocess.run(command, env=environ, cwd=checkout, stdout=subprocess.PIPE, check=True)
    found: dict[str, list[float]] = json.loads(done.stdout)
    return found


def _compare(options: argparse.Namespace) -> Iterator[str]:
    """A line for each kind; the ratios are this checkout's to the other's, turn by turn."""
    checkouts = (Path(__file__).parents[2], options.against)
    turns: list[dict[int, dict[str, list[float]]]] = []
    for number in range(options.turns):
        # Who was second is first in the next turn, so that neither gains from a machine that gets slower.
        order = (0, 1) if number % 2 == 0 else (1, 0)
        turns.append({side: _elsewhere(checkouts[side], options) for side in order})
    yield f"{'µs, least and median':44}{'here':>16}{'there':>16}{'ratio of least':>18}"
    for name in turns[0][0]:
        ours, theirs = ([turn[side][name] for turn in turns] for side in (0, 1))
        ratios = sorted(min(one) / min(two) for one, two in zip(ours, theirs, strict=True))
        told = f"{median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"
        yield f"{KINDS[name].title:44}{_told(*ours)}{_told(*theirs)}{told:>18}"


def _told(*turns: Sequence[float]) -> str:
    times = [time for turn in turns for time in turn]
    return f"{min(times):8.1f}{median(times):8.1f}"


def main() -> None:
    options = _parser().parse_args()
    if options.against is not None:
        for line in _compare(options):
            print(line)
        return
    found = _here(options.kinds or list(KINDS), options.rounds, options.failures)
    if options.json:
        print(json.dumps(found))
        return
    print("µs, least and median")
    for name, times in found.items():
        print(f"{KINDS[name].title:44}{_told(times)}")


def _kind(name: str) -> str:
    if name not in KINDS:
        raise argparse.ArgumentTypeError(f"{name} is none of {', '.join(KINDS)}")
    return name


def _parser() -> argparse.ArgumentParser:
    kinds = "".join(f"    {name:18} {kind.title}\n" for name, kind in KINDS.items())
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.in_process",
        description=(__doc__ or "") + kinds,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kinds", nargs="*", type=_kind, metavar="KIND", help="all, if none is named")
    parser.add_argument("--rounds", type=int, default=40, help=f"of {REQUESTS} requests (default: %(default)s)")
    parser.add_argument("--no-failures", dest="failures", action="store_false", help="never 429 for wrong keys")
    parser.add_argument("--json", action="store_true", help="print every round, by kind, as JSON")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="compare with another one")
    parser.add_argument("--turns", type=int, default=5, help="of each checkout, with --against (default: %(default)s)")
    return parser


if __name__ == "__main__":
    main()
