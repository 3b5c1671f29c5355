"""Counts of quotas by address take only the configured memory, however many addresses there are."""

import pytest

from tests.harness.running import Sidecar, StartSidecar
from tests.harness.wire import request_bytes

CONFIG = """
listen: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:unused.db
access_log: off
trusted_proxies: [127.0.0.1]
limiter: {entries: 1000}
keys: {environments: {live: hv_live_}, failures: off}
scopes: {read: Read}
quotas:
  general: {limit: 1, per: day, by: key}
  anonymous: {limit: 1, per: day, by: address}
routes:
  - GET /public/**: {public: true, quotas: [anonymous]}
  - GET /items/**: {scopes: [read], quotas: [general]}
"""
ADDRESSES = 1500


def flood(sidecar: Sidecar, addresses: int) -> set[int]:
    requests = [
        request_bytes("GET", "/public/1", [("X-Forwarded-For", f"2001:db8:{number:x}::1")])
        for number in range(addresses)
    ]
    with sidecar.connect() as connection:
        connection.send(b"".join(requests))
        return {connection.receive().status for _ in requests}


@pytest.mark.requirement("S7.7")
def test_a_flood_of_addresses_takes_bounded_memory_is_reported_and_resets_no_key(start_sidecar: StartSidecar) -> None:
    sidecar = start_sidecar(CONFIG)
    key = sidecar.keys.issue(scopes=("read",))
    assert [sidecar.ask("GET", "/items/1", key=key).status for _ in range(2)] == [200, 429]
    assert flood(sidecar, ADDRESSES) == {200}
    assert sidecar.metric("sidecar_quota_entries") == sidecar.metric("sidecar_quota_entries_limit") == 1000
    assert sidecar.metric("sidecar_quota_entries_evicted_total") == ADDRESSES - 999
    assert sidecar.ask("GET", "/items/1", key=key).status == 429
    assert sidecar.stop() == 0
    assert any("its 1000 entries are full" in line for line in sidecar.process.stderr.all())
