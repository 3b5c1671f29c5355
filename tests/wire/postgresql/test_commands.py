"""Commands on a store in PostgreSQL, and their errors if it is unavailable."""

import json
import re
from pathlib import Path

import pytest

from sidecar.store.postgresql.schema import MIGRATIONS
from tests.harness.forks import ForkedProcess
from tests.harness.keys import Keys, run_cli
from tests.harness.postgresql import PostgresqlServer
from tests.harness.processes import Process, clean_environ

CONFIG = """
listen: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: {url}
scopes: {{read: Read}}
keys: {{imported: [{{prefix: sk_live_}}]}}
routes:
- GET /items/**: {{scopes: [read]}}
"""


@pytest.fixture
def keys(url: str, tmp_path: Path) -> Keys:
    config = tmp_path / "sidecar.yaml"
    config.write_text(CONFIG.format(url=url), encoding="utf-8")
    return Keys(config, url)


def test_the_life_of_a_key(keys: Keys) -> None:
    issued = keys.issue("nightly", scopes=("read",), tenant="acme")
    assert [key["id"] for key in keys.told("list", "--tenant", "acme", "--search", "night")] == [issued.id]
    successor = keys.told("rotate", issued.id)
    assert keys.told("show", issued.id)["retires_at"] is not None
    assert keys.run("show", "-", "--json", stdin=issued.text).exit_code == 0
    assert keys.run("revoke", successor["id"], "--yes").exit_code == 0
    actions = [row["action"] for row in json.loads(on(keys, "audit", "--json"))]
    assert actions == ["revoke", "rotate", "rotate", "issue"]
    assert json.loads(on(keys, "audit", "verify", "--json"))["problem"] is None


def test_keys_are_exported_and_imported(keys: Keys, server: PostgresqlServer, template: str, tmp_path: Path) -> None:
    issued = keys.issue("old", scopes=("read",))
    file = tmp_path / "keys.jsonl"
    record = {"hash": "a" * 64, "prefix": "sk_live_ab", "name": "imported"}
    file.write_text("\n".join(json.dumps({**record, "hash": f"{number:064x}"}) for number in range(50)))
    for options in (["--dry-run"], []):
        assert "50 keys" in on(keys, "keys", "import", str(file), *options)
    assert len(on(keys, "keys", "export").splitlines()) == 51
    again = keys.run("import", str(file))
    assert again.exit_code == 1 and "stored already" in again.output
    assert keys.told("show", issued.id)["name"] == "old"


def test_a_file_of_records_is_applied(keys: Keys, tmp_path: Path) -> None:
    issued = keys.issue("otherwise")
    record = keys.told("issue", "--offline", "--name", "from a file")["record"]
    file = tmp_path / "keys.yaml"
    file.write_text(f"- {json.dumps(record)}")
    for options, last in (
        (["--dry-run"], "Would add 1 key, change 0, revoke 0."),
        ([], "Added 1 key, changed 0, revoked 0."),
        ([], f"Nothing to do: the store has what {file} says."),
        (["--prune", "--yes"], "Added 0 keys, changed 0, revoked 1."),
    ):
        assert on(keys, "keys", "apply", str(file), *options).splitlines()[-1] == last
    assert keys.told("show", issued.id)["status"] == "revoked"


def test_doctor_examines_the_store(keys: Keys) -> None:
    keys.issue("old", scopes=("read",))
    checks = json.loads(run_cli("doctor", "-c", str(keys.config), "--json").stdout)["findings"]
    found = {check["check"]: check["severity"] for check in checks}
    assert (found["schema"], found["audit"]) == ("ok", "ok")
    assert found["latency"] in ("ok", "warning")


@pytest.mark.parametrize("written", ["hunter2", "${DB_PASSWORD}"])
def test_doctor_reports_a_password_in_a_file_readable_by_others(keys: Keys, url: str, written: str) -> None:
    keys.config.write_text(CONFIG.format(url=url.replace("postgres@", f"postgres:{written}@")), encoding="utf-8")
    keys.config.chmod(0o644)
    told = run_cli("doctor", "-c", str(keys.config), environ={"DB_PASSWORD": "hunter2"}).output
    assert ("contains a secret" in " ".join(told.split())) == (written == "hunter2")
    assert "hunter2" not in told


def on(keys: Keys, *arguments: str) -> str:
    done = run_cli(*arguments[:1], *arguments[1:], "-c", str(keys.config))
    assert done.exit_code == 0, done.output
    return done.stdout


