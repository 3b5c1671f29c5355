"""Lookups at a real standby (`store.replica`): they count only if it is up to date with the primary."""

import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from sidecar.core.model import KeyStatus
from sidecar.store.postgresql.generation import KeyWatch
from sidecar.store.store import Store, open_store
from tests.harness.keys import Keys, run_cli
from tests.harness.postgresql import PostgresqlServer, running_postgresql
from tests.harness.running import Sidecar, StartSidecar
from tests.harness.waiting import eventually, until
from tests.unit.keys.making import ANN, Clock, a_key, ignore, set_status
from tests.wire.postgresql.test_serving import BACK_SECONDS, CONFIG, is_unavailable, status

PAUSE, RESUME = "SELECT pg_wal_replay_pause()", "SELECT pg_wal_replay_resume()"
ASKED = """SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
    AND query LIKE '%FROM api_key WHERE digest%'"""
"""How many connections last looked up keys."""


@pytest.fixture(scope="module")
def standby(server: PostgresqlServer, template: str) -> Iterator[PostgresqlServer]:
    with running_postgresql(standby_of=server) as running:
        yield running


def replayed(server: PostgresqlServer, standby: PostgresqlServer) -> None:
    """Wait until the standby has what the primary has now."""
    [(position,)] = server.sql("SELECT pg_current_wal_lsn()")
    until(lambda: standby.sql(f"SELECT pg_last_wal_replay_lsn() >= '{position}'") == [("t",)])


@pytest.fixture
def replica(server: PostgresqlServer, standby: PostgresqlServer, url: str) -> Iterator[str]:
    """The URL of the new database at the standby, which has it."""
    replayed(server, standby)
    yield url.replace(f":{server.port}/", f":{standby.port}/")
    standby.sql(RESUME)


@pytest.fixture
async def store(url: str, replica: str) -> AsyncIterator[Store]:
    opened = await open_store(url, create=False, watched=True, clock=Clock(), timings=ignore, replica=replica)
    await eventually(lambda: is_used(opened))
    yield opened
    await opened.close()


def is_used(store: Store) -> bool:
    assert store.follows is not None
    return store.follows()


async def test_keys_are_looked_up_at_the_standby_and_not_at_the_primary(
    server: PostgresqlServer, standby: PostgresqlServer, url: str, store: Store
) -> None:
    key = a_key()
    await store.keys.add([key], actor=ANN)
    replayed(server, standby)
    assert await store.keys.find({key.digest: "sha256"}) == key
    assert await store.keys.find({bytes(32): "sha256"}) is None
    assert server.sql(ASKED, url=url) == [("0",)]
    assert store.remarks() == []


@pytest.mark.requirement("S4.4")
async def test_a_standby_that_lags_hides_no_change_not_even_at_first(
    server: PostgresqlServer, standby: PostgresqlServer, store: Store
) -> None:
    key = a_key()
    await store.keys.add([key], actor=ANN)
    replayed(server, standby)
    standby.sql(PAUSE)
    await set_status(store.keys, key.id, KeyStatus.REVOKED)
    found = await store.keys.find({key.digest: "sha256"})
    assert found is not None and found.status is KeyStatus.REVOKED
    new = a_key()
    await store.keys.add([new], actor=ANN)
    assert await store.keys.find({new.digest: "sha256"}) == new
    await eventually(lambda: not is_used(store))
    assert "lags behind the primary" in store.remarks()[0]
    assert await store.keys.find({new.digest: "sha256"}) == new
    standby.sql(RESUME)
    await eventually(lambda: is_used(store))


async def test_another_database_than_a_standby_of_it_is_not_used(server: PostgresqlServer, url: str) -> None:
    """Not even the primary itself."""
    opened = await open_store(url, create=False, watched=True, clock=Clock(), timings=ignore, replica=url)
    key = a_key()
    await opened.keys.add([key], actor=ANN)
    assert await opened.keys.find({key.digest: "sha256"}) == key
    assert not is_used(opened) and "it is not a standby" in opened.remarks()[0]
    await opened.close()


class Answering:
    """A connection whose results were read before the notifications that arrive ahead of them."""

    def __init__(self) -> None:
        self.number, self.news = 1, ""
        self.notify: Callable[[str], None] = print

    async def listen(self, channel: str, on_notification: Callable[[str], None], on_lost: Callable[[], None]) -> None:
        self.notify = on_notification

    async def fetch(self, sql: str) -> list[tuple[int, int]]:
        if self.news:
            self.notify(self.news)
        return [(self.number, 0)]

    async def close(self) -> None:
        """Nothing to close."""


