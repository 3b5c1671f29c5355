"""Lists of other products: their keys work immediately, and are stored nowhere."""

import json
from pathlib import Path

import pytest

from tests.harness.keys import Keys
from tests.wire.cli.test_key_files import config_with

KEY = "k3pzXq81LmVtR0sWcYb5NdHe"
LIST = json.dumps({"consumers": [{"username": "mobile", "keyauth_credentials": [{"key": KEY}]}]})


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    config = tmp_path / "sidecar.yaml"
    config.write_text(config_with('{prefix: ""}'))
    return Keys(config, tmp_path / "keys.db")


def test_plaintext_keys_in_a_list_need_an_option_and_are_then_found(keys: Keys, tmp_path: Path) -> None:
    refused = keys.run("import", "--format", "kong", "-", stdin=LIST)
    assert refused.exit_code == 1
    assert "--hash-plaintext" in refused.stderr
    taken = keys.run("import", "--format", "kong", "--hash-plaintext", "-", stdin=LIST)
    assert (taken.exit_code, taken.stderr) == (0, "")
    assert "mobile" in keys.run("show", "-", stdin=KEY).stdout
    assert KEY not in refused.stdout + refused.stderr + taken.stdout
    assert all(KEY.encode() not in file.read_bytes() for file in tmp_path.iterdir())


def test_what_an_import_cannot_take_over_is_said_on_stderr(keys: Keys) -> None:
    unkey = [{"keyId": str(at), "plaintext": KEY + str(at), "ratelimits": [{"limit": 5}]} for at in range(2)]
    for option in ("--dry-run", "--json"):
        taken = keys.run("import", "--format", "unkey", "--hash-plaintext", option, "-", stdin=json.dumps(unkey))
        assert taken.exit_code == 0
        assert taken.stderr == "stdin:1: note: 2 keys have `ratelimits`, which is not imported\n"


def test_a_disabled_key_stays_disabled(keys: Keys) -> None:
    rows = f"name;key;enabled;created_at\nA;{KEY};FALSE;1704067200\nB;{KEY}2;TRUE;1704067200000\n"
    assert keys.run("import", "--format", "csv", "--hash-plaintext", "-", stdin=rows).exit_code == 0
    assert {key["name"]: key["status"] for key in keys.told("list")} == {"A": "disabled", "B": "active"}


def test_a_list_without_keys_is_an_error(keys: Keys) -> None:
    result = keys.run("import", "--format", "apisix", "-", stdin='{"total": 0, "list": []}')
    assert result.exit_code == 1
    assert "holds no key" in result.stderr
