"""`sidecar doctor` looks at files and at the store."""

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from tests.harness.keys import Keys
from tests.harness.processes import ROOT
from tests.wire.cli.doctoring import PEPPER, Place, examined
from tests.wire.proxy.certificates import Authority


def test_files_readable_by_others_are_reported_and_fixed_by_the_suggested_command(place: Place) -> None:
    place.store.chmod(0o644)
    report = examined(place.config)
    assert report["Key store: file modes"] == ("problem", "keys.db 0644")
    subprocess.run(["/bin/sh", "-c", report.do("Key store: file modes")], check=True)
    assert examined(place.config)["Key store: file modes"] == ("ok", "keys.db 0600")


def test_a_listeners_readable_or_mismatched_private_key_is_reported(place: Place, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("listener")
    _, other = authority.issue("other")
    plain = place.config.read_text()
    key.chmod(0o644)
    place.config.write_text(f"{plain}tls: {{certificate: {certificate}, key: {key}}}\n")
    report = examined(place.config)
    assert report["Secrets: TLS keys"][0] == "problem"
    assert report["Listeners: certificates"][0] == "ok"
    place.config.write_text(f"{plain}tls: {{certificate: {certificate}, key: {other}}}\n")
    assert examined(place.config)["Listeners: certificates"][0] == "problem"


def test_a_pepper_in_a_file_that_others_can_read_is_a_problem_and_one_of_a_variable_is_not(place: Place) -> None:
    imported = "imported: [{{prefix: sk_, hash: sha256-pepper-first, pepper: {pepper!r}}}]"
    plain = place.config.read_text()
    place.config.write_text(plain.replace("max_age: 90d", imported.format(pepper=PEPPER)))
    place.config.chmod(0o644)
    assert examined(place.config)["Configuration: file mode"][0] == "problem"
    place.config.write_text(plain.replace("max_age: 90d", imported.format(pepper="${LEGACY}")))
    assert examined(place.config, LEGACY=PEPPER)["Configuration: file mode"][0] == "ok"


def test_a_missing_store_is_a_problem_and_none_is_made(tmp_path: Path) -> None:
    place = Place(tmp_path)
    report = examined(place.config)
    assert report["Key store: schema"] == ("problem", f"there is no key store at {place.store}")
    assert not place.store.exists()


def test_an_older_store_is_reported_and_left_unchanged(place: Place) -> None:
    place.change("UPDATE schema_version SET version = 1")
    assert examined(place.config)["Key store: schema"][0] == "warning"
    place.change("UPDATE schema_version SET version = 99")
    report = examined(place.config)
    assert report["Key store: schema"][0] == "problem"
    assert report["Key store: latency"][0] == "unchecked"
    with closing(sqlite3.connect(place.store)) as connection:
        assert connection.execute("SELECT version FROM schema_version").fetchall() == [(99,)]


def test_a_locked_store_is_a_problem_and_its_audit_is_still_checked(place: Place) -> None:
    with closing(sqlite3.connect(place.store, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        report = examined(place.config)
    severity, saw = report["Key store: latency"]
    assert severity == "problem"
    assert "is locked by another process" in saw
    assert report["Key store: audit"] == ("ok", "1 row, none changed or removed")


def test_times_in_the_future_in_the_store_are_reported(place: Place) -> None:
    place.change("UPDATE api_key SET last_used_at = created_at + 3600 * 1000000")
    severity, saw = examined(place.config)["Key store: clock"]
    assert severity == "problem"
    assert "60m ahead" in saw


def test_a_modified_audit_is_a_problem(place: Place) -> None:
    place.change("UPDATE audit SET actor = 'nobody'")
    report = examined(place.config)
    assert report["Key store: audit"] == ("problem", "row 1 was changed, or the row before it was")


def test_a_long_audit_is_verified_on_demand(place: Place) -> None:
    place.change(
        "INSERT INTO audit (id, at, actor, action, key_id, hash) VALUES (100001, 0, 'x', 'revoke', 'k', x'00')"
    )
    assert examined(place.config)["Key store: audit"] == (
        "unchecked",
        "verifying 100,001 rows takes a while: run doctor with --deep",
    )
    assert examined(place.config, "--deep")["Key store: audit"][0] == "problem"


def test_keys_of_a_pepper_that_is_not_set_are_a_problem(tmp_path: Path) -> None:
    place = Place(tmp_path)
    Keys(place.config, place.store, {"SIDECAR_PEPPER": PEPPER}).issue()
    assert examined(place.config)["Secrets: pepper"][0] == "problem"
    assert examined(place.config, SIDECAR_PEPPER=PEPPER)["Secrets: pepper"] == ("ok", "set, and long enough")
    turned = {"SIDECAR_PEPPER": PEPPER[::-1], "SIDECAR_PEPPER_PREVIOUS": PEPPER}
    assert examined(place.config, **turned)["Secrets: previous pepper"][0] == "ok"
    unneeded = {"SIDECAR_PEPPER": PEPPER, "SIDECAR_PEPPER_PREVIOUS": PEPPER[::-1]}
    assert examined(place.config, **unneeded)["Secrets: previous pepper"][0] == "warning"


def test_keys_without_an_end_and_keys_over_their_age_are_counted(place: Place) -> None:
    place.keys.issue()
    assert examined(place.config)["Key store: age of keys"] == ("ok", "1 of 2 active keys never expires")
    place.change("UPDATE api_key SET created_at = created_at - 91 * 86400 * 1000000 WHERE expires_at IS NULL")
    severity, saw = examined(place.config)["Key store: age of keys"]
    assert severity == "warning"
    assert saw.startswith("1 key older than keys.max_age (90d)")


_AS_ANOTHER_USER = """
import encodings.ascii, encodings.latin_1, encodings.utf_8_sig, importlib, os, pkgutil, sys
import sidecar
for module in pkgutil.walk_packages(sidecar.__path__, "sidecar."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
if os.getuid() == 0:  # Without rights over other users' files; its folder is closed to everyone in any case.
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
from sidecar.cli.main import main
main(sys.argv[1:], prog_name="sidecar")
"""


def test_a_store_that_this_user_may_not_see_is_not_a_missing_one(place: Place, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    place.store.rename(closed / "keys.db")
    closed.chmod(0)
    try:
        line = [sys.executable, "-c", _AS_ANOTHER_USER, "keys", "list", "--store", f"sqlite://{closed}/keys.db"]
        done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, check=False)
    finally:
        closed.chmod(0o700)
    told = f"Error: the key store {closed}/keys.db cannot be used: this user may not enter its folder; "
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{told}use the user that owns it\n"