WRONG = {
    "postgresql://asked:hunter2@{place}/{name}": "refuses the password",
    "postgresql://nobody:hunter2@{place}/{name}": "refuses this user",
    "postgresql://postgres:hunter2@{place}/nothing": "no such database",
    "postgresql://postgres:hunter2@127.0.0.1:1/{name}": "cannot be reached",
    "postgresql://postgres:hunter2@{place}/{name}?sslmode=require": "refuses TLS",
    "postgresql://postgres:hunter2@{place}/{name}?sslmode=verify-full&sslrootcert=/none": "TLS files",
    "postgresql://postgres:hunter2@{place}/template1": "`sidecar store make` makes it",
    "postgresql://postgres:hunter2@{place}/{name}?target_session_attrs=standby": "no such server among its hosts",
    "postgresql://postgres:hunter2@/{name}?host=/none": "the socket in the folder `host`",
    "postgresql://postgres:hunter2@nowhere.invalid/{name}": "cannot be resolved",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_an_error_is_one_line_without_the_password(server: PostgresqlServer, template: str, wrong: str) -> None:
    server.ask_for_password("asked", "right")
    done = run_cli("keys", "list", "--store", wrong.format(place=f"127.0.0.1:{server.port}", name=template))
    assert done.exit_code == 1
    assert WRONG[wrong] in done.output and len(done.output.splitlines()) == 1
    assert "hunter2" not in done.output


def test_the_password_comes_from_a_file(server: PostgresqlServer, url: str, tmp_path: Path) -> None:
    server.ask_for_password("asked", "right")
    (tmp_path / "password").write_text("right\n", encoding="ascii")
    store = url.replace("postgres@", "asked@")
    done = run_cli("keys", "list", "--store", store, environ={"PGPASSWORD_FILE": str(tmp_path / "password")})
    assert "does not let this role" in done.output


def test_a_newer_schema_that_only_adds_is_used_and_one_that_takes_away_is_refused(
    server: PostgresqlServer, url: str
) -> None:
    server.sql("UPDATE sidecar.schema_version SET version = version + 1", url=url)
    assert run_cli("keys", "list", "--store", url).exit_code == 0
    server.sql("UPDATE sidecar.schema_version SET oldest_program = version", url=url)
    done = run_cli("keys", "list", "--store", url)
    assert done.exit_code == 1 and "use a newer sidecar" in done.output


def test_ten_processes_that_start_at_once_make_one_store(server: PostgresqlServer) -> None:
    url = server.database()
    line = ["store", "make", "--store", url]
    started = [Process(ForkedProcess(line, clean_environ())) for _ in range(10)]
    assert [process.wait() for process in started] == [0] * 10, [process.stderr.all() for process in started]
    assert server.sql("SELECT count(*), max(version) FROM sidecar.schema_version", url=url) == [
        ("1", str(len(MIGRATIONS)))
    ]


def test_info_shows_what_the_store_contains(keys: Keys, url: str) -> None:
    keys.issue("one")
    assert keys.run("revoke", keys.issue("two").id, "--yes").exit_code == 0
    told = json.loads(run_cli("store", "info", "--store", url, "--json").stdout)
    assert told["engine"].startswith("PostgreSQL ") and told["path"] == url.replace("postgres@", "")
    assert (told["keys"], told["audit_rows"], told["change"]) == ({"active": 1, "revoked": 1}, 3, "revoke")
    assert (told["schema_version"], told["connections"]) == (len(MIGRATIONS), 0) and told["bytes"] > 100_000
    assert "0 connections of sidecars" in run_cli("store", "info", "--store", url).stdout


UNSOUND = {
    "DELETE FROM sidecar.audit WHERE id = 2": "the audit was tampered with: row 2 was removed",
    "UPDATE sidecar.audit SET actor = 'nobody' WHERE id = 1": "the audit was tampered with: row 1 was changed",
    "DELETE FROM sidecar.audit_head": "the head of the audit was removed",
    "DELETE FROM sidecar.api_key WHERE name = 'two'": "1 key in the audit that the store does not have",
    "UPDATE sidecar.api_key SET id = 'key_of_nobody' WHERE name = 'two'": "1 key without a row in the audit",
    "UPDATE sidecar.api_key SET algorithm = 'md5' WHERE name = 'two'": "1 key with a digest of an algorithm",
    "INSERT INTO sidecar.usage VALUES ('key_of_nobody', 0, '', 2, 1, '')": "1 row of usage about keys",
    "UPDATE sidecar.schema_version SET version = 0": "the store is empty",
    "UPDATE sidecar.schema_version SET version = 99": "is newer than this program's",
}


def test_check_says_what_is_wrong_with_the_store(server: PostgresqlServer, keys: Keys, url: str) -> None:
    for name in ("one", "two"):
        keys.issue(name)
    sound = run_cli("store", "check", "--store", url)
    assert sound.exit_code == 0 and "is sound: 2 keys, 2 rows of audit" in sound.stdout
    name = url.rpartition("/")[2]
    for statement, problem in UNSOUND.items():
        damaged = server.database(template=name)
        server.sql(statement, url=damaged)
        done = run_cli("store", "check", "--store", damaged)
        assert done.exit_code == 1 and problem in done.stderr, (statement, done.output)
        assert json.loads(run_cli("store", "check", "--store", damaged, "--json").stdout)["problems"]


def test_a_dump_is_restored_as_the_refusal_of_a_backup_says(server: PostgresqlServer, keys: Keys, url: str) -> None:
    issued = keys.issue("saved")
    refused = run_cli("store", "backup", "--store", url, str(server.folder / "none"))
    assert refused.exit_code == 2
    save, restore = (line.split() for line in re.findall("`(pg_.*?)`", " ".join(refused.stderr.split())))
    dump = server.folder / "keys.dump"
    written = [word.replace("keys.dump", str(dump)).replace("URL", url) for word in save]
    server.run(written)
    assert keys.run("revoke", issued.id, "--yes").exit_code == 0
    for _ in range(2):
        server.run([word.replace("keys.dump", str(dump)).replace("URL", url) for word in restore])
        assert keys.told("show", issued.id)["status"] == "active"
        assert run_cli("store", "check", "--store", url).exit_code == 0
