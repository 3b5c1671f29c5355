import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from sidecar.core.model import KeyStatus
from sidecar.keys.ports import KeyFilter, StoreUnavailable
from sidecar.store.sqlite.schema import MIGRATIONS
from tests.unit.keys.making import ANN, a_key, open_store, set_status

_KILLED_AT_EACH_STEP = """
import os, signal, sqlite3, sys
from itertools import count
from sidecar.store.sqlite.schema import migrate

class Mortal(sqlite3.Connection):
    left = 0
    def execute(self, *arguments):
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1
        return super().execute(*arguments)

def make(path, steps):
    Mortal.left = steps
    connection = sqlite3.connect(path, isolation_level=None, factory=Mortal)
    sqlite3.Connection.execute(connection, "PRAGMA journal_mode = WAL")
    migrate(connection, path)
    os._exit(0)

for steps in count():
    path = f"{sys.argv[1]}/{steps}.db"
    child = os.fork()
    if child == 0:
        make(path, steps)
    if os.waitpid(child, 0)[1] == 0:
        break
    print(path, flush=True)
"""


def changed(path: str, sql: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(sql)


@pytest.mark.timeout(600)
async def test_a_migration_killed_at_any_step_is_completed_by_the_next_start(tmp_path: Path) -> None:
    killing = [sys.executable, "-c", _KILLED_AT_EACH_STEP, str(tmp_path)]
    left: list[str] = []
    for path in subprocess.run(killing, check=True, capture_output=True, text=True).stdout.splitlines():
        with closing(sqlite3.connect(path)) as connection:
            left.append(str(connection.execute("SELECT sql FROM sqlite_master").fetchall()))
        store = await open_store(path)
        await store.keys.add([a_key()], actor=ANN)
        assert len(await store.keys.list(KeyFilter())) == 1
        await store.close()
    assert len(left) > sum(map(len, MIGRATIONS))
    assert len(set(left)) == 1 + len(MIGRATIONS)


async def test_an_empty_store_is_refused_unless_one_may_be_made(tmp_path: Path) -> None:
    path = tmp_path / "keys.db"
    path.touch()
    with pytest.raises(StoreUnavailable, match="empty"):
        await open_store(str(path), create=False)
    assert path.stat().st_size == 0
    await (await open_store(str(path), create=True)).close()


async def test_two_processes_can_make_one_store(tmp_path: Path) -> None:
    path = str(tmp_path / "keys.db")
    code = "import sys; from sidecar.store.sqlite.connection import prepare; prepare(sys.argv[1], create=True)"
    makers = [subprocess.Popen([sys.executable, "-c", code, path]) for _ in range(4)]
    assert [maker.wait() for maker in makers] == [0] * 4
    await (await open_store(path, create=False)).close()


async def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "keys.db")
    await (await open_store(path)).close()
    changed(path, "UPDATE schema_version SET version = 99")
    for create in (True, False):
        with pytest.raises(StoreUnavailable, match=r"schema version 99.*use a newer sidecar"):
            await open_store(path, create=create)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT version FROM schema_version").fetchall() == [(99,)]


async def test_a_damaged_schema_version_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "keys.db")
    await (await open_store(path)).close()
    changed(path, "DELETE FROM schema_version")
    with pytest.raises(StoreUnavailable, match="damaged"):
        await open_store(path)


async def test_a_database_of_another_program_is_refused_and_left_unchanged(tmp_path: Path) -> None:
    path = str(tmp_path / "other.db")
    changed(path, "CREATE TABLE songs (name TEXT)")
    with pytest.raises(StoreUnavailable, match="not a key store"):
        await open_store(path)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("songs",)]
        assert connection.execute("PRAGMA journal_mode").fetchall() == [("delete",)]


async def test_opening_again_changes_nothing(tmp_path: Path) -> None:
    path = str(tmp_path / "keys.db")
    first = await open_store(path)
    key = a_key()
    await first.keys.add([key], actor=ANN)
    generation = await first.keys.read_generation()
    await first.close()
    second = await open_store(path, create=False)
    assert await second.keys.read_generation() == generation
    assert await second.keys.list(KeyFilter()) == [key]
    await second.close()


_OLD_KEY = """INSERT INTO api_key VALUES ('key_1', 'CI nightly', 'hv_live_ab', zeroblob(32), 'sha256', 'acme', 'live',
    '["a"]', NULL, '{}', '{"user_id":"7"}', 'active', 5, 'ann', 9, NULL, NULL, NULL, NULL, 7)"""


async def test_a_store_of_the_first_schema_keeps_its_keys_and_they_are_searched(tmp_path: Path) -> None:
    path = str(tmp_path / "keys.db")
    for step in MIGRATIONS[0]:
        assert isinstance(step, str)
        changed(path, step)
    changed(path, "CREATE TABLE schema_version AS SELECT 1 AS version")
    changed(path, _OLD_KEY)
    store = await open_store(path, create=False)
    [key] = await store.keys.list(KeyFilter(search="night", tenant="acme"))
    assert (key.id, key.scopes, key.metadata, key.created_at) == ("key_1", ("a",), {"user_id": "7"}, 5)
    assert (key.expires_at, key.last_used_at, key.last_used_address) == (9, 7, None)
    assert await store.keys.find({bytes(32): "sha256"}) == key
    before = await store.keys.read_generation()
    await set_status(store.keys, "key_1", KeyStatus.DISABLED)
    assert await store.keys.read_generation() != before
    await store.close()
