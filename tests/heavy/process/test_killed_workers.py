"""Workers that are killed at any time under load: counts stay exact, metrics never decrease, others notice nothing."""

import os
import random
import re
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread

from tests.harness.keys import IssuedKey
from tests.harness.running import Sidecar, StartSidecar
from tests.harness.waiting import until
from tests.harness.wire import ConnectionClosed

CONFIG = """\
listen: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:unused.db
access_log: off
drain: {delay: 0s, timeout: 5s}
scopes: {read: Read}
quotas:
  all: {limit: 1500, per: day}
  slid: {limit: 1400, per: day, window: sliding}
routes:
- GET /v1/**: {scopes: [read], quotas: [all, slid], respond: {}}
"""
COUNTER = re.compile(r"\w+_(total|bucket|count)\b")
LIMIT, KILLS, CLIENTS, WORKERS = 1_400, 200, 3, 3
BROKEN = 0
"""In place of a status: the connection ended without a response, as that of a killed worker does."""


class Client:
    """Asks again and again, each time on a connection of its own."""

    def __init__(self, sidecar: Sidecar, key: IssuedKey, over: Event) -> None:
        self.statuses = Counter[int]()
        self._sidecar, self._key, self._over = sidecar, key, over
        self._thread = Thread(target=self._run)
        self._thread.start()

    def join(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        while not self._over.is_set():
            self.statuses[self._ask()] += 1
            self._over.wait(0.01)

    def _ask(self) -> int:
        try:
            return self._sidecar.ask("GET", "/v1/x", key=self._key).status
        except (OSError, ConnectionClosed):
            return BROKEN


class Watch:
    """Reads the metrics again and again: `fallen` are the counters that were less than before."""

    def __init__(self, sidecar: Sidecar, over: Event) -> None:
        self.fallen, self.rounds = set[str](), 0
        self._sidecar, self._over, self._before = sidecar, over, dict[str, float]()
        self._thread = Thread(target=self._run)
        self._thread.start()

    def join(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        while not self._over.is_set():
            self._look()
            self._over.wait(0.3)

    def _look(self) -> None:
        lines = [line.rpartition(" ") for line in self._sidecar.metrics().splitlines()]
        now = {name: float(value) for name, _, value in lines if COUNTER.match(name)}
        self.fallen |= {name for name, value in self._before.items() if now.get(name, 0.0) < value}
        self._before, self.rounds = now, self.rounds + 1


def children(pid: int) -> list[int]:
    found = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split())
    return sorted(child for child in found if lives(child))


def lives(pid: int) -> bool:
    """Until its parent has seen its end, a killed process is there, and to kill it once more kills nobody."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


def kill_some(workers: Callable[[], list[int]]) -> None:
    chance, pause = random.Random(7), Event()  # noqa: S311 - choices that are the same each time
    for _ in range(KILLS):
        until(lambda: len(workers()) == WORKERS or pause.wait(0.01))
        os.kill(chance.choice(workers()), signal.SIGKILL)
        pause.wait(chance.random() * 0.15)


def test_two_hundred_kills_leave_counts_exact_and_fail_no_other_request(start_sidecar: StartSidecar) -> None:
    sidecar, over = start_sidecar(CONFIG, options=["--workers", str(WORKERS)]), Event()
    control = children(sidecar.process.pid)[0]
    key = sidecar.keys.issue(scopes=("read",))
    clients, watch = [Client(sidecar, key, over) for _ in range(CLIENTS)], Watch(sidecar, over)
    kill_some(lambda: [pid for pid in children(sidecar.process.pid) if pid != control])
    over.set()
    for client in clients:
        client.join()
    watch.join()
    until(lambda: sidecar.metric("sidecar_workers") == WORKERS)
    statuses = sum([client.statuses for client in clients], Counter[int]())
    while (status := sidecar.ask("GET", "/v1/x", key=key).status) != 429:
        statuses[status] += 1
        assert statuses[200] <= LIMIT
    assert set(statuses) <= {200, 429, BROKEN}
    assert statuses[BROKEN] <= KILLS * CLIENTS
    assert LIMIT - statuses[BROKEN] <= statuses[200] <= LIMIT
    assert watch.fallen == set() and watch.rounds > 1
    assert sidecar.metric("sidecar_worker_restarts_total") > KILLS / 2
    assert sidecar.stop() == 0
