"""`sidecar store copy`."""

import json
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from sidecar.store.tables import TABLES
from tests.harness.keys import Keys, run_cli
from tests.harness.processes import ROOT, clean_environ
from tests.harness.running import StartSidecar

CONFIG = """\
listen: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:unused.db
routes:
- GET /v1/**: {}
"""
USES = 4_500
"""Rows of usage: three pages of a copy."""
KILLED_AT = """
import asyncio, os, signal, sys
from sidecar.cli.key_service import open_store
from sidecar.store.tables import copy_tables

source, destination, rows = sys.argv[1], sys.argv[2], int(sys.argv[3])
copied = 0

def progress(more):
    global copied
    copied += more
    if copied >= rows:
        os.kill(os.getpid(), signal.SIGKILL)

async def main():
    async with open_store(source) as old, open_store(destination, create=True) as new:
        await copy_tables(old.tables, new.tables, progress=progress)

asyncio.run(main())
"""
"""A copy that is killed once it has got this far."""
FILLED = (
    "INSERT INTO usage WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < {uses} - 1) "
    "SELECT (SELECT id FROM api_key LIMIT 1), i * 3600000000, 'GET /v1/**', 2, i, '' FROM n",
    "INSERT INTO usage_day SELECT key_id, hour, route, status_class, count, reason FROM usage LIMIT 5",
    "INSERT INTO key_network SELECT id, '192.0.2.0/24', 5 FROM api_key",
    "INSERT INTO unusual (id, at, kind, key_id, tenant, address, detail) "
    "SELECT 7, 1, 'new_network', id, NULL, '192.0.2.1', 'ü' FROM api_key LIMIT 1",
    "INSERT INTO idempotency SELECT 'token', 'one', 'print', id, 5 FROM api_key LIMIT 1",
    "INSERT INTO quota_state VALUES ('few', '[\"a\"]', '{{}}', 9000000000000000)",
)


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    """The keys of a store with rows in each table."""
    config = tmp_path / "sidecar.yaml"
    config.write_text(CONFIG)
    keys = Keys(config, tmp_path / "keys.db")
    revoked = keys.issue("a revoked one", tenant="acme", metadata={"user": "ü"})
    keys.told("revoke", revoked.id)
    keys.issue("one that works", expires="30d")
    change(keys.store, *(sql.format(uses=USES) for sql in FILLED))
    return keys


def change(file: Path, *statements: str) -> None:
    with closing(sqlite3.connect(file)) as connection:
        for sql in statements:
            connection.execute(sql)
        connection.commit()


def contents(file: Path) -> dict[str, list[Any]]:
    """Everything that is copied, by table."""
    with closing(sqlite3.connect(file)) as connection:
        tables = {
            table.name: connection.execute(f"SELECT {', '.join(table.columns)} FROM {table.name} ORDER BY 1, 2, 3")  # noqa: S608 - the test's own
            for table in TABLES
        }
        return {name: rows.fetchall() for name, rows in tables.items()}


def copy(keys: Keys, destination: Path, *more: str) -> Result:
    return run_cli("store", "copy", "--from", keys.url, "--to", f"sqlite://{destination}", *more)


def killed(keys: Keys, destination: Path, *, rows: int) -> None:
    line = [sys.executable, "-c", KILLED_AT, keys.url, f"sqlite://{destination}", str(rows)]
    assert subprocess.run(line, env=clean_environ(), cwd=ROOT).returncode == -signal.SIGKILL


def head(file: Path) -> str:
    verified = run_cli("audit", "verify", "--json", "--store", f"sqlite://{file}")
    assert verified.exit_code == 0, verified.output
    return str(json.loads(verified.stdout)["head"])


@pytest.fixture
def new(tmp_path: Path) -> Path:
    return tmp_path / "new" / "keys.db"


@pytest.fixture(autouse=True)
def folder(new: Path) -> None:
    new.parent.mkdir()


def test_a_copy_has_everything_from_the_store_and_the_same_audit(keys: Keys, new: Path) -> None:
    before = keys.store.read_bytes()
    copied = copy(keys, new)
    assert copied.exit_code == 0, copied.output
    assert copied.stdout.startswith(f"Copied and compared: 2 of api_key, 3 of audit, {USES:,} of usage, 5 of usage_day")
    assert all(rows for rows in contents(new).values())
    assert contents(new) == contents(keys.store)
    assert head(new) == head(keys.store)
    assert keys.store.read_bytes() == before
    assert new.stat().st_mode & 0o777 == 0o600


