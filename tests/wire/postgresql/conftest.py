"""One server for all tests of a worker, and a new database for each."""

import secrets
from collections.abc import AsyncIterator, Iterator

import pytest

from sidecar.core.apikey import Hasher
from sidecar.core.model import ApiKey
from sidecar.keys.lifecycle import Lifecycle
from sidecar.store.store import Store, open_store
from tests.harness.keys import run_cli
from tests.harness.postgresql import PostgresqlServer, running_postgresql
from tests.unit.keys.conftest import rules as rules
from tests.unit.keys.making import ANN, Clock, Timings, a_key

TEMPLATE = "sidecar_template"
TABLES = ("api_key", "audit", "idempotency", "usage", "usage_day", "key_network", "unusual", "quota_state")


@pytest.fixture(scope="session")
def server() -> Iterator[PostgresqlServer]:
    with running_postgresql() as running:
        yield running


@pytest.fixture(scope="session")
def template(server: PostgresqlServer) -> str:
    """The name of a database with the schema in it."""
    server.sql(f"CREATE DATABASE {TEMPLATE} TEMPLATE template0")
    made = run_cli("store", "make", "--store", server.url(TEMPLATE))
    assert made.exit_code == 0, made.output
    return TEMPLATE


@pytest.fixture
def url(server: PostgresqlServer, template: str) -> str:
    """A new database with an empty store."""
    return server.database(template=template)


@pytest.fixture(scope="session")
def shared_url(server: PostgresqlServer, template: str) -> str:
    """A database whose store is emptied for each test that uses the fixture `store`: faster than a new one."""
    return server.database(template=template)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def timings() -> Timings:
    return Timings()


@pytest.fixture
def emptied() -> bool:
    """Whether `store` is emptied."""
    return True


@pytest.fixture
async def store(shared_url: str, emptied: bool, clock: Clock, timings: Timings) -> AsyncIterator[Store]:
    opened = await open_store(shared_url, create=False, watched=True, clock=clock, timings=timings)
    if emptied:
        await empty(opened)
    timings.clear()
    yield opened
    await opened.close()


async def empty(opened: Store) -> None:
    async with opened.database.transaction("empty") as connection:
        for table in TABLES:
            await connection.execute(f"DELETE FROM {table}")  # noqa: S608 - names of our own
        await connection.execute("UPDATE audit_head SET id = 0, hash = ?", (bytes(32),))


@pytest.fixture
async def key(store: Store) -> ApiKey:
    """One that is stored."""
    made = a_key()
    await store.keys.add([made], actor=ANN)
    return made


@pytest.fixture
def lifecycle(store: Store, clock: Clock) -> Lifecycle:
    return Lifecycle(store.keys, Hasher(), clock=clock, randbelow=secrets.randbelow)
