"""Keys, clocks and stores of the tests of this room."""

import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sidecar.core.apikey import Hasher, KeyFormat
from sidecar.core.model import ApiKey
from sidecar.core.policy import Catalogue, Scope
from sidecar.keys.lifecycle import Lifecycle
from sidecar.keys.validation import KeyRules
from sidecar.store.store import SqliteStore
from tests.unit.keys.making import ANN, Clock, Timings, a_key, new_store


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def timings() -> Timings:
    return Timings()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "keys.db")


@pytest.fixture
async def store(path: str, clock: Clock, timings: Timings) -> AsyncIterator[SqliteStore]:
    opened = await new_store(path, clock=clock, timings=timings)
    yield opened
    await opened.close()


@pytest.fixture
async def key(store: SqliteStore) -> ApiKey:
    """One that is stored."""
    made = a_key()
    await store.keys.add([made], actor=ANN)
    return made


@pytest.fixture
def rules() -> KeyRules:
    return KeyRules(
        format=KeyFormat(),
        environments={"live": "hv_live_", "test": "hv_test_"},
        prefix_length=12,
        default_scopes=("streams:read",),
        catalogue=Catalogue([Scope(name="streams:read"), Scope(name="streams:write")]),
        plans={"pro"},
        quotas={"general"},
    )


@pytest.fixture
def lifecycle(store: SqliteStore, clock: Clock) -> Lifecycle:
    return Lifecycle(store.keys, Hasher(), clock=clock, randbelow=secrets.randbelow)