def test_a_copy_is_a_store_like_any_other(start_sidecar: StartSidecar, new: Path) -> None:
    first = start_sidecar(CONFIG)
    key, revoked = first.keys.issue("found by its words"), first.keys.issue()
    first.keys.told("revoke", revoked.id)
    assert first.stop() == 0
    assert json.loads(copy(first.keys, new, "--json").stdout)["api_key"] == 3
    second = start_sidecar(CONFIG, store=new)
    assert [second.ask("GET", "/v1/x", key=each).status for each in (key, revoked)] == [200, 401]
    assert [found["id"] for found in second.keys.told("list", "--search", "words")] == [key.id]
    later = second.keys.issue()
    assert second.ask("GET", "/v1/x", key=later).status == 200
    assert run_cli("store", "check", "--store", second.keys.url).exit_code == 0


@pytest.mark.parametrize("rows", [1, 2_500, USES, 2 * USES], ids=["at once", "midway", "late", "in the comparison"])
def test_a_killed_copy_continues_and_is_unusable_until_it_finishes(
    start_sidecar: StartSidecar, keys: Keys, new: Path, rows: int
) -> None:
    killed(keys, new, rows=rows)
    unfinished = run_cli("store", "check", "--store", f"sqlite://{new}")
    assert unfinished.exit_code == 1 and "a copy that was not finished" in unfinished.stderr
    with pytest.raises(AssertionError, match="it is a copy that was not finished: run `sidecar store copy` again"):
        start_sidecar(CONFIG, store=new)
    refused = Keys(keys.config, new).run("issue", "--name", "would be lost")
    assert refused.exit_code == 1 and "cannot be changed: it is a copy that was not finished" in refused.stderr
    assert copy(keys, new).exit_code == 0
    assert contents(new) == contents(keys.store)
    assert head(new) == head(keys.store)


def test_rows_changed_after_the_copy_are_found_and_copied_again(keys: Keys, new: Path) -> None:
    killed(keys, new, rows=2_500)
    change(keys.store, "UPDATE usage SET count = 77 WHERE hour = 0")
    found = copy(keys, new)
    assert found.exit_code == 1 and "the copy differs in usage: stop what uses the stores" in found.stderr
    assert copy(keys, new).exit_code == 0
    assert contents(new) == contents(keys.store)


def test_a_copy_of_another_store_starts_from_the_beginning(keys: Keys, new: Path, tmp_path: Path) -> None:
    killed(keys, new, rows=2_500)
    other = Keys(keys.config, tmp_path / "other.db")
    other.issue()
    assert copy(other, new).exit_code == 0
    assert contents(new) == contents(other.store)
    assert head(new) == head(other.store)


def test_nothing_is_copied_into_a_store_that_is_not_empty(keys: Keys, new: Path) -> None:
    other = Keys(keys.config, new)
    other.issue()
    before = contents(new)
    refused = copy(keys, new)
    assert (refused.exit_code, contents(new)) == (1, before)
    assert "the store to copy into holds 1 row of api_key: name an empty one" in refused.stderr
    assert copy(keys, keys.store).exit_code == 1


def test_a_store_that_is_used_is_copied_with_a_note(start_sidecar: StartSidecar, new: Path) -> None:
    sidecar = start_sidecar(CONFIG)
    copied = copy(sidecar.keys, new)
    assert copied.exit_code == 0
    assert f"Note: process {sidecar.process.pid} uses the store" in copied.stderr


def test_a_store_that_would_be_migrated_is_not_copied(keys: Keys, new: Path) -> None:
    change(keys.store, "UPDATE schema_version SET version = 3")
    refused = copy(keys, new)
    assert refused.exit_code == 1 and "schema version 3, and is only read here" in refused.stderr
    assert not new.exists()


def test_everything_that_a_store_holds_is_in_the_list_of_what_is_copied(keys: Keys) -> None:
    kept_by_the_engine = {"schema_version", "generation", "key_change", "audit_head"}
    with closing(sqlite3.connect(keys.store)) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        stored = {
            name: {row[1] for row in connection.execute(f"PRAGMA table_info({name})")}
            for name in names
            if not name.startswith(("sqlite_", "key_text"))
        }
    assert {table.name: {*table.columns, *table.order} for table in TABLES} == {
        name: columns for name, columns in stored.items() if name not in kept_by_the_engine
    }
