"""Sidecars that share a PostgreSQL store: what they see of each other, and what clients see while it is down."""

import asyncio
import time
from functools import partial
from signal import SIGQUIT

import pytest

from sidecar.store.postgresql.connection import CONNECT_SECONDS
from sidecar.store.store import open_store
from tests.harness.keys import IssuedKey, Keys
from tests.harness.postgresql import PostgresqlServer, running_postgresql
from tests.harness.running import Sidecar, StartSidecar
from tests.harness.waiting import until
from tests.unit.keys.making import Clock, ignore

CONFIG = """
listen: 127.0.0.1:0
ops: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:///replaced
scopes: {read: Read}
routes:
- GET /items/**: {scopes: [read], respond: {status: ok}}
"""
BACK_SECONDS = 5.0
LEAVE_SECONDS = 10.0
"""Far below what Kubernetes waits after SIGTERM."""
END_SESSIONS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE true"


def status(sidecar: Sidecar, key: IssuedKey | str) -> int:
    return sidecar.ask("GET", "/items/1", key=key).status


def is_answered(sidecar: Sidecar, key: IssuedKey, expected: int) -> bool:
    return status(sidecar, key) == expected


def is_unavailable(sidecar: Sidecar, key: IssuedKey | str) -> bool:
    """503 with Retry-After; nothing about the key."""
    response = sidecar.ask("GET", "/items/1", key=key)
    assert response.status in (200, 503), response
    return response.status == 503 and int(response.header("Retry-After")) > 0


@pytest.mark.requirement("S4.4")
def test_a_change_takes_effect_in_every_sidecar_within_a_second(url: str, start_sidecar: StartSidecar) -> None:
    first, second = start_sidecar(CONFIG, store=url), start_sidecar(CONFIG, store=url)
    key = first.keys.issue(scopes=("read",))
    assert [status(one, key) for one in (first, second)] == [200, 200]
    for change, expected in (("disable", 401), ("enable", 200), ("revoke", 401)):
        assert first.keys.run(change, key.id, *(["--yes"] if change == "revoke" else [])).exit_code == 0
        for one in (first, second):
            until(partial(is_answered, one, key, expected), within=1.0)
    for one in (first, second):
        known = one.metric("sidecar_revocation_lag_seconds_count")
        assert known == one.metric('sidecar_revocation_lag_seconds_bucket{le="1.0"}') >= 3


@pytest.mark.requirement("R2.5")
def test_connections_closed_by_the_server_are_reopened(
    server: PostgresqlServer, url: str, start_sidecar: StartSidecar
) -> None:
    sidecar = start_sidecar(CONFIG, store=url)
    key = sidecar.keys.issue(scopes=("read",))
    assert status(sidecar, key) == 200
    for _ in range(3):
        server.sql(f"{END_SESSIONS} AND datname = '{url.rpartition('/')[2]}'")
        until(lambda: not is_unavailable(sidecar, key), within=BACK_SECONDS)
        assert not is_unavailable(sidecar, sidecar.keys.issue(scopes=("read",)))
    assert sidecar.keys.run("disable", key.id).exit_code == 0
    until(lambda: status(sidecar, key) == 401, within=1.0)


@pytest.mark.requirement("R2.5")
@pytest.mark.parametrize("how", ["stopped", "paused"])
def test_while_the_database_is_down_requests_get_503_and_afterwards_all_is_well(
    how: str, start_sidecar: StartSidecar
) -> None:
    with running_postgresql() as own:
        sidecar, other = (start_sidecar(CONFIG, store=url) for url in [own.database()] * 2)
        assert "connections are in use" not in "".join(sidecar.process.stderr.all())
        known, unseen = sidecar.keys.issue(scopes=("read",)), sidecar.keys.issue(scopes=("read",))
        assert [status(one, known) for one in (sidecar, other)] == [200, 200]
        with own.down(how):
            until(lambda: is_unavailable(sidecar, known), within=BACK_SECONDS)
            for _ in range(20):
                assert is_unavailable(sidecar, known)
                assert is_unavailable(sidecar, unseen)
            assert sidecar.ready().status == 503
            started = time.monotonic()
            assert other.stop() == 0
            assert time.monotonic() - started < LEAVE_SECONDS
        until(lambda: not is_unavailable(sidecar, known), within=BACK_SECONDS)
        until(lambda: not is_unavailable(sidecar, unseen), within=BACK_SECONDS)
        assert status(sidecar, "sk_live_nobody") == 401
        assert sidecar.ready().status == 200
        assert sidecar.stop() == 0


