"""`sidecar keys change`, `rotate` and `due`."""

import json
import sqlite3
import time
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.harness.keys import Keys, moment

CONFIG = """
listen: 127.0.0.1:0
upstream: http://127.0.0.1:1
keys:
  environments: {live: hv_live_, test: hv_test_}
  max_age: 90d
  rotation_overlap: 2h
scopes: {"streams:read": Read, "streams:write": Write}
quotas: {general: {limit: 10, per: hour}, burst: {limit: 5, per: minute}}
plans: {pro: {general: 100}}
routes:
  - GET /v1/**: {scopes: ["streams:read"]}
"""


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    config = tmp_path / "sidecar.yaml"
    config.write_text(CONFIG)
    return Keys(config, tmp_path / "keys.db")


def test_rotate_prints_the_new_key_once_and_when_the_old_one_ends(keys: Keys) -> None:
    old = keys.issue("CI", scopes=("streams:read",), tenant="acme", environment="test")
    result = keys.run("rotate", old.id)
    assert result.exit_code == 0
    [text] = [line.strip() for line in result.stdout.splitlines() if line.startswith("    ")]
    assert text.startswith("hv_test_")
    assert text != old.text
    assert "shown only once" in result.stdout
    assert f"to replace {old.id}" in result.stdout
    told = keys.told("show", old.id)
    assert told["retires_at"] in result.stdout
    assert timedelta(hours=1.9) < moment(told, "retires_at") - datetime.now().astimezone() < timedelta(hours=2)
    assert keys.told("list", "--search", "CI")[0]["replaces"] == old.id
    assert text not in keys.run("list", "--json").stdout


def test_rotate_says_that_the_old_key_may_end_earlier(keys: Keys) -> None:
    keys.config.write_text(CONFIG.replace("max_age: 90d", "retire_unused: 6h"))
    old = keys.issue("CI")
    told = keys.run("rotate", old.id).stdout
    assert f"until {keys.told('show', old.id)['retires_at']}, or less long if it stays unused. " in told


def test_rotate_accepts_an_overlap_and_an_expiry_and_prints_everything_as_json(keys: Keys) -> None:
    old = keys.issue("CI", expires="30d")
    told = keys.told("rotate", old.id, "--overlap", "0s", "--expires", "2100-01-31")
    assert (told["replaces"], told["expires_at"]) == (old.id, "2100-01-31T00:00:00Z")
    assert keys.told("show", old.id)["status"] == "retired"
    assert keys.told("show", told["id"])["name"] == "CI"
    assert told["old"]["id"] == old.id
    assert keys.told("rotate", told["id"], "--expires", "never")["expires_at"] is None


def test_rotate_takes_the_plaintext_on_stdin_only(keys: Keys) -> None:
    old = keys.issue("CI")
    refused = keys.run("rotate", old.text)
    assert (refused.exit_code, old.text in refused.output) == (2, False)
    assert keys.run("rotate", "-", stdin=old.text + "\n").exit_code == 0


def test_rotate_refuses_in_one_line_and_makes_nothing(keys: Keys) -> None:
    short, twice = keys.issue("short", expires="1h"), keys.issue("twice")
    successor = keys.told("rotate", twice.id)["id"]
    for arguments, status, problem in (
        ((short.id,), 2, "within the overlap: say when the new one expires (--expires"),
        ((twice.id,), 1, f"is replaced already by '{successor}': rotate that one"),
        (("key_none",), 1, "no key 'key_none'"),
        ((short.id, "--overlap", "soon"), 2, "must be a number with its unit"),
    ):
        result = keys.run("rotate", *arguments)
        assert (result.exit_code, result.stdout) == (status, "")
        assert problem in result.stderr
    assert len(keys.told("list")) == 3


def test_change_sets_and_removes_values(keys: Keys) -> None:
    key = keys.issue("CI", scopes=("streams:read",), metadata={"a": "1", "b": "2"})
    arguments = "--scope streams:write --plan pro --quota general=5 --quota burst=6 --metadata c=3 --no-metadata a"
    told = keys.told("change", key.id, "--name", "CI, nightly", "--expires", "2100-01-31", *arguments.split())
    changed = {
        "name": "CI, nightly",
        "scopes": ["streams:write"],
        "plan": "pro",
        "quotas": {"general": 5, "burst": 6},
        "metadata": {"b": "2", "c": "3"},
        "expires_at": "2100-01-31T00:00:00Z",
    }
    assert told == {**keys.told("show", key.id), **changed}
    away = keys.told("change", key.id, "--no-plan", "--no-scopes", "--no-quota", "burst", "--expires", "never")
    assert (away["plan"], away["scopes"], away["quotas"], away["expires_at"]) == (None, [], {"general": 5}, None)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "nothing to change"),
        (["--plan", "pro", "--no-plan"], "give only one of them"),
        (["--no-metadata", "x"], "no 'x' to remove"),
        (["--scope", "streams:raed", "--plan", "prp"], "did you mean 'streams:read'"),
        (["--expires", "2020-01-31"], "not in the future"),
    ],
)
def test_change_refuses_what_does_not_fit(keys: Keys, arguments: list[str], problem: str) -> None:
    key = keys.issue("CI")
    result = keys.run("change", key.id, *arguments)
    assert result.exit_code == 2
    assert problem in result.stderr
    assert keys.told("show", key.id) == {name: value for name, value in key.told.items() if name != "key"}


