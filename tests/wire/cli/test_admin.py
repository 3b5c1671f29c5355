"""`sidecar admin token`."""

import json
from pathlib import Path

import pytest

from tests.harness.keys import run_cli

CONFIG = """
listen: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:unused.db
keys: {environments: {live: acme_}}
routes: [GET /v1/**: {}]
"""


def test_the_printed_entry_is_valid_configuration(tmp_path: Path) -> None:
    told = run_cli("admin", "token", "--name", "ops").stdout
    config = tmp_path / "sidecar.yaml"
    config.write_text(CONFIG + told[told.index("admin:\n") :])
    checked = run_cli("check", str(config))
    assert (checked.exit_code, checked.stderr) == (0, "")


def test_a_token_reads_only_unless_it_is_made_to_write() -> None:
    told = json.loads(run_cli("admin", "token", "--name", "ops", "--json").stdout)
    assert told["rights"] == "read"
    assert told["token"].startswith("sidecar_admin_")
    assert "rights: read" in told["entry"]
    assert "rights: write" in run_cli("admin", "token", "--name", "ops", "--rights", "write").stdout


@pytest.mark.parametrize("tenant", ["", "*"])
def test_a_token_of_every_tenant_is_not_made_by_an_empty_tenant_or_a_star(tenant: str) -> None:
    told = run_cli("admin", "token", "--name", "portal", "--tenant", tenant)
    assert (told.exit_code, told.stdout) == (2, "")
    assert "tenant" in told.stderr


@pytest.mark.parametrize("name", ["", "a b", "-x"])
def test_an_invalid_name_is_explained(name: str) -> None:
    told = run_cli("admin", "token", f"--name={name}")
    assert (told.exit_code, told.stdout) == (2, "")
    assert told.stderr.startswith("Error: name must begin with a letter or digit")
