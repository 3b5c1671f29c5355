"""Many keys are disabled or revoked at once: the changes are listed first."""

import json
import sqlite3
import time
from contextlib import closing

import pytest

from tests.harness.keys import IssuedKey
from tests.wire.cli.doctoring import Place

DAY = 86_400


@pytest.fixture
def keys(place: Place) -> dict[str, IssuedKey]:
    """Old keys of globex and acme that were never used, and one of globex that was used a day ago."""
    made = {
        name: place.keys.issue(name, tenant=name.split()[0]) for name in ("globex idle", "globex busy", "acme idle")
    }
    with closing(sqlite3.connect(place.keys.store)) as store, store:
        now = int(time.time())
        store.execute("UPDATE api_key SET created_at = ? WHERE tenant IS NOT NULL", ((now - 100 * DAY) * 1_000_000,))
        store.execute("UPDATE api_key SET last_used_at = ? WHERE name = ?", ((now - DAY) * 1_000_000, "globex busy"))
    return made


def statuses(place: Place) -> dict[str, str]:
    with closing(sqlite3.connect(place.keys.store)) as store:
        return dict(store.execute("SELECT name, status FROM api_key WHERE tenant IS NOT NULL"))


def test_a_dry_run_lists_what_would_happen_by_tenant_prefix_and_last_use(
    place: Place, keys: dict[str, IssuedKey]
) -> None:
    told = place.keys.run("revoke", "--tenant", "globex", "--dry-run").stdout
    heading, *rows, summary = told.splitlines()
    assert heading.split() == ["TENANT", "PREFIX", "USED", "STATUS", "NAME", "ID"]
    assert {row.split()[2] for row in rows} == {"never", "1d"}
    assert summary == "Would revoke 2 keys of 1 tenant."
    assert set(statuses(place).values()) == {"active"}


def test_only_selected_keys_are_revoked_and_each_has_its_audit_row(place: Place, keys: dict[str, IssuedKey]) -> None:
    told = place.keys.run("revoke", "--tenant", "globex", "--unused-for", "90d", "--yes")
    assert told.stdout == "Revoked 1 key of 1 tenant.\n"
    assert statuses(place) == {"globex idle": "revoked", "globex busy": "active", "acme idle": "active"}
    with closing(sqlite3.connect(place.keys.store)) as store:
        rows = store.execute("SELECT key_id FROM audit WHERE action = 'revoke'").fetchall()
    assert rows == [(keys["globex idle"].id,)]
    again = place.keys.run("revoke", "--tenant", "globex", "--unused-for", "90d", "--yes").stdout
    assert again == "No key to revoke is selected.\n"


def test_without_a_terminal_many_keys_are_changed_only_with_yes(place: Place, keys: dict[str, IssuedKey]) -> None:
    refused = place.keys.run("disable", "--tenant", "globex")
    assert refused.exit_code == 2 and "--dry-run" in refused.stderr and "--yes" in refused.stderr
    assert set(statuses(place).values()) == {"active"}
    told = json.loads(place.keys.run("disable", "--unused-for", "90d", "--yes", "--json").stdout)
    assert (told["action"], told["dry_run"]) == ("disable", False)
    assert {key["name"]: key["status"] for key in told["keys"]} == {"globex idle": "disabled", "acme idle": "disabled"}


@pytest.mark.parametrize("arguments", [(), ("key_1", "--tenant", "globex"), ("key_1", "--dry-run"), ("--yes",)])
def test_either_a_key_or_a_selection_is_named(place: Place, arguments: tuple[str, ...]) -> None:
    assert place.keys.run("revoke", *arguments).exit_code == 2
