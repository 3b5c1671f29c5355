"""Each process counts quotas: several sidecars on one store say so, and save no counts."""

import sqlite3
import sys
from contextlib import closing
from pathlib import Path

from tests.harness.keys import run_cli
from tests.harness.running import Sidecar, StartSidecar
from tests.harness.tools import needed
from tests.harness.waiting import until
from tests.harness.wire import request_bytes
from tests.wire.contracts.outside import listener
from tests.wire.process.serving import CONFIG as SERVED
from tests.wire.process.serving import Served

CONFIG = """\
listen: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:unused.db
quotas: {few: {limit: 3, per: day, by: key}}
routes:
- GET /v1/**: {quotas: [few]}
"""
PROCESSES = "sidecar_store_processes"


def kept_counts(store: Path) -> int:
    with closing(sqlite3.connect(store)) as connection:
        [(rows,)] = connection.execute("SELECT count(*) FROM quota_state")
    return int(rows)


def remark(sidecar: Sidecar) -> bool:
    with listener(sidecar, "ops") as ops:
        return b"serves the store" in ops.exchange(request_bytes("GET", "/readyz?verbose")).body


def warnings(sidecar: Sidecar) -> list[str]:
    """Its output until it listened, and one more line."""
    assert sidecar.process.stderr.wait_for(lambda line: "active key" in line) is not None
    return [line for line in sidecar.process.stderr.all() if "each counts quotas separately" in line]


def test_a_second_sidecar_on_a_store_says_that_each_counts_for_itself(start_sidecar: StartSidecar) -> None:
    first = start_sidecar(CONFIG)
    second, third = (start_sidecar(CONFIG, store=first.keys.store) for _ in range(2))
    assert [len(warnings(each)) for each in (first, second, third)] == [0, 1, 1]
    assert str(first.keys.store) in warnings(second)[0]


def test_one_that_starts_after_another_has_ended_says_nothing(start_sidecar: StartSidecar) -> None:
    first = start_sidecar(CONFIG)
    assert first.stop() == 0
    assert warnings(start_sidecar(CONFIG, store=first.keys.store)) == []


def test_both_see_what_a_command_changes(start_sidecar: StartSidecar) -> None:
    """The mark does not release SQLite's locks."""
    first = start_sidecar(CONFIG)
    second = start_sidecar(CONFIG, store=first.keys.store)
    key = first.keys.issue()
    assert [each.ask("GET", "/v1/x", key=key).status for each in (first, second)] == [200, 200]
    first.keys.told("revoke", key.id)
    assert [each.ask("GET", "/v1/x", key=key).status for each in (first, second)] == [401, 401]
    assert second.stop() == 0
    assert run_cli("audit", "verify", "--store", first.keys.url).exit_code == 0
    assert first.ask("GET", "/v1/x", key=key).status == 401


def test_the_first_sidecar_learns_of_one_in_another_container_and_of_its_end(
    start_sidecar: StartSidecar, tmp_path: Path
) -> None:
    first = start_sidecar(CONFIG)
    assert (first.metric(PROCESSES), remark(first)) == (1, False)
    text = SERVED.replace("store: sqlite://FOLDER/keys.db", f"store: {first.keys.url}")
    (tmp_path / "sidecar.yaml").write_text(text.replace("FOLDER", str(tmp_path)), encoding="utf-8")
    elsewhere = [needed("unshare"), "--map-root-user", "--pid", "--fork", "--kill-child"]
    serve = [sys.executable, "-m", "sidecar", "serve", "-c", "sidecar.yaml"]
    with Served(tmp_path, command=[*elsewhere, *serve]) as second:
        second.wait_until_ready()
        assert second.metrics()[PROCESSES] == 2
        until(lambda: first.metric(PROCESSES) == 2)
        assert first.process.stderr.wait_for(lambda line: "each counts quotas separately" in line)
        assert len(warnings(first)) == 1 and remark(first)
    until(lambda: first.metric(PROCESSES) == 1)
    assert not remark(first)
    assert first.process.stderr.wait_for(lambda line: "no other sidecar serves the store" in line)


def test_no_sidecar_takes_up_what_another_has_counted(start_sidecar: StartSidecar) -> None:
    first = start_sidecar(CONFIG)
    key, store = first.keys.issue(), first.keys.store
    assert [first.ask("GET", "/v1/x", key=key).status for _ in range(4)] == [200, 200, 200, 429]
    until(lambda: kept_counts(store) == 1)
    second = start_sidecar(CONFIG, store=store)
    assert [second.ask("GET", "/v1/x", key=key).status for _ in range(4)] == [200, 200, 200, 429]
    until(lambda: kept_counts(store) == 0)
    until(lambda: first.metric(PROCESSES) == 2)
    assert first.stop() == 0
    assert kept_counts(store) == 0


def test_counts_of_the_only_sidecar_outlive_its_restart(start_sidecar: StartSidecar) -> None:
    first = start_sidecar(CONFIG)
    key = first.keys.issue()
    assert [first.ask("GET", "/v1/x", key=key).status for _ in range(4)] == [200, 200, 200, 429]
    assert first.stop() == 0
    assert start_sidecar(CONFIG, store=first.keys.store).ask("GET", "/v1/x", key=key).status == 429


def test_the_last_sidecar_left_stores_its_counts_again(start_sidecar: StartSidecar) -> None:
    first = start_sidecar(CONFIG)
    second = start_sidecar(CONFIG, store=first.keys.store)
    key = first.keys.issue()
    assert first.stop() == 0
    assert [second.ask("GET", "/v1/x", key=key).status for _ in range(4)] == [200, 200, 200, 429]
    until(lambda: kept_counts(first.keys.store) == 1)
