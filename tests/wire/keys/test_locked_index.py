"""Another process holds the locks of the log's index (`-shm`) while a sidecar serves."""

import pytest

from tests.harness.keys import IssuedKey
from tests.harness.running import Sidecar, StartSidecar
from tests.harness.waiting import until
from tests.harness.wire import Connection
from tests.wire.keys.locking import EVERYBODY, locked

CONFIG = """\
listen: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:unused.db
scopes: {read: Read}
routes:
- GET /items/**: {scopes: [read], respond: {status: ok}}
"""


@pytest.fixture
def sidecar(start_sidecar: StartSidecar) -> Sidecar:
    return start_sidecar(CONFIG)


def status(sidecar: Sidecar, key: IssuedKey) -> int:
    return sidecar.ask("GET", "/items/1", key=key).status


def health(sidecar: Sidecar, path: str) -> tuple[int, str]:
    with Connection(sidecar.ops) as connection:
        response = connection.ask("GET", path)
        return response.status, response.body.decode()


@pytest.mark.requirement("R2.1")
def test_while_the_store_is_down_cached_keys_work_and_others_are_unavailable(sidecar: Sidecar) -> None:
    seen, new = (sidecar.keys.issue(scopes=("read",)) for _ in range(2))
    assert status(sidecar, seen) == 200
    with locked(str(sidecar.keys.store), EVERYBODY):
        for _ in range(2):
            assert [status(sidecar, key) for key in (seen, new, seen)] == [200, 503, 200]
            assert health(sidecar, "/livez")[0] == 200
            assert health(sidecar, "/readyz")[0] == 503
    until(lambda: status(sidecar, new) == 200)
    until(lambda: health(sidecar, "/readyz")[0] == 200)


@pytest.mark.requirement("R2.1")
def test_a_lock_does_not_hide_a_revocation(sidecar: Sidecar) -> None:
    revoked, other = (sidecar.keys.issue(scopes=("read",)) for _ in range(2))
    assert [status(sidecar, key) for key in (revoked, other)] == [200, 200]
    assert sidecar.keys.run("revoke", revoked.id, "--yes").exit_code == 0
    with locked(str(sidecar.keys.store), EVERYBODY):
        assert [status(sidecar, key) for key in (revoked, other)] == [503, 503]
        assert health(sidecar, "/livez")[0] == 200
        ready, said = health(sidecar, "/readyz")
        assert ready == 503
        assert "held by another process" in said
    until(lambda: status(sidecar, other) == 200)
    assert status(sidecar, revoked) == 401
