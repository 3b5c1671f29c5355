"""`sidecar serve --workers`: several processes that act as one sidecar."""

import json
import os
import signal
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.harness.keys import IssuedKey, run_cli
from tests.harness.running import Sidecar, StartSidecar
from tests.harness.waiting import until
from tests.harness.wire import Connection

CONFIG = """\
listen: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:unused.db
drain: {delay: 0s, timeout: 5s, socket: FOLDER/drain.sock}
reload: {watch: false}
scopes: {read: Read}
quotas:
  few: {limit: 20, per: day}
  many: {limit: 100000, per: day}
routes:
- GET /few/**: {scopes: [read], quotas: [few], respond: {}}
- GET /items/**: {scopes: [read], quotas: [many], respond: {}}
- GET /open: {public: true, respond: {version: one}}
"""


def start(start_sidecar: StartSidecar, folder: Path, workers: int = 3) -> Sidecar:
    file = folder / "sidecar.yaml"
    file.write_text(CONFIG.replace("FOLDER", str(folder)), encoding="utf-8")
    return start_sidecar(file, options=["--workers", str(workers)])


@pytest.fixture(scope="module")
def sidecar(start_shared_sidecar: StartSidecar, tmp_path_factory: pytest.TempPathFactory) -> Sidecar:
    return start(start_shared_sidecar, tmp_path_factory.mktemp("workers"))


@pytest.fixture(scope="module")
def key(sidecar: Sidecar) -> IssuedKey:
    return sidecar.keys.issue(scopes=("read",))


def children(sidecar: Sidecar) -> Sequence[int]:
    """The control process first, then the workers, without restarted ones."""
    pid = sidecar.process.pid
    # As they were started: numbers begin again at the greatest that the system allows.
    return [*map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split())]


def statuses(sidecar: Sidecar, target: str, count: int, *, key: IssuedKey | None = None) -> list[int]:
    """The statuses of concurrent requests, each on its own connection, which any worker may get."""
    with ThreadPoolExecutor(12) as threads:
        return list(threads.map(lambda _: sidecar.ask("GET", target, key=key).status, range(count)))


def ops_listeners(sidecar: Sidecar) -> Sequence[str]:
    """As each control process told of its own."""
    return [line for line in sidecar.process.stderr.all() if line.startswith("sidecar: ops listener on ")]


def ready(sidecar: Sidecar, path: str = "/readyz") -> tuple[int, str]:
    with Connection(sidecar.ops) as ops:
        response = ops.ask("GET", path)
    return response.status, response.body.decode()


def test_exactly_the_limit_passes_whichever_worker_counts(sidecar: Sidecar) -> None:
    passed = statuses(sidecar, "/few/1", 60, key=sidecar.keys.issue(scopes=("read",)))
    assert sorted(passed) == [200] * 20 + [429] * 40


def test_metrics_are_those_of_all_and_those_of_a_killed_worker_are_kept(sidecar: Sidecar, key: IssuedKey) -> None:
    requests = 'sidecar_requests_total{code="200",method="GET",route="GET /items/**"}'
    bucket = 'sidecar_request_seconds_bucket{le="+Inf",route="GET /items/**"}'
    before, restarts = sidecar.metric(requests), sidecar.metric("sidecar_worker_restarts_total")
    statuses(sidecar, "/items/1", 40, key=key)
    assert (sidecar.metric(requests), sidecar.metric(bucket)) == (before + 40, before + 40)
    killed = children(sidecar)[-1]
    os.kill(killed, signal.SIGKILL)
    assert sidecar.metric(requests) == before + 40
    until(lambda: sidecar.metric("sidecar_worker_restarts_total") == restarts + 1)
    until(lambda: sidecar.metric("sidecar_workers") == 3)
    assert killed not in children(sidecar)
    statuses(sidecar, "/items/1", 40, key=key)
    assert (sidecar.metric(requests), sidecar.metric(bucket)) == (before + 80, before + 80)
    assert sidecar.metric("sidecar_in_flight") == 0
    assert [line for line in sidecar.metrics().splitlines() if line.startswith("process_open_fds{worker=")] != []


def test_a_revoked_key_is_refused_by_all_on_the_next_request(sidecar: Sidecar) -> None:
    key = sidecar.keys.issue(scopes=("read",))
    assert set(statuses(sidecar, "/items/1", 24, key=key)) == {200}
    sidecar.keys.told("revoke", key.id)
    assert set(statuses(sidecar, "/items/1", 24, key=key)) == {401}


def test_use_of_a_key_is_written_once_for_all(sidecar: Sidecar) -> None:
    key = sidecar.keys.issue(scopes=("read",))
    statuses(sidecar, "/items/1", 30, key=key)

    def counted() -> int:
        return int(sidecar.keys.told("usage", key.id)["requests"])

    until(lambda: counted() == 30)
    until(lambda: sidecar.keys.told("show", key.id)["last_used_at"] is not None)


def test_every_line_of_the_access_log_is_whole(sidecar: Sidecar, key: IssuedKey) -> None:
    path = f"/items/{'x' * 900}"
    statuses(sidecar, path, 60, key=key)
    until(lambda: sum(path[:200] in line for line in sidecar.process.stdout.all()) == 60)
    assert all(json.loads(line)["path"] for line in sidecar.process.stdout.all())


