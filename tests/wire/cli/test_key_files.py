"""Keys in files: import, export, and a key that is issued without a store."""

import json
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import pytest

from tests.harness.keys import Keys
from tests.harness.processes import ROOT, clean_environ
from tests.harness.running import Sidecar, StartSidecar

CONFIG = """
listen: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:///nowhere.db
keys:
  environments: {live: hv_live_, test: hv_test_}
  imported: [IMPORTED]
scopes: {"streams:read": Read}
routes:
  - GET /v1/**: {scopes: ["streams:read"]}
"""
WITH_PEPPER = '{prefix: sk_live_, hash: sha256-pepper-first, pepper: "${LEGACY_PEPPER}"}'
WITHOUT = "{prefix: sk_live_}"
LEGACY = "sk_live_51HbTqYx2"


def config_with(imported: str) -> str:
    return CONFIG.replace("IMPORTED", imported)


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    config = tmp_path / "sidecar.yaml"
    config.write_text(config_with(WITHOUT))
    return Keys(config, tmp_path / "keys.db")


def record(text: str = LEGACY, **more: object) -> str:
    line = {
        "hash": sha256(text.encode()).hexdigest(),
        "prefix": "sk_live_51",
        "name": "Old",
        "scopes": ["streams:read"],
    }
    return json.dumps({**line, **more})


