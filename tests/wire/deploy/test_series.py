"""The size of a scrape: unknown clients and paths create no series, in both formats that Prometheus requests."""

from collections.abc import Iterable

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as plain_metrics

from tests.bench.keys import make_keys
from tests.harness.running import Sidecar, StartSidecar
from tests.harness.wire import Connection, Response, request_bytes

CONFIG = """
listen: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:unused.db
access_log: off
keys: {environments: {live: hv_live_}, failures: off}
scopes: {items:read: Read}
quotas: {general: {limit: 1000000, per: hour, by: key}}
routes:
  - GET /v1/items/**: {scopes: [items:read], quotas: [general]}
"""
BATCH = 100
MOST_SERIES = 400
"""One route, one quota, one instance. Each further route adds the series of three histograms, and its counters."""
STORE = "sidecar_store_seconds"
"""By operation: some appear over time, regardless of requests."""
ODD_METHODS = ("PROPFIND", "MKCOL", "LOCK", "REPORT", "SEARCH", "SUBSCRIBE")
OPEN_METRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"


@pytest.fixture(scope="module")
def sidecar(start_shared_sidecar: StartSidecar) -> Sidecar:
    return start_shared_sidecar(CONFIG)


def send_all(sidecar: Sidecar, requests: Iterable[bytes]) -> set[int]:
    """Sends them pipelined, in batches. Returns the statuses."""
    waiting, statuses = list(requests), set()
    with sidecar.connect() as connection:
        while waiting:
            batch, waiting = waiting[:BATCH], waiting[BATCH:]
            connection.send(b"".join(batch))
            statuses |= {connection.receive().status for _ in batch}
    return statuses


def asked(target: str, key: str, method: str = "GET") -> bytes:
    return request_bytes(method, target, [("Authorization", f"Bearer {key}")])


def series(sidecar: Sidecar) -> list[str]:
    return [line.rpartition(" ")[0] for line in sidecar.metrics().splitlines() if not line.startswith("#")]


def but_the_stores(names: list[str]) -> set[str]:
    return {name for name in names if not name.startswith(STORE)}


def scraped(sidecar: Sidecar, accept: str) -> Response:
    with Connection(sidecar.ops) as connection:
        return connection.ask("GET", "/metrics", [("Accept", accept)])


@pytest.mark.timeout(600)
def test_ten_thousand_unknown_keys_and_a_thousand_paths_make_no_series(sidecar: Sidecar) -> None:
    key = sidecar.keys.issue(scopes=("items:read",)).text
    strangers = make_keys(10_000, seed=2)
    for first in (asked("/v1/items/0", key), asked("/x/0", key), asked("/v1/items/0", strangers[0])):
        send_all(sidecar, [first])
    send_all(sidecar, [asked("/v1/items/0", key, "PURGE")])
    one_of_each = series(sidecar)
    assert send_all(sidecar, (asked("/v1/items/1", stranger) for stranger in strangers)) == {401}
    assert send_all(sidecar, (asked(f"/v1/items/{number}", key) for number in range(1000))) == {200}
    assert send_all(sidecar, (asked(f"/x/{number}", key) for number in range(1000))) == {403}
    assert send_all(sidecar, (asked("/v1/items/1", key, method) for method in ODD_METHODS)) == {403}
    in_the_end = series(sidecar)
    print(f"\n{len(one_of_each)} series before, {len(in_the_end)} after 10,000 unknown keys and 2,000 paths")
    assert but_the_stores(in_the_end) == but_the_stores(one_of_each)
    assert len(in_the_end) <= MOST_SERIES


def test_both_formats_have_the_same_content(sidecar: Sidecar) -> None:
    opened, plain = scraped(sidecar, OPEN_METRICS), scraped(sidecar, "text/plain")
    assert opened.header("Content-Type").startswith("application/openmetrics-text")
    assert plain.header("Content-Type").startswith("text/plain")
    assert opened.body.endswith(b"# EOF\n")
    told = [
        {(sample.name, frozenset(sample.labels.items())) for family in families for sample in family.samples}
        for families in (open_metrics(opened.body.decode()), plain_metrics(plain.body.decode()))
    ]
    assert told[0] == told[1]


def test_every_metric_has_a_word_of_help(sidecar: Sidecar) -> None:
    families = list(open_metrics(scraped(sidecar, OPEN_METRICS).body.decode()))
    assert len(families) >= 15
    assert [family.name for family in families if len(family.documentation) < 10] == []
    known = ("sidecar_", "process_", "python_")
    assert [family.name for family in families if not family.name.startswith(known)] == []