def test_drain_and_undo_reach_all(sidecar: Sidecar) -> None:
    socket = str(sidecar.keys.config.parent / "drain.sock")

    def closing() -> set[bool]:
        with ThreadPoolExecutor(8) as threads:
            return set(threads.map(lambda _: sidecar.ask("GET", "/open").all("Connection") == ["close"], range(24)))

    assert closing() == {False}
    run_cli("drain", "--socket", socket)
    assert ready(sidecar)[0] == 503
    until(lambda: closing() == {True})
    os.kill(children(sidecar)[-1], signal.SIGKILL)
    until(lambda: sidecar.metric("sidecar_workers") == 3)
    assert closing() == {True}, "one that starts again drains, too"
    run_cli("drain", "--socket", socket, "--undo")
    until(lambda: closing() == {False})
    assert ready(sidecar) == (200, "ok\n")


def test_a_reload_reaches_all_and_those_that_start_after_it(sidecar: Sidecar) -> None:
    def versions() -> set[str]:
        with ThreadPoolExecutor(8) as threads:
            return set(threads.map(lambda _: sidecar.ask("GET", "/open").json()["version"], range(24)))

    assert versions() == {"one"}
    file = sidecar.keys.config
    file.write_text(file.read_text(encoding="utf-8").replace("version: one", "version: two"), encoding="utf-8")
    sidecar.process.signal(signal.SIGHUP)
    until(lambda: sidecar.metric('sidecar_config_reload_total{result="success"}') == 1)
    assert versions() == {"two"}
    os.kill(children(sidecar)[-1], signal.SIGKILL)
    until(lambda: sidecar.metric("sidecar_workers") == 3)
    assert versions() == {"two"}


def test_a_control_process_that_is_killed_is_started_again_while_workers_serve(sidecar: Sidecar) -> None:
    pids = children(sidecar)
    os.kill(pids[0], signal.SIGKILL)
    assert set(statuses(sidecar, "/open", 24)) == {200}
    until(lambda: children(sidecar)[0] != pids[0] and len(children(sidecar)) == 4)


def test_a_control_process_that_is_started_again_keeps_what_was_in_force(
    start_sidecar: StartSidecar, tmp_path: Path
) -> None:
    sidecar = start(start_sidecar, tmp_path, workers=2)
    file, written = sidecar.keys.config, sidecar.keys.config.read_text(encoding="utf-8")

    def versions() -> set[str]:
        return {sidecar.ask("GET", "/open").json()["version"] for _ in range(12)}

    file.write_text(written.replace("version: one", "version: two"), encoding="utf-8")
    sidecar.process.signal(signal.SIGHUP)
    until(lambda: versions() == {"two"})
    run_cli("drain", "--socket", str(tmp_path / "drain.sock"))
    file.write_text("broken: [", encoding="utf-8")
    os.kill(children(sidecar)[0], signal.SIGKILL)
    until(lambda: len(ops_listeners(sidecar)) == 2)
    port = int(ops_listeners(sidecar)[1].rpartition(":")[2])
    again = Sidecar(sidecar.process, sidecar.keys, {"data": sidecar.data, "ops": (sidecar.ops[0], port)})
    until(lambda: again.metric("sidecar_workers") == 2)
    assert versions() == {"two"}
    assert ready(again)[0] == 503, "it is drained as before"
    run_cli("drain", "--socket", str(tmp_path / "drain.sock"), "--undo")
    assert ready(again)[0] == 200


def test_sigterm_ends_all_after_what_has_begun(start_sidecar: StartSidecar, tmp_path: Path) -> None:
    sidecar = start(start_sidecar, tmp_path, workers=2)
    pids = children(sidecar)
    with sidecar.connect() as begun:
        begun.send(b"GET /open HTTP/1.1\r\nHost: a\r\n")
        until(lambda: ready(sidecar)[0] == 200)
        for pid in (sidecar.process.pid, *pids):  # Like a service manager.
            os.kill(pid, signal.SIGTERM)
        until(lambda: "draining" in " ".join(sidecar.process.stderr.all()))
        begun.send(b"\r\n")
        assert begun.receive().status == 200
    assert sidecar.process.wait() == 0
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []


def test_counts_outlive_a_restart_with_another_number_of_workers(start_sidecar: StartSidecar, tmp_path: Path) -> None:
    before = start(start_sidecar, tmp_path, workers=2)
    key = before.keys.issue(scopes=("read",))
    assert statuses(before, "/few/1", 15, key=key) == [200] * 15
    assert before.stop() == 0
    after = start_sidecar(before.keys.config, store=before.keys.store)
    assert sorted(statuses(after, "/few/1", 10, key=key)) == [200] * 5 + [429] * 5


def test_all_processes_end_if_their_parent_does(start_sidecar: StartSidecar, tmp_path: Path) -> None:
    sidecar = start(start_sidecar, tmp_path, workers=2)
    pids = children(sidecar)
    os.kill(sidecar.process.pid, signal.SIGKILL)
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def test_a_startup_failure_of_a_worker_or_the_control_process_ends_all(
    start_sidecar: StartSidecar, tmp_path: Path
) -> None:
    with pytest.raises(AssertionError, match="exit status 1"):
        start_sidecar(CONFIG.replace("FOLDER", str(tmp_path / "missing")), options=["--workers", "2"])
