"""`sidecar store make`."""

from pathlib import Path

from tests.harness.keys import Keys, run_cli
from tests.harness.running import StartSidecar

CONFIG = """
listen: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:unused.db
keys: {environments: {live: acme_}}
routes: [GET /v1/**: {}]
"""


def test_an_empty_store_is_made_on_which_the_sidecar_starts(start_sidecar: StartSidecar, tmp_path: Path) -> None:
    store = tmp_path / "keys.db"
    made = run_cli("store", "make", "--store", f"sqlite://{store}")
    assert (made.exit_code, made.output) == (0, f"The key store sqlite://{store} exists.\n")
    assert store.stat().st_mode & 0o777 == 0o600
    assert start_sidecar(CONFIG, store=store).ask("GET", "/v1/x").status == 401


def test_an_existing_store_keeps_its_keys(tmp_path: Path) -> None:
    config = tmp_path / "sidecar.yaml"
    config.write_text(CONFIG)
    keys = Keys(config, tmp_path / "keys.db")
    issued = keys.issue()
    assert run_cli("store", "make", "-c", str(config), environ={"SIDECAR_STORE": keys.url}).exit_code == 0
    assert keys.told("show", issued.id)["id"] == issued.id


def test_a_store_that_cannot_be_created_is_one_line_of_error(tmp_path: Path) -> None:
    told = run_cli("store", "make", "--store", f"sqlite://{tmp_path}/nowhere/keys.db")
    assert told.exit_code == 1
    assert told.stderr.count("\n") == 1
    assert f"nowhere/keys.db cannot be made: there is no folder {tmp_path}/nowhere" in told.stderr


def test_without_a_store_or_a_configuration_it_says_what_to_name() -> None:
    told = run_cli("store", "make")
    assert told.exit_code == 2
    assert "-c FILE" in told.stderr
