"""`sidecar keys usage`, end to end: from a request to the output."""

import asyncio
import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from sidecar.cli.key_service import open_store
from sidecar.usage.recorder import DAY, HOUR, LastUse, UsageRow
from tests.harness.keys import IssuedKey, Keys
from tests.harness.running import Sidecar, StartSidecar

CONFIG = """
listen: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:///nowhere/keys.db
scopes: {"a:read": Read}
quotas: {few: {limit: 2, per: hour}}
routes:
  - GET /v1/a: {scopes: ["a:read"]}
  - GET /v1/few: {quotas: [few]}
  - POST /v1/b: {}
usage:
  unusual: {refusals: {limit: 3, within: 1h}}
"""


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    config = tmp_path / "sidecar.yaml"
    config.write_text(CONFIG)
    return Keys(config, tmp_path / "keys.db")


def write(keys: Keys, rows: list[UsageRow], uses: dict[str, LastUse] | None = None) -> None:
    async def work() -> None:
        async with open_store(keys.url) as store:
            await store.usage.add(rows)
            await store.usage.touch(uses or {})

    asyncio.run(work())


def row(key: IssuedKey, at: int, count: int, *, route: str = "GET /v1/a", status_class: int = 2) -> UsageRow:
    return UsageRow(key_id=key.id, at=at - at % HOUR, route=route, status_class=status_class, count=count)


def counts(told: dict[str, Any]) -> dict[tuple[str, int], int]:
    found: dict[tuple[str, int], int] = {}
    for one in told["usage"]:
        place = (one["route"], one["status_class"])
        found[place] = found.get(place, 0) + one["count"]
    return found


def test_an_unused_key_says_so(keys: Keys) -> None:
    key = keys.issue("CI")
    shown = keys.run("usage", key.id)
    assert shown.stdout.splitlines() == [f"{key.id} (CI): 0 requests in the last 7 days.", "Never used."]


def test_usage_is_shown_by_route_and_by_day(keys: Keys) -> None:
    key, now = keys.issue("CI"), int(time.time() * 1_000_000)
    yesterday = now - DAY
    use = LastUse(at=1_700_000_000_000_000, address="203.0.113.9", agent="\x1b[31mcurl")
    rows = [row(key, now, 1200), row(key, yesterday, 300), row(key, now, 5, route="POST /v1/b", status_class=4)]
    write(keys, [*rows, row(key, now - 8 * DAY, 7)], {key.id: use})
    lines = keys.run("usage", key.id).stdout.splitlines()
    assert lines[0] == f"{key.id} (CI): 1,505 requests in the last 7 days."
    assert lines[1] == "Last used 2023-11-14T22:13:20Z from 203.0.113.9 by ?[31mcurl."
    assert [line.split() for line in lines[3:6]] == [
        ["ROUTE", "2XX", "4XX"],
        ["GET", "/v1/a", "1,500", "0"],
        ["POST", "/v1/b", "0", "5"],
    ]
    bars = [line.split() for line in lines[8:]]
    assert [bar[1] for bar in bars] == ["300", "1,205"]
    assert [len(bar[2]) for bar in bars] == [9, 40]
    assert counts(keys.told("usage", key.id, "--days", "9")) == {("GET /v1/a", 2): 1507, ("POST /v1/b", 4): 5}


def test_a_short_span_is_shown_by_the_hour(keys: Keys) -> None:
    key, now = keys.issue("CI"), int(time.time() * 1_000_000)
    write(keys, [row(key, now, 4), row(key, now - 2 * HOUR, 4)])
    lines = keys.run("usage", key.id, "--days", "1").stdout.splitlines()
    assert lines[0].endswith("8 requests in the last day.")
    assert len(lines[lines.index("") + 1 :]) == 6


def test_a_key_that_is_not_there_and_a_wrong_span_are_clear_errors(keys: Keys) -> None:
    keys.issue("CI")
    gone = keys.run("usage", "key_gone")
    assert (gone.exit_code, gone.stderr) == (1, "Error: no key 'key_gone'; see sidecar keys list\n")
    assert keys.run("usage", "key_gone", "--days", "0").exit_code == 2


