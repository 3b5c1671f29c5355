"""A thousand reloads under load."""

import asyncio
import hashlib
import signal
from pathlib import Path

import pytest

from sidecar.config.fields import Address
from tests.harness.running import Sidecar
from tests.upstreams.scripted import Peer, ScriptedUpstream, plain
from tests.wire.proxy.wire import RawClient, get
from tests.wire.reload.changing import Changing
from tests.wire.reload.conftest import StartChanging

CONFIG = """\
listen: 127.0.0.1:0
upstream: {url: 'http://127.0.0.1:1', host: NAME}
store: sqlite:///nowhere
keys: {cache_size: 1}
scopes: {read: Read}
routes: [{GET /items/**: {scopes: [read]}}]
realm: rNUMBER
reload: {watch: false}
drain: {delay: 0s}
identity: {headers: {X-Version: NAME}}
"""
"""As little as needed: reading it is a third of the cost of a reload."""
RELOADS = 1000
SETTLED = 300
"""Reloads after which nothing may grow any longer."""
GROWTH_KIB = 4 * 1024
CLIENTS = 4
REQUESTS = 2
"""Requests of each client meanwhile: more would slow down the reload that they should coincide with."""


def version(number: int) -> str:
    """Two thirds of the versions change the upstream's settings, and with them its connections; each changes the gate.

    A request says to the upstream which version it was decided by, and which it was forwarded by. Only one key is kept
    in memory, so that most requests wait for the store between the two.
    """
    name = f"v{number // 3}" if number % 3 else f"w{number}"
    return CONFIG.replace("NAME", name).replace("NUMBER", str(number))


async def told(peer: Peer) -> None:
    while True:
        head = (await peer.request()).decode()
        forwarded_by, decided_by = (
            head.partition(f"\r\n{name}: ")[2].partition("\r\n")[0] for name in ("Host", "X-Version")
        )
        await peer.send(plain(f"{forwarded_by} {decided_by}".encode()))


class Load:
    """Consecutive requests on kept connections: a few at each reload, until stopped."""

    def __init__(self, sidecar: Sidecar) -> None:
        self._address = Address(host=sidecar.data[0], port=sidecar.data[1])
        self.stopping = False
        self._turns = [asyncio.Semaphore(0) for _ in range(CLIENTS)]
        self.seen: set[str] = set()
        self.count = 0

    def let_go(self) -> None:
        """Each client sends its next requests."""
        for turns in self._turns:
            for _ in range(REQUESTS):
                turns.release()

    async def run(self, number: int, key: str) -> None:
        raw = get("/items/1", f"Authorization: Bearer {key}".encode())
        client = await RawClient.connect(self._address)
        while True:
            await self._turns[number].acquire()
            if self.stopping:
                break
            response = await client.ask(raw)
            assert response.status == 200
            forwarded_by, decided_by = response.body.decode().split(" ")
            assert forwarded_by == decided_by
            self.seen.add(decided_by)
            self.count += 1
        await client.close()


async def reload(changing: Changing, load: Load, number: int) -> None:
    text = version(number)
    changing.write(text)
    changing.sidecar.process.signal(signal.SIGHUP)
    load.let_go()
    end = f"(sha256 {hashlib.sha256(text.encode()).hexdigest()[:12]})"
    stderr = changing.sidecar.process.stderr
    assert await asyncio.to_thread(stderr.wait_for, lambda line: line.endswith(end)), stderr.all()[-5:]


def resident_kib(sidecar: Sidecar) -> int:
    lines = Path(f"/proc/{sidecar.process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1])


@pytest.mark.requirement("R5.2")
@pytest.mark.timeout(600)
async def test_a_thousand_reloads_fail_no_request_and_leave_nothing_behind(start_changing: StartChanging) -> None:
    upstream = ScriptedUpstream(told)
    await upstream.start()
    changing = start_changing(version(0), upstream_url=f"http://127.0.0.1:{upstream.address.port}")
    load, issue = Load(changing.sidecar), changing.sidecar.keys.issue
    keys = [issue(f"key {number}", scopes=("read",)).text for number in range(CLIENTS)]
    async with asyncio.TaskGroup() as group:
        for number, key in enumerate(keys):
            group.create_task(load.run(number, key))
        for number in range(1, SETTLED):
            await reload(changing, load, number)
        settled = resident_kib(changing.sidecar)
        for number in range(SETTLED, RELOADS + 1):
            await reload(changing, load, number)
        grown = resident_kib(changing.sidecar) - settled
        load.stopping = True
        load.let_go()
    assert grown < GROWTH_KIB
    assert changing.reloads("success") == RELOADS
    assert load.count > RELOADS
    assert len(load.seen) > RELOADS / 4
    assert changing.sidecar.stop() == 0
    await upstream.stop()
    assert not [line for line in changing.sidecar.process.stderr.all() if "error" in line]
