"""The `admin` section: administrators and their rights."""

from hashlib import sha256
from pathlib import Path

import pytest

from sidecar.config.build.config import Config
from sidecar.config.errors import ConfigError
from sidecar.config.fields import Address
from sidecar.config.load import load

HASH = "sha256:" + sha256(b"a token").hexdigest()
BEFORE = """\
listen: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:///x
scopes: {read: Read}
plans: {free: {}}
"""


def loaded(tmp_path: Path, admin: str, overrides: dict[str, str] | None = None, **environ: str) -> Config:
    file = tmp_path / "sidecar.yaml"
    file.write_text(BEFORE + admin, encoding="utf-8")
    return load(str(file), overrides=overrides or {}, environ=environ)


def test_without_a_token_the_listener_stays_closed(tmp_path: Path) -> None:
    assert loaded(tmp_path, "").admin is None
    assert loaded(tmp_path, "admin: 127.0.0.1:9091\n").admin is None
    assert loaded(tmp_path, "admin: {tokens: []}\n", SIDECAR_ADMIN_TOKEN="").admin is None


def test_a_section_that_opens_no_listener_is_noted(tmp_path: Path) -> None:
    for admin in ("127.0.0.1:9091", "{hosts: [a.test]}", "{}"):
        config = loaded(tmp_path, f"admin: {admin}\n")
        [note] = map(str, config.notes)
        assert ": admin: note: no listener is opened without an admin token: set SIDECAR_ADMIN_TOKEN, or" in note
        assert (config.admin_lacks_token, config.warnings) == (True, ())
    with_token = loaded(tmp_path, "admin: 127.0.0.1:9091\n", SIDECAR_ADMIN_TOKEN="canary-canary-canary-canary")
    for meant in (with_token, loaded(tmp_path, "admin: {tokens: []}\n"), loaded(tmp_path, "")):
        assert meant.notes == ()
    assert not with_token.admin_lacks_token
    assert loaded(tmp_path, "admin: {tokens: []}\n").admin_lacks_token


def test_a_token_in_the_environment_may_do_everything_and_is_kept_as_its_hash(tmp_path: Path) -> None:
    text = "canary-canary-canary-canary"
    config = loaded(tmp_path, "", SIDECAR_ADMIN_TOKEN=text)
    assert config.admin is not None
    [token] = config.admin.tokens
    assert (token.name, token.rights, token.tenant, token.digest) == (
        "environment",
        "write",
        None,
        sha256(text.encode()).digest(),
    )
    assert config.admin.listen == (Address(host="127.0.0.1", port=9091),)
    assert text not in repr(config)


def test_an_entry_reads_only_unless_it_says_otherwise(tmp_path: Path) -> None:
    config = loaded(tmp_path, f"admin: {{tokens: [{{name: a, hash: '{HASH}'}}]}}\n")
    assert config.admin is not None
    assert config.admin.tokens[0].rights == "read"


def test_an_option_replaces_the_address_and_keeps_the_tokens(tmp_path: Path) -> None:
    admin = f"admin: {{listen: h:1, tokens: [{{name: a, hash: '{HASH}'}}]}}\n"
    config = loaded(tmp_path, admin, {"admin": "127.0.0.1:7"})
    assert config.admin is not None
    assert (config.admin.listen[0].port, len(config.admin.tokens)) == (7, 1)


WRONG = {
    "a token instead of its hash": ("name: a, hash: my-token", "admin.tokens[0].hash: must be sha256: and 64"),
    "an unknown scope": (f"name: a, hash: '{HASH}', tenant: t, scopes: [raed]", "scopes[0]: unknown scope 'raed'"),
    "an unknown plan": (f"name: a, hash: '{HASH}', tenant: t, plans: [fre]", "plans[0]: unknown plan 'fre' (did you"),
    "scopes of no tenant": (f"name: a, hash: '{HASH}', scopes: [read]", "scopes: is for a token of one tenant"),
    "every tenant": (f"name: a, hash: '{HASH}', tenant: '*'", "tenant: leave it out for a token that"),
    "the environment's name": (f"name: environment, hash: '{HASH}'", "name: is the name of the token in SIDECAR_ADMIN"),
    "a name of two words": (f"name: a b, hash: '{HASH}'", "name: must begin with a letter or digit"),
    "more than write": (f"name: a, hash: '{HASH}', rights: all", "rights: must be read or write"),
}


@pytest.mark.parametrize(("entry", "told"), WRONG.values(), ids=WRONG)
def test_an_invalid_entry_is_reported_at_its_location(tmp_path: Path, entry: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, f"admin: {{tokens: [{{{entry}}}]}}\n")
    assert told in str(caught.value)


def test_two_tokens_are_distinguished(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, f"admin: {{tokens: [{{name: a, hash: '{HASH}'}}, {{name: a, hash: '{HASH}'}}]}}\n")
    assert [problem.path for problem in caught.value.problems] == ["admin.tokens[1].name", "admin.tokens[1].hash"]


@pytest.mark.parametrize("text", ["short", "with a space in it, and long", "täglich-täglich-täglich"])
def test_a_guessable_token_in_the_environment_is_refused_and_not_shown(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, "", SIDECAR_ADMIN_TOKEN=text)
    assert "SIDECAR_ADMIN_TOKEN: must have at least 20" in str(caught.value)
    assert text not in str(caught.value)


@pytest.mark.parametrize("host", ["http://x", "x:80", "[::1]", "a b"])
def test_a_host_must_be_a_plain_name(tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigError, match="must be a host name or an address"):
        loaded(tmp_path, f"admin: {{hosts: ['{host}']}}\n")
