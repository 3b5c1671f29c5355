"""`sidecar keys apply`: makes a store match a file."""

import json
from pathlib import Path
from typing import Any

import pytest

from sidecar.cli.apply import is_many
from tests.harness.keys import Keys, run_cli

CONFIG = """
listen: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:///nowhere.db
keys: {environments: {live: hv_live_}}
scopes: {"streams:read": Read}
plans: {pro: {}}
routes:
  - GET /v1/**: {scopes: ["streams:read"]}
"""


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    config = tmp_path / "sidecar.yaml"
    config.write_text(CONFIG)
    return Keys(config, tmp_path / "keys.db")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.yaml"


def a_record(keys: Keys, name: str, **more: Any) -> dict[str, Any]:
    """What `issue --offline` prints."""
    record = keys.told("issue", "--offline", "--name", name, "--scope", "streams:read")["record"]
    return {**record, **more}


def write(file: Path, *records: dict[str, Any]) -> None:
    file.write_text("\n".join(f"- {json.dumps(record)}" for record in records) or "[]")


def test_a_store_becomes_what_the_file_says_and_then_there_is_nothing_to_do(keys: Keys, file: Path) -> None:
    first, second = a_record(keys, "First"), a_record(keys, "Second")
    write(file, first, second)
    assert keys.run("apply", str(file)).stdout.splitlines()[-1] == "Added 2 keys, changed 0, revoked 0."
    write(file, {**first, "name": "Renamed", "plan": "pro", "scopes": []}, {**second, "enabled": False})
    changed = keys.run("apply", str(file))
    assert changed.stdout.splitlines()[0] == (
        f"~ {first['id']} (First): name First -> Renamed, scopes streams:read -> -, plan - -> pro"
    )
    assert changed.stdout.splitlines()[-1] == "Added 0 keys, changed 2, revoked 0."
    again = keys.run("apply", str(file))
    assert (again.exit_code, again.stdout) == (0, f"Nothing to do: the store has what {file} says.\n")
    assert {(key["name"], key["status"]) for key in keys.told("list")} == {
        ("Renamed", "active"),
        ("Second", "disabled"),
    }
    audit = json.loads(run_cli("audit", "--store", keys.url, "--json").stdout)
    assert [row["action"] for row in audit] == ["disable", "change", "import", "import"]


def test_a_dry_run_shows_the_change_without_making_it(keys: Keys, file: Path) -> None:
    other = keys.issue("Issued otherwise")
    record = a_record(keys, "New")
    write(file, record)
    dry = keys.run("apply", "--prune", "--dry-run", str(file))
    assert (dry.exit_code, dry.stdout.splitlines()) == (
        0,
        [f"+ {record['id']} (New)", f"- {other.id} (Issued otherwise)", "Would add 1 key, change 0, revoke 1."],
    )
    told = keys.told("apply", "--dry-run", str(file))
    assert ([key["id"] for key in told["added"]], told["revoked"], told["dry_run"]) == ([record["id"]], [], True)
    assert [key["name"] for key in keys.told("list")] == ["Issued otherwise"]


def test_keys_issued_otherwise_are_revoked_only_by_prune_and_many_only_with_yes(keys: Keys, file: Path) -> None:
    keys.issue("Issued otherwise")
    write(file, a_record(keys, "New"))
    assert keys.run("apply", str(file)).exit_code == 0
    refused = keys.run("apply", "--prune", str(file))
    assert refused.exit_code == 2
    assert refused.stderr.startswith("Error: --prune would revoke 1 key, of 2 active keys")
    assert {key["status"] for key in keys.told("list")} == {"active"}
    assert keys.run("apply", "--prune", "--yes", str(file)).exit_code == 0
    assert {(key["name"], key["status"]) for key in keys.told("list")} == {
        ("New", "active"),
        ("Issued otherwise", "revoked"),
    }


def test_a_revoked_key_stays_revoked_and_is_named_each_time(keys: Keys, file: Path) -> None:
    record = a_record(keys, "CI")
    write(file, record)
    keys.run("apply", str(file))
    keys.told("revoke", record["id"], "--yes")
    again = keys.run("apply", str(file))
    assert (again.exit_code, again.stdout.splitlines()) == (
        0,
        [
            f"! {record['id']} (CI) is revoked for good: remove its record from the file",
            f"Nothing to do: the store has what {file} says, but for 1 revoked key.",
        ],
    )


def test_every_problem_is_reported_and_nothing_changes(keys: Keys, file: Path) -> None:
    good = a_record(keys, "Good")
    write(file, good, {**good, "hash": "12"}, a_record(keys, "Bad", plan="gold"))
    result = keys.run("apply", str(file))
    assert result.exit_code == 1
    assert [line.split(" (")[0] for line in result.stderr.splitlines()] == [
        "Error: " + line
        for line in (
            f"{file}:2: hash: is not a SHA-256 in hex",
            f"{file}:3: unknown plan 'gold'",
            "nothing was changed: 2 problems",
        )
    ]
    assert not keys.store.exists()
    write(file, good)
    keys.run("apply", str(file))
    write(file, {**good, "hash": "0" * 64}, a_record(keys, "New"))
    contradicts = keys.run("apply", str(file))
    assert contradicts.stderr.startswith(f"Error: {file}:1: hash: key {good['id']} is stored with another one")
    assert [key["name"] for key in keys.told("list")] == ["Good"]


def test_stdin_takes_json_lines(keys: Keys) -> None:
    lines = "\n".join(json.dumps(a_record(keys, name)) for name in ("a", "b"))
    assert keys.run("apply", "-", stdin=lines).stdout.splitlines()[-1] == "Added 2 keys, changed 0, revoked 0."
    assert keys.run("apply", "nowhere.yaml").exit_code == 2


@pytest.mark.parametrize(
    ("revoked", "active", "many"),
    [(0, 0, False), (1, 10, False), (1, 9, True), (10, 100, False), (11, 1000, True), (11, 110, True)],
)
def test_over_ten_keys_or_ten_percent_are_many(revoked: int, active: int, many: bool) -> None:
    assert is_many(revoked, active) is many
