"""What commands that change a key print, and what they ask first."""

import os
import pty
import sqlite3
import subprocess
import time
from contextlib import closing

import pytest

from tests.harness import forks
from tests.harness.keys import IssuedKey
from tests.harness.processes import clean_environ
from tests.wire.cli.doctoring import Place


@pytest.fixture
def key(place: Place) -> IssuedKey:
    return place.keys.issue("BI export", tenant="globex")


def used(place: Place, key: IssuedKey, seconds: float) -> None:
    """Set the last use of the key, in seconds ago."""
    with closing(sqlite3.connect(place.keys.store)) as connection, connection:
        at = int((time.time() - seconds) * 1_000_000)
        connection.execute("UPDATE api_key SET last_used_at = ? WHERE id = ?", (at, key.id))


def test_a_revocation_is_one_sentence_and_a_second_one_says_so(place: Place, key: IssuedKey) -> None:
    used(place, key, 200)
    who = f"{key.id} (BI export) of globex"
    assert place.keys.run("revoke", key.id).stdout == f"Revoked {who}; last used 3 minutes ago.\n"
    again = place.keys.run("revoke", key.id)
    assert (again.exit_code, again.stdout) == (0, f"{who} was revoked already, just now: nothing changed.\n")


def test_disabling_and_enabling_are_one_sentence_each(place: Place, key: IssuedKey) -> None:
    who = f"{key.id} (BI export) of globex"
    assert place.keys.run("enable", key.id).stdout == f"{who} was enabled already: nothing changed.\n"
    assert place.keys.run("disable", key.id).stdout == f"Disabled {who}; never used.\n"
    assert place.keys.run("enable", key.id).stdout == f"Enabled {who}; never used.\n"


def test_a_change_says_what_changed(place: Place, key: IssuedKey) -> None:
    told = place.keys.run("change", key.id, "--name", "BI", "--metadata", "owner=ann").stdout
    assert told == f"Changed {key.id} (BI export) of globex: name BI export -> BI, metadata - -> owner=ann.\n"
    assert "nothing changed" in place.keys.run("change", key.id, "--name", "BI").stdout


def test_verbose_shows_the_record_as_well(place: Place, key: IssuedKey) -> None:
    sentence, _, record = place.keys.run("disable", "-v", key.id).stdout.partition("\n\n")
    assert sentence.startswith(f"Disabled {key.id}")
    assert record == place.keys.run("show", key.id).stdout


@pytest.mark.parametrize(
    ("answer", "arguments", "status"),
    [("y\n", [], "revoked"), ("n\n", [], "active"), ("\n", [], "active"), (None, ["--yes"], "revoked")],
)
def test_a_terminal_is_asked_before_a_key_is_revoked(
    place: Place, key: IssuedKey, answer: str | None, arguments: list[str], status: str
) -> None:
    ours, theirs = pty.openpty()
    line = forks.command("keys", "revoke", "-c", str(place.keys.config), *arguments, key.id)
    environ = clean_environ(SIDECAR_STORE=place.keys.url)
    passed = [forks.server().fileno()]
    process = subprocess.Popen(line, stdin=theirs, stdout=theirs, stderr=theirs, env=environ, pass_fds=passed)
    os.close(theirs)
    if answer is not None:
        shown = ""
        while not shown.endswith("[y/N]: "):
            shown += os.read(ours, 1000).decode()
        assert f"Revoke {key.id} (BI export) of globex; never used? It cannot be undone" in shown
        os.write(ours, answer.encode())
    assert process.wait(60) == (0 if status == "revoked" else 1)
    os.close(ours)
    assert place.keys.told("show", key.id)["status"] == status