async def test_a_number_read_before_a_notification_is_not_the_newest() -> None:
    """Otherwise a standby that is just as old would be trusted."""
    connection = Answering()

    async def connect() -> Answering:
        return connection

    watch = KeyWatch(connect, "the store", clock=Clock(), lag=lambda seconds: None)
    await watch.start()
    assert watch.number == 1
    connection.news = '2 ["key_a"]'
    await watch.read()
    assert watch.number is None
    connection.number, connection.news = 2, ""
    await watch.read()
    assert watch.number == 2
    await watch.close()
    assert watch.number is None


def test_doctor_checks_that_the_replica_is_up_to_date(
    server: PostgresqlServer, standby: PostgresqlServer, url: str, replica: str, tmp_path: Path
) -> None:
    keys = Keys(tmp_path / "sidecar.yaml", url)

    def told(replica: str) -> str:
        text = CONFIG.replace("store: sqlite:///replaced", f"store: {{url: '{url}', replica: '{replica}'}}")
        keys.config.write_text(text, encoding="utf-8")
        findings = json.loads(run_cli("doctor", "-c", str(keys.config), "--json").stdout)["findings"]
        [found] = [one for one in findings if one["check"] == "replica"]
        return f"{found['severity']}: {found['saw']}"

    assert "in step" in told(replica)
    standby.sql(PAUSE)
    keys.issue("new")
    assert told(replica).startswith("warning") and "lags behind" in told(replica)
    assert "is no standby" in told(url)
    assert "cannot be reached" in told("postgresql://postgres@127.0.0.1:1/none")


def serving(start_sidecar: StartSidecar, url: str, replica: str) -> Sidecar:
    with_replica = CONFIG.replace("store: sqlite:///replaced", f"store: {{url: '{url}', replica: '{replica}'}}")
    sidecar = start_sidecar(with_replica, store=url)
    until(lambda: sidecar.metric("sidecar_store_replica_in_step") == 1)
    return sidecar


def is_decided(sidecar: Sidecar, keys: Keys) -> bool:
    """A key that nobody has used before is looked up."""
    return not is_unavailable(sidecar, keys.issue(scopes=("read",)))


def test_a_sidecar_uses_the_primary_while_the_standby_is_down_or_hangs(
    server: PostgresqlServer, url: str, start_sidecar: StartSidecar
) -> None:
    with running_postgresql(standby_of=server) as own:
        sidecar = serving(start_sidecar, url, own.url(url.rpartition("/")[2]))
        for how in ("stopped", "paused"):
            with own.down(how):
                for _ in range(3):
                    assert is_decided(sidecar, sidecar.keys)
                until(lambda: sidecar.metric("sidecar_store_replica_in_step") == 0)
                ready = sidecar.ready()
                assert ready.status == 200
            until(lambda: sidecar.metric("sidecar_store_replica_in_step") == 1, within=BACK_SECONDS)


@pytest.mark.requirement("R2.5")
@pytest.mark.requirement("S4.4")
def test_a_failover_to_the_standby_is_followed_and_no_request_passes_meanwhile(start_sidecar: StartSidecar) -> None:
    """The URL names both, so the primary's address changes."""
    with running_postgresql() as first:
        database = first.database().rpartition("/")[2]
        with running_postgresql(standby_of=first) as second:
            both = f"postgresql://postgres@127.0.0.1:{first.port},127.0.0.1:{second.port}/{database}"
            url, replica = (f"{both}?target_session_attrs={wanted}" for wanted in ("read-write", "prefer-standby"))
            sidecar = start_sidecar(CONFIG, store=url)
            keys = Keys(sidecar.keys.config, url)
            key, revoked = keys.issue(scopes=("read",)), keys.issue(scopes=("read",))
            replayed(first, second)
            with_replica = serving(start_sidecar, url, replica)
            fleet = (sidecar, with_replica)
            assert [status(one, each) for one in fleet for each in (key, revoked)] == [200] * 4
            first.stop()
            for one in fleet:
                until(lambda one=one: is_unavailable(one, key), within=BACK_SECONDS)  # type: ignore[misc]
                assert is_unavailable(one, revoked)
            second.sql("SELECT pg_promote()")
            assert keys.run("revoke", revoked.id, "--yes").exit_code == 0
            for one in fleet:
                until(lambda one=one: not is_unavailable(one, key), within=BACK_SECONDS)  # type: ignore[misc]
                assert (status(one, key), status(one, revoked)) == (200, 401)
                assert is_decided(one, keys)