def test_import_reads_a_file_and_export_writes_everything_but_the_hash(keys: Keys, tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    file.write_text(record() + "\n")
    result = keys.run("import", str(file))
    assert (result.exit_code, result.stderr) == (0, "")
    told = json.loads(keys.run("import", "-", "--dry-run", "--json", stdin=record("sk_live_other")).stdout)
    assert (told["keys"], told["imported"]) == (1, False)
    assert result.stdout.startswith("Imported 1 key in ")
    exported = keys.run("export").stdout
    assert json.loads(exported)["name"] == "Old"
    assert sha256(LEGACY.encode()).hexdigest() not in exported


def test_import_reads_stdin(keys: Keys) -> None:
    heading = "hash,name,prefix\n"
    line = f"{sha256(b'x').hexdigest()},CI,sk_live_51\n"
    assert keys.run("import", "-", "--format", "csv", stdin=heading + line).exit_code == 0
    assert [key["name"] for key in keys.told("list")] == ["CI"]


def test_a_dry_run_lists_every_bad_line_and_makes_no_store(keys: Keys, tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    file.write_text("\n".join([record(), "{", record("other", plan="gold"), record()]))
    result = keys.run("import", "--dry-run", str(file))
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        f"Error: {file}:2: is not JSON",
        f"Error: {file}:3: unknown plan 'gold' (known: none)",
        f"Error: {file}:4: hash: is the same as on line 1",
        "Error: nothing was imported: 3 problems",
    ]
    assert not keys.store.exists()


def test_a_dry_run_of_a_good_file_imports_nothing_and_reports_stored_keys(keys: Keys, tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    file.write_text(record())
    assert keys.run("import", "--dry-run", str(file)).stdout.startswith("Checked 1 key in ")
    keys.run("import", str(file))
    result = keys.run("import", "--dry-run", str(file))
    assert (result.exit_code, len(keys.told("list"))) == (1, 1)
    assert "1: hash: is stored already, as key key_" in result.stderr


def test_a_raw_key_is_refused_and_not_repeated(keys: Keys) -> None:
    result = keys.run("import", "-", stdin=json.dumps({"hash": LEGACY, "name": "x", "prefix": "sk_live_"}))
    assert result.exit_code == 1
    assert "if it is the key itself, it does not belong in a file" in result.stderr
    assert LEGACY not in result.output


@pytest.mark.parametrize("text", ["", "\n", "hash,name\n"])
def test_a_file_without_a_key_is_an_error(keys: Keys, tmp_path: Path, text: str) -> None:
    file = tmp_path / "keys.csv"
    file.write_text(text)
    result = keys.run("import", str(file))
    assert (result.exit_code, result.stderr) == (1, f"Error: {file} holds no key: nothing was imported\n")


def test_what_a_spreadsheet_or_a_database_writes_is_read(keys: Keys) -> None:
    digest = sha256(LEGACY.encode()).hexdigest()
    heading = "hash;name;prefix;expires_at;created_at\n"
    line = f"{digest};Old;sk_live_51;4102444800;1700000000123\n"
    assert keys.run("import", "-", "--format", "csv", stdin=heading + line).exit_code == 0
    [key] = keys.told("list")
    assert (key["expires_at"], key["created_at"]) == ("2100-01-01T00:00:00Z", "2023-11-14T22:13:20.123000Z")


def test_a_file_that_is_not_there_is_one_line(keys: Keys) -> None:
    result = keys.run("import", "/nowhere/keys.csv")
    assert (result.exit_code, result.stderr) == (2, "Error: /nowhere/keys.csv: No such file or directory\n")


def test_export_writes_a_neutral_file_for_its_owner_only(keys: Keys, tmp_path: Path) -> None:
    keys.issue("=cmd|' /C calc'!A0", tenant="acme")
    keys.issue("other", tenant="other")
    out = tmp_path / "keys.csv"
    result = keys.run("export", "--format", "csv", "--tenant", "acme", "-o", str(out))
    assert result.stdout == f"Exported 1 key to {out}.\n"
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert ",'=cmd|' /C calc'!A0,acme," in out.read_text()
    assert "other" not in out.read_text()
    assert sorted(tmp_path.glob("*.part")) == []


def test_export_is_paginated(keys: Keys) -> None:
    lines = "\n".join(record(f"sk_live_{number}") for number in range(1_203))
    assert keys.run("import", "-", stdin=lines).exit_code == 0
    assert len({json.loads(line)["id"] for line in keys.run("export").stdout.splitlines()}) == 1_203


def test_offline_touches_no_store_and_its_record_authenticates_over_a_real_sidecar(
    start_sidecar: StartSidecar, tmp_path: Path
) -> None:
    pepper = {"SIDECAR_PEPPER": "a pepper of at least 16"}
    sidecar = start_sidecar(config_with(""), environ=pepper)
    elsewhere = Keys(sidecar.keys.config, tmp_path / "none.db", pepper)
    made = elsewhere.told("issue", "--offline", "--name", "Offline", "--scope", "streams:read")
    assert not elsewhere.store.exists()
    assert made["key"] not in json.dumps(made["record"])
    assert sidecar.ask("GET", "/v1/a", key=made["key"]).status == 401
    imported = sidecar.keys.run("import", "-", stdin=json.dumps(made["record"]))
    assert imported.exit_code == 0, imported.output
    assert sidecar.ask("GET", "/v1/a", key=made["key"]).status == 200
    assert sidecar.keys.told("show", made["id"])["name"] == "Offline"


def test_offline_prints_the_key_and_ends_with_the_record(keys: Keys) -> None:
    result = keys.run("issue", "--offline", "--name", "Offline")
    record = json.loads(result.stdout.splitlines()[-1])
    [text] = [line.strip() for line in result.stdout.splitlines() if line.startswith("    ")]
    assert record["hash"] == sha256(text.encode()).hexdigest()
    assert keys.run("import", "-", stdin=json.dumps(record)).exit_code == 0


def algorithms(sidecar: Sidecar) -> set[str]:
    with closing(sqlite3.connect(sidecar.keys.store)) as connection:
        return {algorithm for (algorithm,) in connection.execute("SELECT algorithm FROM api_key")}


def test_a_legacy_key_is_rehashed_at_first_use_and_no_longer_needs_its_pepper(
    start_sidecar: StartSidecar, tmp_path: Path
) -> None:
    store, ours = tmp_path / "keys.db", {"SIDECAR_PEPPER": "a pepper of at least 16"}
    old = {**ours, "LEGACY_PEPPER": "salt"}
    sidecar = start_sidecar(config_with(WITH_PEPPER), store=store, environ=old)
    legacy = sha256(b"salt" + LEGACY.encode()).hexdigest()
    imported = sidecar.keys.run("import", "-", stdin=record(hash=legacy))
    assert imported.exit_code == 0, imported.output
    assert len(algorithms(sidecar)) == 2
    assert sidecar.ask("GET", "/v1/a", key=LEGACY).status == 200
    assert sidecar.ask("GET", "/v1/a", key=LEGACY + "x").status == 401
    assert sidecar.stop() == 0
    assert len(algorithms(sidecar)) == 1
    again = start_sidecar(config_with(WITHOUT), store=store, environ=ours)
    assert again.ask("GET", "/v1/a", key=LEGACY).status == 200
    assert again.keys.run("show", "-", stdin=LEGACY).exit_code == 0


def test_a_sidecar_without_the_pepper_that_imported_keys_need_does_not_start(
    start_sidecar: StartSidecar, tmp_path: Path
) -> None:
    store = tmp_path / "keys.db"
    config = tmp_path / "sidecar.yaml"
    config.write_text(config_with(WITH_PEPPER))
    legacy = sha256(b"salt" + LEGACY.encode()).hexdigest()
    keys = Keys(config, store, {"LEGACY_PEPPER": "salt"})
    assert keys.run("import", "-", stdin=record(hash=legacy)).exit_code == 0
    with pytest.raises(AssertionError, match=r"not loaded.*name it in keys\.imported"):
        start_sidecar(config_with(WITHOUT), store=store)


def test_an_import_of_a_pipe_that_stalls_keeps_nobody_from_changing_keys(keys: Keys) -> None:
    key = keys.issue(scopes=("streams:read",))
    line = [sys.executable, "-m", "sidecar", "keys", "import", "-", "-c", str(keys.config)]
    environ = clean_environ(SIDECAR_STORE=keys.url, PYTHONPATH=str(ROOT))
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ) as importing:
        assert importing.stdin is not None
        for number in range(2_000):
            importing.stdin.write(record(f"sk_live_{number}").encode() + b"\n")
        # More than a pipe holds, so the store is open and some lines are read by now.
        importing.stdin.flush()
        assert keys.run("revoke", "--yes", key.id).exit_code == 0
        told, _ = importing.communicate(timeout=60)
    assert importing.returncode == 0
    assert told.startswith(b"Imported 2,000 keys")
    assert keys.told("show", key.id)["status"] == "revoked"
