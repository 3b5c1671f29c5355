"""`sidecar audit` and `sidecar audit verify`."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from tests.harness.keys import Keys, run_cli
from tests.wire.cli.test_rotation import CONFIG


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    config = tmp_path / "sidecar.yaml"
    config.write_text(CONFIG)
    return Keys(config, tmp_path / "keys.db")


def audit(keys: Keys, *arguments: str) -> Result:
    return run_cli("audit", *arguments, environ={"SIDECAR_CONFIG": str(keys.config), "SIDECAR_STORE": keys.url})


def rows(keys: Keys, *arguments: str) -> list[Any]:
    result = audit(keys, "--json", *arguments)
    assert result.exit_code == 0, result.output
    found: list[Any] = json.loads(result.stdout)
    return found


def test_a_key_can_be_named_by_its_prefix_and_a_missing_one_is_reported(keys: Keys) -> None:
    key, other = keys.issue("CI"), keys.issue("CD")
    prefix = keys.told("show", key.id)["prefix"]
    assert [row["key_id"] for row in rows(keys, "--key", prefix)] == [key.id]
    assert [row["key_id"] for row in rows(keys, "--key", other.id)] == [other.id]
    nobody = audit(keys, "--key", "CI")
    assert (nobody.exit_code, nobody.stderr) == (1, "Error: no key 'CI'; see sidecar keys list\n")


def test_each_change_is_a_line_the_newest_first_with_what_was_before_and_after(keys: Keys) -> None:
    key = keys.issue("CI", tenant="acme")
    keys.told("change", key.id, "--name", "CD", "--quota", "general=5")
    keys.told("revoke", key.id)
    revoke, change, issue = audit(keys).stdout.splitlines()
    assert f' issue {key.id} (CI): name "CI", tenant "acme"' in issue
    assert f' change {key.id} (CD): name "CI" -> "CD", quotas {{}} -> {{"general": 5}}' in change
    assert f' revoke {key.id} (CD): status "active" -> "revoked", revoked_at null -> "2' in revoke
    assert " cli:" in issue
    assert "@" in issue


def test_an_unknown_action_is_refused_with_the_known_ones(keys: Keys) -> None:
    keys.issue("CI")
    told = audit(keys, "--action", "delete")
    assert (told.exit_code, told.stdout) == (2, "")
    assert "revoke, import" in told.stderr


def test_every_action_that_rows_have_is_one_to_filter_by(keys: Keys) -> None:
    key = keys.issue("CI")
    with closing(sqlite3.connect(keys.store)) as store, store:
        store.execute("UPDATE audit SET action = 'rehash'")
    assert [row["key_id"] for row in rows(keys, "--action", "rehash")] == [key.id]


def test_rows_are_filtered_and_limited(keys: Keys) -> None:
    first, second = keys.issue("first", tenant="acme"), keys.issue("second")
    keys.told("disable", first.id)
    actor = rows(keys)[0]["actor"]
    for arguments, expected in (
        (["--key", first.id], [("disable", first.id), ("issue", first.id)]),
        (["--tenant", "acme", "--action", "issue"], [("issue", first.id)]),
        (["--actor", actor, "--limit", "1"], [("disable", first.id)]),
        (["--actor", "cli:nobody-at-all"], []),
        (["--since", "1h", "--action", "issue"], [("issue", second.id), ("issue", first.id)]),
        (["--until", "1h"], []),
        (["--since", "2100-01-31"], []),
    ):
        assert [(row["action"], row["key_id"]) for row in rows(keys, *arguments)] == expected
    assert audit(keys, "--until", "1h").stdout == "No changes match.\n"


def test_stored_text_stays_on_its_line_and_does_not_speak_to_the_terminal(keys: Keys) -> None:
    key = keys.issue("CI")
    with closing(sqlite3.connect(keys.store)) as store, store:
        store.execute("UPDATE audit SET actor = ?, source = ?", ("cli:\x1b[31mann\r\n", "\u202ehost\n2027 forged"))
    [line] = audit(keys).stdout.splitlines()
    assert line.isprintable()
    assert key.id in line


def test_verify_prints_the_rows_and_the_head(keys: Keys) -> None:
    keys.issue("CI")
    result = audit(keys, "verify")
    assert result.exit_code == 0
    assert result.stdout.startswith("1 row, none changed or removed. Head: 1:")
    head = result.stdout.split()[-1]
    keys.issue("CD")
    assert audit(keys, "verify", "--noted", head).exit_code == 0
    told = json.loads(audit(keys, "verify", "--json").stdout)
    assert (told["rows"], told["problem"], told["head"].split(":")[0]) == (2, None, "2")


def test_verify_finds_a_row_that_was_changed_and_one_that_was_removed(keys: Keys) -> None:
    keys.issue("CI")
    keys.issue("CD")
    head = audit(keys, "verify").stdout.split()[-1]
    with closing(sqlite3.connect(keys.store)) as store, store:
        store.execute("UPDATE audit SET actor = 'somebody else' WHERE id = 2")
    result = audit(keys, "verify")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Error: the audit was tampered with: row 2 was changed, or the row before it was\n"
    with closing(sqlite3.connect(keys.store)) as store, store:
        store.execute("DELETE FROM audit WHERE id = 2")
    assert "row 2 was removed" in audit(keys, "verify", "--noted", head).stderr


def test_verify_refuses_a_malformed_head(keys: Keys) -> None:
    keys.issue("CI")
    result = audit(keys, "verify", "--noted", "1")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--noted: '1' is not a head of an audit" in result.stderr