async def test_a_store_closes_all_connections_to_a_silent_server_at_once(server: PostgresqlServer, url: str) -> None:
    store = await open_store(url, create=False, watched=True, clock=Clock(), timings=ignore)
    await asyncio.gather(*(store.keys.get("key_none") for _ in range(2)), store.keys.find({bytes(32): "sha256"}))
    async with store.database.transaction("none"):
        pass
    with server.paused():
        async with asyncio.timeout(2 * CONNECT_SECONDS):  # One after another, four times that.
            await store.close()


@pytest.mark.requirement("R2.1")
@pytest.mark.requirement("R2.5")
def test_with_grace_cached_keys_work_and_afterwards_none_until_the_database_is_back(
    start_sidecar: StartSidecar,
) -> None:
    with running_postgresql() as own:
        url = own.database()
        config = CONFIG.replace("store: sqlite:///replaced", f"store: {{url: '{url}', grace: 6s}}")
        sidecar = start_sidecar(config, store=url, options=["--workers", "2"])
        seen, unseen = sidecar.keys.issue(scopes=("read",)), sidecar.keys.issue(scopes=("read",))
        assert {status(sidecar, seen) for _ in range(40)} == {200}  # On connections that any worker may get.
        own.stop(SIGQUIT)
        assert {status(sidecar, seen) for _ in range(10)} == {200}
        assert is_unavailable(sidecar, unseen)
        assert sidecar.ready().status == 200
        until(lambda: sidecar.ready().status == 503)
        until(lambda: all(is_unavailable(sidecar, seen) for _ in range(10)))
        own.start()
        until(lambda: not is_unavailable(sidecar, seen), within=BACK_SECONDS)
        until(lambda: not any(is_unavailable(sidecar, key) for key in (seen, unseen) * 5), within=BACK_SECONDS)


@pytest.mark.requirement("R2.5")
def test_a_sidecar_without_connections_says_so_and_recovers(
    server: PostgresqlServer, url: str, start_sidecar: StartSidecar
) -> None:
    server.sql("CREATE ROLE crowd LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA sidecar TO crowd", url=url)
    server.sql("GRANT USAGE ON SCHEMA sidecar TO crowd", url=url)
    sidecar = start_sidecar(CONFIG, store=url.replace("postgres@", "crowd@"))
    key = sidecar.keys.issue(scopes=("read",))
    assert status(sidecar, key) == 200
    server.sql("ALTER ROLE crowd CONNECTION LIMIT 0", f"{END_SESSIONS} AND usename = 'crowd'")
    until(lambda: is_unavailable(sidecar, key), within=BACK_SECONDS)
    until(lambda: b"no connection left" in sidecar.ready().body, within=BACK_SECONDS)
    # Changes made meanwhile are not announced.
    assert Keys(sidecar.keys.config, url).run("disable", key.id).exit_code == 0
    server.sql("ALTER ROLE crowd CONNECTION LIMIT -1")
    seen: list[int] = []
    until(lambda: (seen.append(status(sidecar, key)) or seen[-1]) != 503, within=BACK_SECONDS)
    assert seen[-1] == 401, "the key is not in force as it was before"


def test_a_sidecar_warns_where_connections_are_few(start_sidecar: StartSidecar) -> None:
    with running_postgresql(max_connections="8") as small:
        sidecar = start_sidecar(CONFIG, store=small.database())
        assert sidecar.process.stderr.wait_for(lambda line: "connections are in use" in line) is not None


HOSTILE = (
    "idle_session_timeout = '50ms'",
    "idle_in_transaction_session_timeout = '1ms'",
    "statement_timeout = '50ms'",
    "lock_timeout = '1ms'",
    "search_path = public",
    "session_replication_role = 'replica'",  # Triggers are off, as in a restore.
)


@pytest.mark.requirement("S4.4")
def test_settings_of_a_database_keep_no_sidecar_from_its_work(
    server: PostgresqlServer, url: str, start_sidecar: StartSidecar
) -> None:
    server.sql(*(f"ALTER DATABASE {url.rpartition('/')[2]} SET {setting}" for setting in HOSTILE))
    sidecar = start_sidecar(CONFIG, store=url)
    keys = [sidecar.keys.issue(scopes=("read",)) for _ in range(3)]
    # Issuing one takes longer than the idle timeout of a session there.
    assert [status(sidecar, key) for key in keys] == [200] * 3
    assert sidecar.keys.run("revoke", keys[0].id, "--yes").exit_code == 0
    until(lambda: status(sidecar, keys[0]) == 401, within=1.0)