def aged(keys: Keys, key_id: str, days: int) -> None:
    with closing(sqlite3.connect(keys.store)) as store, store:
        store.execute("UPDATE api_key SET created_at = created_at - ? WHERE id = ?", (days * 86_400_000_000, key_id))


def test_due_lists_old_expiring_and_retiring_keys_with_their_use(keys: Keys) -> None:
    old, soon = keys.issue("old"), keys.issue("soon", expires="3d")
    later = keys.issue("later", expires="20d")
    replaced = keys.issue("replaced", tenant="acme")
    keys.told("rotate", replaced.id)
    aged(keys, old.id, 100)
    with closing(sqlite3.connect(keys.store)) as store, store:
        hour = int(time.time()) // 3600 * 3_600_000_000
        use = (old.id, hour, "GET /v1/**", 2, 41, "")
        store.execute("INSERT INTO usage (key_id, hour, route, status_class, count, reason) VALUES (?,?,?,?,?,?)", use)
    lines = keys.run("due").stdout.splitlines()
    assert [line.split()[0] for line in lines] == [old.id, "41", replaced.id, soon.id]
    assert "too old since" in lines[0]
    assert "in the last day on GET /v1/**" in lines[1]
    assert "(replaced) of acme retires" in lines[2]
    told = keys.told("due", "--within", "30d")
    assert [(one["key"]["id"], one["why"]) for one in told] == [
        (old.id, "max_age"),
        (replaced.id, "retires"),
        (soon.id, "expires"),
        (later.id, "expires"),
    ]
    assert [row["count"] for row in told[0]["usage"]] == [41]
    assert json.loads(keys.run("due", "--tenant", "other", "--json").stdout) == []
    assert keys.run("due", "--tenant", "other").stdout == "No key is due.\n"


def test_due_lists_when_an_unused_replaced_key_retires(keys: Keys) -> None:
    soon, used = keys.issue("soon"), keys.issue("used")
    keys.told("rotate", soon.id, "--overlap", "7h")
    keys.told("rotate", used.id, "--overlap", "7h")
    # Six hours after this use the overlap is over.
    with closing(sqlite3.connect(keys.store)) as store, store:
        store.execute("UPDATE api_key SET last_used_at = replaced_at + 7200000000 WHERE id = ?", (used.id,))
    assert [one["unless_used_at"] for one in keys.told("due")] == [None, None]
    keys.config.write_text(CONFIG.replace("max_age: 90d", "retire_unused: 6h"))
    first, second = keys.told("due")
    assert moment(first, "unless_used_at") - moment(first["key"], "replaced_at") == timedelta(hours=6)
    assert second["unless_used_at"] is None
    lines = keys.run("due").stdout.splitlines()
    sooner = f" retires {first['at']}, or {first['unless_used_at']} if it stays unused; never used"
    assert [sooner in line for line in lines] == [True, False]


def test_every_due_key_is_replaced_and_each_new_one_is_in_a_file_for_its_owner_only(keys: Keys, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    old, soon, fresh = keys.issue("old", tenant="acme"), keys.issue("soon", expires="3d"), keys.issue("fresh")
    replaced = keys.issue("replaced")
    keys.told("rotate", replaced.id)
    aged(keys, old.id, 100)
    [one] = keys.told("rotate", "--due", "--into", str(folder))["replaced"]
    assert (one["old"], one["file"]) == (old.id, str(folder / one["new"]))
    told = keys.run("rotate", "--due", "--into", str(folder), "--within", "7d", "--overlap", "1h")
    assert told.exit_code == 0 and f"Replaced {soon.id} (soon): the new key is in {folder}/" in told.stdout
    files = sorted(folder.iterdir())
    assert len(files) == 2 and {file.stat().st_mode & 0o777 for file in files} == {0o600}
    for file in files:
        text = file.read_text()
        assert json.loads(keys.run("show", "-", "--json", stdin=text).stdout)["id"] == file.name
        assert text.strip() not in told.stdout
    assert keys.told("show", one["new"])["tenant"] == "acme"
    assert keys.told("show", fresh.id)["retires_at"] is None
    assert keys.run("rotate", "--due", "--into", str(folder)).stdout == "No key is due.\n"


def test_no_key_is_replaced_whose_successor_cannot_be_written(keys: Keys, tmp_path: Path) -> None:
    old = keys.issue("old")
    aged(keys, old.id, 100)
    for into in ("/proc/self", str(tmp_path / "missing"), str(keys.config)):
        told = keys.run("rotate", "--due", "--into", into)
        assert told.exit_code in (1, 2) and into in told.stderr and "Traceback" not in told.stderr
    assert keys.told("show", old.id)["retires_at"] is None
    assert len(keys.told("list")) == 1


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "give either KEY, or --due"),
        (("key_1", "--due", "--into", "."), "give either KEY, or --due"),
        (("--due",), "--due needs --into FOLDER"),
        (("key_1", "--into", "."), "--into, --within and --tenant go with --due"),
    ],
)
def test_rotate_rejects_options_that_do_not_fit_together(keys: Keys, arguments: tuple[str, ...], problem: str) -> None:
    told = keys.run("rotate", *arguments)
    assert told.exit_code == 2 and problem in told.stderr
