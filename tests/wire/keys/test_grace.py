"""Cached keys keep working while the store is unavailable (`store.grace`), on both paths of a request."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness.keys import IssuedKey, run_cli
from tests.harness.running import Sidecar, StartSidecar
from tests.harness.waiting import until
from tests.wire.keys.locking import RECOVERY, locked
from tests.wire.keys.test_locked_index import CONFIG, health, status
from tests.wire.reload.changing import Changing

WAYS = pytest.mark.parametrize("known", ["on", "off"])


def with_grace(start_sidecar: StartSidecar, grace: str, known: str = "on") -> Sidecar:
    config = CONFIG.replace("store: sqlite:unused.db", f"store: {{url: 'sqlite:unused.db', grace: {grace}}}")
    return start_sidecar(config, environ={"SIDECAR_KNOWN_REQUESTS": known})


def issued(sidecar: Sidecar, count: int) -> list[IssuedKey]:
    return [sidecar.keys.issue(scopes=("read",)) for _ in range(count)]


@contextmanager
def moved(store: Path) -> Iterator[str]:
    """Moves the store and its log to where commands can still reach it. Returns its URL."""
    away = store.with_name("away.db")
    for old, new in ((store, away), (away, store)):
        for suffix in ("", "-wal", "-shm"):
            os.rename(f"{old}{suffix}", f"{new}{suffix}")
        if new is away:
            yield f"sqlite://{away}"


@pytest.mark.requirement("R2.1")
@WAYS
def test_while_the_store_is_locked_cached_keys_work_and_the_operator_is_informed(
    start_sidecar: StartSidecar, known: str
) -> None:
    sidecar = with_grace(start_sidecar, "1h", known)
    seen, new = issued(sidecar, 2)
    assert status(sidecar, seen) == 200
    with locked(str(sidecar.keys.store), RECOVERY):
        for _ in range(2):
            assert [status(sidecar, key) for key in (seen, new, seen)] == [200, 503, 200]
        assert sidecar.ask("GET", "/items/1", key=new).header("retry-after") == "1"
        assert health(sidecar, "/readyz") == (200, "ok\n")
        assert "store: no answer, cached keys keep working for " in health(sidecar, "/readyz?verbose")[1]
        assert sidecar.metric("sidecar_store_grace_active") == 1
        assert sidecar.metric("sidecar_store_grace_lookups_total") >= 4
    until(lambda: sidecar.metric("sidecar_store_grace_active") == 0)
    assert [status(sidecar, key) for key in (seen, new)] == [200, 200]
    assert "store: ok" in health(sidecar, "/readyz?verbose")[1]
    assert sidecar.process.stderr.wait_for(lambda line: "store: answers again" in line) is not None
    [begun] = [line for line in sidecar.process.stderr.all() if "store: no answer" in line]
    assert "cached keys keep working for up to " in begun


@pytest.mark.requirement("R2.1")
@WAYS
def test_changes_made_meanwhile_take_effect_once_the_store_is_back(start_sidecar: StartSidecar, known: str) -> None:
    sidecar = with_grace(start_sidecar, "1h", known)
    seen, revoked = issued(sidecar, 2)
    assert [status(sidecar, key) for key in (seen, revoked)] == [200, 200]
    with moved(sidecar.keys.store) as url:
        done = run_cli("keys", "revoke", revoked.id, "--yes", "--store", url)
        assert done.exit_code == 0, done.output
        assert [status(sidecar, key) for key in (seen, revoked)] == [200, 200]
    until(lambda: sidecar.metric("sidecar_store_grace_active") == 0)
    assert [status(sidecar, key) for key in (seen, revoked)] == [200, 401]


def test_after_the_grace_no_key_works_until_the_store_is_back(start_sidecar: StartSidecar) -> None:
    sidecar = with_grace(start_sidecar, "1s")
    [seen] = issued(sidecar, 1)
    assert status(sidecar, seen) == 200
    with locked(str(sidecar.keys.store), RECOVERY):
        until(lambda: status(sidecar, seen) == 503)
        assert health(sidecar, "/readyz")[0] == 503
        assert sidecar.metric("sidecar_store_grace_active") == 0
    until(lambda: status(sidecar, seen) == 200)
    assert [line for line in sidecar.process.stderr.all() if "store.grace is over" in line]


def test_a_reload_changes_the_grace(start_sidecar: StartSidecar, tmp_path: Path) -> None:
    file = tmp_path / "sidecar.yaml"
    file.write_text(f"{CONFIG}reload: {{interval: 50ms}}\n", encoding="utf-8")
    changing = Changing(sidecar=start_sidecar(file), file=file)
    sidecar = changing.sidecar
    [seen] = issued(sidecar, 1)
    assert status(sidecar, seen) == 200
    with moved(sidecar.keys.store):
        assert status(sidecar, seen) == 503
    until(lambda: status(sidecar, seen) == 200)
    changing.taken(
        f"{CONFIG}reload: {{interval: 50ms}}\n".replace("sqlite:unused.db", "{url: 'sqlite:a.db', grace: 1h}")
    )
    with moved(sidecar.keys.store):
        assert status(sidecar, seen) == 200
