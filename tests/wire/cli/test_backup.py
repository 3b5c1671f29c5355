"""`sidecar store backup`, `restore`, `check` and `info`."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from tests.harness import forks
from tests.harness.keys import Keys, run_cli
from tests.harness.processes import ROOT, clean_environ
from tests.harness.running import StartSidecar
from tests.harness.tools import needed

CONFIG = """\
listen: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:unused.db
routes:
- GET /v1/**: {}
"""
ELSEWHERE = ["--map-root-user", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c"]
HIDDEN = 'mount -t proc proc /proc; exec "$0" "$@"'
"""A place where other processes are invisible, as in a container (if mounting is allowed)."""


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    config = tmp_path / "sidecar.yaml"
    config.write_text(CONFIG)
    return Keys(config, tmp_path / "keys.db")


def store(keys: Keys, verb: str, *arguments: str) -> Result:
    return run_cli("store", verb, "--store", keys.url, *arguments)


def backup(keys: Keys) -> Path:
    file = keys.store.with_name("backup.db")
    made = store(keys, "backup", str(file))
    assert made.exit_code == 0, made.output
    return file


def told(result: Result) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def tamper(file: Path, *statements: str) -> None:
    with closing(sqlite3.connect(file)) as connection:
        for sql in statements:
            connection.execute(sql)
        connection.commit()


def kept_beside(keys: Keys) -> list[Path]:
    return sorted(keys.store.parent.glob("keys.db.before-restore-*"))


# Backup.


def test_a_backup_is_a_sound_store_readable_by_its_owner_and_lists_its_content(keys: Keys) -> None:
    keys.issue()
    keys.issue()
    file = keys.store.with_name("backup.db")
    made = store(keys, "backup", str(file))
    head = told(run_cli("audit", "verify", "--store", keys.url, "--json"))["head"]
    assert made.stdout.startswith(f"Wrote {file}: 2 keys, 2 rows of audit, ")
    assert made.stdout.endswith(f"Head of the audit: {head}\n")
    assert file.stat().st_mode & 0o777 == 0o600
    assert run_cli("store", "check", "--store", f"sqlite://{file}").exit_code == 0
    assert sorted(path.name for path in file.parent.glob("backup*")) == ["backup.db"]


def test_each_backup_of_a_store_that_others_write_is_the_store_at_one_moment(
    start_sidecar: StartSidecar, tmp_path: Path
) -> None:
    sidecar = start_sidecar(CONFIG)

    def back_up(number: int) -> dict[str, Any]:
        line = forks.command("store", "backup", "--json", "--store", sidecar.keys.url, str(tmp_path / f"{number}.db"))
        ran = subprocess.run(line, capture_output=True, env=clean_environ(), pass_fds=[forks.server().fileno()])
        found: dict[str, Any] = json.loads(ran.stdout)
        return found

    with ThreadPoolExecutor(1) as thread:
        backups = [thread.submit(back_up, number) for number in range(4)]
        newest = sidecar.keys.issue()
        while not backups[-1].done():
            newest = sidecar.keys.issue()
    assert all(made.result()["keys"] == made.result()["audit_rows"] > 0 for made in backups)
    file = tmp_path / "last.db"
    assert store(sidecar.keys, "backup", str(file)).exit_code == 0
    assert newest.id in run_cli("keys", "list", "--store", f"sqlite://{file}").stdout
    assert sidecar.ask("GET", "/v1/x", key=newest).status == 200


def test_a_file_is_replaced_only_on_request(keys: Keys) -> None:
    keys.issue()
    file = backup(keys)
    keys.issue()
    before = file.read_bytes()
    refused = store(keys, "backup", str(file))
    assert (refused.exit_code, file.read_bytes()) == (1, before)
    assert refused.stderr == f"Error: {file} exists: name another file, or replace it with --force\n"
    assert told(store(keys, "backup", str(file), "--force", "--json"))["keys"] == 2


def test_a_backup_cannot_be_written_to_a_stream(keys: Keys, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    keys.issue()
    monkeypatch.chdir(tmp_path)
    done = store(keys, "backup", "-")
    assert (done.exit_code, done.output) == (
        2,
        "Error: a backup is a file, and no stream: name one, such as keys-backup.db\n",
    )
    assert not (tmp_path / "-").exists()


def test_a_store_is_never_replaced_by_a_backup(start_sidecar: StartSidecar, keys: Keys) -> None:
    keys.issue()
    used = start_sidecar(CONFIG).keys.store
    for file, why in ((keys.store, "is the key store itself"), (used, "is a key store in use")):
        refused = store(keys, "backup", "--force", str(file))
        assert refused.exit_code == 1 and why in refused.stderr
    assert told(store(keys, "info", "--json"))["audit_rows"] == 1


def test_a_backup_on_a_full_disk_leaves_nothing_behind(keys: Keys) -> None:
    keys.issue()
    line = f"ulimit -f 64; exec {sys.executable} -m sidecar store backup --store {keys.url} {keys.store.parent}/b.db"
    ran = subprocess.run(["sh", "-c", line], capture_output=True, text=True, env=clean_environ(), cwd=ROOT)
    assert ran.returncode == 1
    assert ran.stderr.count("\n") == 1 and "b.db" in ran.stderr and "cannot be written" in ran.stderr
    assert list(keys.store.parent.glob("b.db*")) == []


# Restore.


def test_what_a_restore_would_undo_is_listed_and_needs_a_yes(start_sidecar: StartSidecar) -> None:
    first = start_sidecar(CONFIG)
    keys = first.keys
    revoked, disabled, other = (keys.issue(name) for name in ("revoked one", "disabled one", "other"))
    file = backup(keys)
    keys.told("revoke", revoked.id)
    keys.told("disable", disabled.id)
    late = keys.issue("late")
    assert first.stop() == 0
    refused = store(keys, "restore", str(file))
    assert (refused.exit_code, kept_beside(keys)) == (1, [])
    assert "1 key was revoked, 1 disabled, 1 issued." in refused.stdout
    assert "2 keys would work again, or for longer:" in refused.stdout
    assert revoked.id in refused.stdout and disabled.id in refused.stdout and other.id not in refused.stdout
    assert "--yes" in refused.stderr
    assert store(keys, "restore", str(file), "--yes").exit_code == 0
    again = start_sidecar(CONFIG, store=keys.store)
    assert [again.ask("GET", "/v1/x", key=key).status for key in (revoked, other, late)] == [200, 200, 401]
    [kept] = kept_beside(keys)
    assert told(run_cli("store", "info", "--store", f"sqlite://{kept}", "--json"))["keys"] == {
        "active": 3,
        "disabled": 1,
        "revoked": 1,
    }


def test_a_key_whose_validity_would_be_extended_is_listed(keys: Keys) -> None:
    key = keys.issue()
    file = backup(keys)
    keys.told("rotate", key.id, "--overlap", "1d")
    listed = told(store(keys, "restore", str(file), "--json"))
    assert [(found["id"], found["standing"]) for found in listed["working_again"]] == [(key.id, "ends sooner")]
    assert sum(listed["undone"].values()) >= 1
    assert listed["restored"] is False


def test_a_restore_that_undoes_nothing_needs_no_yes(keys: Keys) -> None:
    keys.issue()
    file = backup(keys)
    restored = store(keys, "restore", str(file))
    assert restored.exit_code == 0, restored.output
    assert f"Restored {keys.store} from {file}: 1 key, 1 row of audit." in restored.stdout


def test_the_previous_store_can_be_put_back(keys: Keys) -> None:
    keys.issue()
    file = backup(keys)
    late = keys.issue()
    assert store(keys, "restore", "--yes", str(file)).exit_code == 0
    [kept] = kept_beside(keys)
    keys.told("show", keys.issue("after").id)
    listed = told(store(keys, "restore", "--json", "--yes", str(kept)))
    assert listed["undone"] == {"issue": 1}
    assert keys.told("show", late.id)["id"] == late.id


def test_nothing_is_restored_while_a_process_uses_the_store(start_sidecar: StartSidecar) -> None:
    sidecar = start_sidecar(CONFIG)
    file = backup(sidecar.keys)
    refused = store(sidecar.keys, "restore", "--yes", str(file))
    assert refused.exit_code == 1
    assert f"{sidecar.keys.store} is used by process {sidecar.process.pid} (" in refused.stderr
    key = sidecar.keys.issue()
    assert sidecar.ask("GET", "/v1/x", key=key).status == 200


@pytest.mark.parametrize("damaged", [False, True], ids=["sound", "damaged"])
def test_a_store_used_in_another_container_is_not_replaced(start_sidecar: StartSidecar, damaged: bool) -> None:
    sidecar = start_sidecar(CONFIG)
    file = backup(sidecar.keys)
    if damaged:
        with open(sidecar.keys.store, "r+b") as opened:
            opened.write(b"no database")
    before = sidecar.keys.store.stat().st_ino
    restore = ["store", "restore", "--yes", "--store", sidecar.keys.url, str(file)]
    line = [needed("unshare"), *ELSEWHERE, HIDDEN, sys.executable, "-m", "sidecar", *restore]
    ran = subprocess.run(line, capture_output=True, text=True, env=clean_environ(), cwd=ROOT)
    assert ran.returncode == 1
    assert "is used by another process: stop it first" in ran.stderr or "is used by process" in ran.stderr
    assert (sidecar.keys.store.stat().st_ino, kept_beside(sidecar.keys)) == (before, [])


def test_the_log_of_a_crash_is_not_written_over_the_backup(start_sidecar: StartSidecar) -> None:
    sidecar = start_sidecar(CONFIG)
    keys = sidecar.keys
    file = backup(keys)
    late = keys.issue("late")
    sidecar.process.stop(signal.SIGKILL)
    assert keys.store.with_name("keys.db-wal").stat().st_size > 0
    assert store(keys, "restore", "--yes", str(file)).exit_code == 0
    [kept] = kept_beside(keys)
    assert late.id not in run_cli("keys", "list", "--store", keys.url).stdout
    assert late.id in run_cli("keys", "list", "--store", f"sqlite://{kept}").stdout


def test_a_damaged_store_is_replaced_and_its_log_is_kept_with_it(keys: Keys) -> None:
    keys.issue()
    file = backup(keys)
    keys.store.write_bytes(b"no database " * 1000)
    keys.store.with_name("keys.db-wal").write_bytes(b"old log")
    refused = store(keys, "restore", str(file))
    assert refused.exit_code == 1 and "Cannot tell what changed" in refused.stdout
    assert store(keys, "restore", "--yes", str(file)).exit_code == 0
    assert store(keys, "check").exit_code == 0
    kept = kept_beside(keys)[0]
    assert kept.read_bytes()[:11] == b"no database"
    assert kept.with_name(f"{kept.name}-wal").read_bytes() == b"old log"


def test_a_lost_store_is_restored_with_the_log_that_was_left_out_of_the_way(keys: Keys) -> None:
    key = keys.issue()
    file = backup(keys)
    keys.store.unlink()
    keys.store.with_name("keys.db-wal").write_bytes(b"old log")
    assert store(keys, "restore", str(file)).exit_code == 0
    assert keys.told("show", key.id)["id"] == key.id
    assert keys.store.stat().st_mode & 0o777 == 0o600


def test_a_store_keeps_its_mode_and_its_link(keys: Keys) -> None:
    keys.issue()
    file = backup(keys)
    keys.store.chmod(0o640)
    real = keys.store.rename(keys.store.with_name("real.db"))
    keys.store.symlink_to(real)
    assert store(keys, "restore", "--yes", str(file)).exit_code == 0
    assert keys.store.is_symlink() and real.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (b"", "is empty"),
        (b"no database " * 1000, "is not a SQLite database"),
        ("UPDATE audit SET actor = 'nobody' WHERE id = 1", "row 1 was changed"),
        ("UPDATE schema_version SET version = 99", "newer than this program's"),
        ("DROP TABLE schema_version", "is not a key store"),
    ],
    ids=["empty", "no database", "tampered", "newer", "something else"],
)
def test_a_damaged_backup_is_not_restored(keys: Keys, made: bytes | str, why: str) -> None:
    keys.issue()
    file = backup(keys)
    tamper(file, made) if isinstance(made, str) else file.write_bytes(made)
    before = keys.store.read_bytes()
    refused = store(keys, "restore", "--yes", str(file))
    assert refused.exit_code == 1 and why in refused.stderr, refused.output
    assert (keys.store.read_bytes(), kept_beside(keys)) == (before, [])


def test_a_file_that_is_not_a_backup_is_refused(keys: Keys) -> None:
    keys.issue()
    for file, why in ((keys.store, "is the key store itself"), (keys.store.with_name("x.db"), "there is no backup")):
        refused = store(keys, "restore", str(file))
        assert refused.exit_code == 1 and why in refused.stderr


# Check and info.


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("DROP INDEX api_key_prefix", "the index api_key_prefix is missing"),
        ("DROP TRIGGER api_key_changed", "the trigger api_key_changed is missing"),
        ("UPDATE api_key SET algorithm = 'md5'", "1 key with a digest of an algorithm that this program does not know"),
        ("UPDATE api_key SET digest = '0123456789abcdef0123456789abcdef'", "1 key with a digest that is not 32 bytes"),
        ("UPDATE api_key SET scopes = '['", "1 key with damaged scopes, quotas or metadata"),
        ("UPDATE api_key SET id = 'key_00000000000000000000'", "1 key without a row in the audit"),
        ("INSERT INTO usage VALUES ('key_1', 0, 'r', 2, 1, '')", "1 row of usage about keys that the store does not"),
        ("UPDATE audit SET actor = 'nobody'", "row 1 was changed"),
        ("DELETE FROM audit", "row 1 was removed"),
        ("INSERT INTO key_text (key_text) VALUES ('delete-all')", "the search index has 0 active keys of 1"),
    ],
)
def test_a_check_finds_each_kind_of_damage(keys: Keys, statement: str, problem: str) -> None:
    keys.issue()
    assert store(keys, "check").exit_code == 0
    tamper(keys.store, statement)
    checked = store(keys, "check")
    assert checked.exit_code == 1
    assert f"Error: {problem}" in checked.stderr.replace("the audit was tampered with: ", "")
    assert problem in " ".join(told(store(keys, "check", "--json"))["problems"])


def test_a_store_with_uses_of_keys_is_sound(keys: Keys) -> None:
    """SQLite 3.40 reports them as damage (NULL in usage.count)."""
    key = keys.issue()
    rows = [f"INSERT INTO usage VALUES ('{name}', 0, 'r', 2, 1, '')" for name in (key.id, "")]  # noqa: S608 - the test's
    tamper(keys.store, *rows)
    checked = store(keys, "check")
    assert checked.exit_code == 0, checked.output


def test_a_check_finds_damaged_pages(keys: Keys) -> None:
    keys.issue()
    with closing(sqlite3.connect(keys.store)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
        [(root,)] = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'api_key_prefix'")
        [(size,)] = connection.execute("PRAGMA page_size")
    with open(keys.store, "r+b") as file:
        file.seek((root - 1) * size)
        file.write(os.urandom(size))
    checked = store(keys, "check")
    assert checked.exit_code == 1 and "is damaged" in checked.stderr
    assert "sidecar store restore FILE" in checked.stderr


def test_info_shows_what_the_store_contains_and_who_has_it_open(start_sidecar: StartSidecar) -> None:
    sidecar = start_sidecar(CONFIG)
    key = sidecar.keys.issue()
    sidecar.keys.told("revoke", key.id)
    found = told(store(sidecar.keys, "info", "--json"))
    assert (found["keys"], found["audit_rows"], found["change"]) == ({"active": 1, "revoked": 1}, 3, "revoke")
    assert found["schema_version"] == found["newest_schema_version"]
    assert [holder["pid"] for holder in found["held_by"]] == [sidecar.process.pid]
    shown = store(sidecar.keys, "info").stdout
    assert f"process {sidecar.process.pid} (" in shown and "1 active, 1 revoked" in shown


@pytest.mark.parametrize("verb", ["info", "check"])
def test_inspecting_a_missing_store_does_not_create_one(tmp_path: Path, verb: str) -> None:
    looked = run_cli("store", verb, "--store", f"sqlite://{tmp_path}/none.db")
    assert (looked.exit_code, list(tmp_path.iterdir())) == (1, [])
    assert looked.stderr == f"Error: there is no key store at {tmp_path}/none.db\n"


@pytest.mark.parametrize("command", [("backup", "copy.db"), ("check",), ("info",)], ids=lambda command: str(command[0]))
def test_keys_in_a_file_are_no_database(tmp_path: Path, command: tuple[str, ...]) -> None:
    config = tmp_path / "sidecar.yaml"
    config.write_text(CONFIG.replace("sqlite:unused.db", f"file://{tmp_path}/keys.yaml"), encoding="utf-8")
    told = run_cli("store", *command, "-c", str(config))
    assert told.exit_code == 2
    assert told.stderr == (
        f"Error: the keys come from the file {tmp_path}/keys.yaml, which is no database: copy that file itself\n"
    )
