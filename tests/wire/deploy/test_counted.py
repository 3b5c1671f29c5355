"""A running sidecar exposes the metrics that the alerts read."""

import time
from pathlib import Path

from tests.harness.keys import Keys
from tests.harness.running import Sidecar, StartSidecar

CONFIG = """
listen: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:unused.db
keys: {environments: {live: acme_}}
routes: [GET /v1/**: {}]
"""
PATIENCE_SECONDS = 60.0


def becomes_more(sidecar: Sidecar, sample: str, than: float) -> bool:
    """Polls until it is so, or the time is over."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if sidecar.metric(sample) > than:
            return True
    return False


def test_keys_that_end_soon_are_counted_by_how_soon(start_sidecar: StartSidecar, tmp_path: Path) -> None:
    config = tmp_path / "sidecar.yaml"
    config.write_text(CONFIG)
    keys = Keys(config, tmp_path / "keys.db")
    for expires in ("12h", "3d", "5d", "20d", "90d", None):
        keys.issue(expires=expires)
    keys.run("revoke", keys.issue(expires="12h").id)
    sidecar = start_sidecar(config, store=keys.store)
    due = {span: sidecar.metric(f'sidecar_keys_due{{turn="expires",within="{span}"}}') for span in ("1d", "7d", "30d")}
    assert due == {"1d": 1, "7d": 3, "30d": 4}
    assert 'sidecar_keys_due{turn="retires",within="1d"} 0.0' in sidecar.metrics()


def test_failed_background_writes_are_counted(start_sidecar: StartSidecar) -> None:
    sidecar = start_sidecar(CONFIG)
    sample = 'sidecar_background_failures_total{reason="store_unavailable"}'
    assert f"{sample} 0.0" in sidecar.metrics()
    assert sidecar.ask("GET", "/v1/x", key=sidecar.keys.issue()).status == 200
    sidecar.keys.store.rename(sidecar.keys.store.with_name("gone.db"))
    assert becomes_more(sidecar, sample, 0)
