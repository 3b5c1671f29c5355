"""The store's log is removed while a sidecar serves."""

import os

from tests.harness.keys import run_cli
from tests.harness.running import Sidecar, StartSidecar
from tests.harness.waiting import until
from tests.wire.process.test_background_work import CONFIG


def lose_log(sidecar: Sidecar) -> None:
    for suffix in ("-wal", "-shm"):
        os.unlink(f"{sidecar.keys.store}{suffix}")


def test_no_key_passes_and_no_change_is_acknowledged_once_the_log_is_gone(start_sidecar: StartSidecar) -> None:
    sidecar = start_sidecar(CONFIG)
    key = sidecar.keys.issue(scopes=("read",))
    assert sidecar.ask("GET", "/items/1", key=key).status == 200
    lose_log(sidecar)
    until(lambda: sidecar.ask("GET", "/items/1", key=key).status == 503)
    for command in (["keys", "revoke", key.id], ["audit", "verify"]):
        done = run_cli(*command, "--store", sidecar.keys.url)
        assert done.exit_code == 1
        assert "stop all that use the store, then restart" in done.output
    assert sidecar.stop() == 0
    assert sidecar.keys.told("show", key.id)["status"] == "active"
