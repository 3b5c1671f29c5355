"""Background work resumes once the cause of its failure is gone."""

import resource

from tests.harness.running import StartSidecar
from tests.harness.waiting import until
from tests.harness.wire import request_bytes
from tests.wire.contracts.outside import listener

CONFIG = """\
listen: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:unused.db
scopes: {read: Read}
routes:
- GET /items/**: {scopes: [read]}
"""
FAILURES = 'sidecar_background_failures_total{reason="store_unavailable"}'
SHOWN = "last_used_at"


def test_use_is_written_as_soon_as_the_disk_takes_it_again(start_sidecar: StartSidecar) -> None:
    sidecar = start_sidecar(CONFIG)
    key = sidecar.keys.issue(scopes=("read",))
    assert sidecar.keys.told("show", key.id)[SHOWN] is None
    _, hard = resource.prlimit(sidecar.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(sidecar.process.pid, resource.RLIMIT_FSIZE, (0, hard))
    assert sidecar.ask("GET", "/items/1", key=key).status == 200
    until(lambda: sidecar.metric(FAILURES) >= 2)
    assert sidecar.metric("sidecar_store_writable") == 0
    with listener(sidecar, "ops") as ops:
        ready = ops.exchange(request_bytes("GET", "/readyz?verbose"))
    assert ready.status == 200
    assert b"store: the last change was not written" in ready.body
    assert sidecar.keys.told("show", key.id)[SHOWN] is None
    resource.prlimit(sidecar.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
    until(lambda: sidecar.keys.told("show", key.id)[SHOWN] is not None)
    assert sidecar.metric("sidecar_store_writable") == 1
    assert sidecar.stop() == 0