@pytest.fixture
def sidecar(start_sidecar: StartSidecar) -> Sidecar:
    return start_sidecar(CONFIG)


def unusual(sidecar: Sidecar) -> list[dict[str, Any]]:
    lines = [line for line in sidecar.process.stderr.all() if line.startswith("{")]
    return [json.loads(line) for line in lines]


def test_nothing_is_lost_on_shutdown(sidecar: Sidecar) -> None:
    key = sidecar.keys.issue("CI", scopes=("a:read",))
    with sidecar.connect() as connection:
        bearer = (("Authorization", f"Bearer {key.text}"), ("User-Agent", "a-test/1"))
        for _ in range(500):
            assert connection.ask("GET", "/v1/a", bearer).status == 200
        assert [connection.ask("GET", "/v1/few", bearer).status for _ in range(3)] == [200, 200, 429]
        assert connection.ask("GET", "/v1/unknown", bearer).status == 403
    assert sidecar.stop() == 0
    told = sidecar.keys.told("usage", key.id)
    assert told["requests"] == 504
    assert counts(told) == {
        ("GET /v1/a", 2): 500,
        ("GET /v1/few", 2): 2,
        ("GET /v1/few", 4): 1,
        ("(none)", 4): 1,
    }
    assert (told["last_used_address"], told["last_used_agent"]) == ("127.0.0.1", "a-test/1")


def test_uses_are_written_while_the_sidecar_runs(sidecar: Sidecar) -> None:
    key = sidecar.keys.issue("CI", scopes=("a:read",))
    sidecar.ask("GET", "/v1/a", key=key)
    give_up = time.monotonic() + 60
    while not (told := sidecar.keys.told("usage", key.id))["requests"]:
        assert time.monotonic() < give_up
    assert told["requests"] == 1


def test_unusual_use_is_logged_and_remembered_across_a_restart(start_sidecar: StartSidecar) -> None:
    first = start_sidecar(CONFIG)
    key, other = first.keys.issue("CI", scopes=("a:read",)), first.keys.issue("old")
    first.ask("GET", "/v1/a", key=key, source="127.0.0.1")
    first.keys.run("revoke", other.id)
    assert first.ask("GET", "/v1/a", key=other).status == 401
    for _ in range(3):
        first.ask("POST", "/v1/a", key="nobody's", source="127.0.7.1")
    assert first.stop() == 0
    found = {(one["kind"], one["key_id"], one["client_address"]) for one in unusual(first)}
    assert found == {("revoked_key", other.id, "127.0.0.1"), ("refusals", None, "127.0.7.1")}

    second = start_sidecar(CONFIG, store=first.keys.store)
    second.ask("GET", "/v1/a", key=key, source="127.0.0.1")
    second.ask("GET", "/v1/a", key=key, source="127.0.9.1")
    assert second.ask("GET", "/v1/a", key=other).status == 401
    assert second.stop() == 0
    assert [(one["kind"], one["key_id"], one["detail"]) for one in unusual(second)] == [
        ("new_network", key.id, "first use from 127.0.9.0/24")
    ]


def test_the_metric_of_unusual_events_begins_at_zero(sidecar: Sidecar) -> None:
    assert 'sidecar_unusual_total{kind="new_network"} 0.0' in sidecar.metrics()


def test_new_limits_apply_after_a_reload(start_sidecar: StartSidecar) -> None:
    sidecar = start_sidecar(CONFIG.replace("limit: 3", "limit: 1000"))
    sidecar.keys.config.write_text(CONFIG)
    sidecar.process.signal(signal.SIGHUP)
    assert sidecar.process.stderr.wait_for(lambda line: str(sidecar.keys.config) in line) is not None
    for _ in range(3):
        sidecar.ask("POST", "/v1/a", key="nobody's")
    assert sidecar.stop() == 0
    assert [one["kind"] for one in unusual(sidecar)] == ["refusals"]
