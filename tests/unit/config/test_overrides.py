from hashlib import sha256
from pathlib import Path

import pytest

from sidecar.config.fields import Address
from sidecar.config.load import overrides_from
from tests.unit.config.conftest import MINIMAL, Complaining, Loading


def test_a_variable_is_replaced_and_two_dollars_are_one(loading: Loading) -> None:
    config = loading(MINIMAL + "realm: ${NAME}-${OTHER:-other}-$$-$5\n", environ={"NAME": "api"})
    assert config.realm == "api-other-$-$5"


def test_an_empty_variable_takes_its_default_and_what_it_holds_is_not_replaced_again(loading: Loading) -> None:
    config = loading(MINIMAL + "realm: ${A:-x}${B}\n", environ={"A": "", "B": "${A}"})
    assert config.realm == "x${A}"


def test_a_secret_may_be_in_a_file_named_by_a_variable(loading: Loading, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("of the file\n")
    named = {"NAME_FILE": str(tmp_path / "secret")}
    assert loading(MINIMAL + "realm: ${NAME}\n", environ=named).realm == "of the file"
    assert loading(MINIMAL + "realm: ${NAME}\n", environ={**named, "NAME": "itself"}).realm == "itself"
    assert loading(MINIMAL + "realm: ${NAME:-default}\n", environ={"NAME_FILE": ""}).realm == "default"


def test_the_token_of_the_environment_may_be_in_a_file(loading: Loading, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("0123456789abcdef0123\r\n")
    admin = loading(MINIMAL, environ={"SIDECAR_ADMIN_TOKEN_FILE": str(tmp_path / "token")}).admin
    assert admin is not None
    assert admin.tokens[0].digest == sha256(b"0123456789abcdef0123").digest()


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        (
            {"SIDECAR_ADMIN_TOKEN_FILE": "/nowhere"},
            "the file that SIDECAR_ADMIN_TOKEN_FILE names cannot be read: No such",
        ),
        ({"SIDECAR_ADMIN_TOKEN_FILE": "/dev/null"}, "the file that SIDECAR_ADMIN_TOKEN_FILE names is empty"),
        ({"SIDECAR_ADMIN_TOKEN_FILE": "/dev/zero"}, "the file that SIDECAR_ADMIN_TOKEN_FILE names is larger than any"),
        ({"SIDECAR_ADMIN_TOKEN_FILE": "/x", "SIDECAR_ADMIN_TOKEN": "y"}, "SIDECAR_ADMIN_TOKEN_FILE are both set"),
        ({"SIDECAR_ADMIN_TOKEN": '"0123456789abcdef0123"'}, "has quotes around it: set it without them"),
        ({"SIDECAR_ADMIN_TOKEN": " 0123456789abcdef0123"}, "has spaces around it: set it without them"),
    ],
)
def test_a_secret_that_cannot_be_right_is_blamed_on_its_variable(
    problems: Complaining, environ: dict[str, str], told: str
) -> None:
    (line,) = problems(MINIMAL, environ=environ)
    assert line.startswith("SIDECAR_ADMIN_TOKEN: ")
    assert told in line
    assert "0123456789" not in line


def test_a_number_and_a_boolean_can_come_from_a_variable(loading: Loading) -> None:
    text = MINIMAL + 'keys: {cache_size: "${SIZE}"}\nrate_limit_headers:\n  x: ${SHOW:-false}\n'
    config = loading(text, environ={"SIZE": "77"})
    assert config.keys.cache_size == 77
    assert config.rate_limit_headers.x is False


def test_a_variable_in_a_body_stays_text(loading: Loading) -> None:
    config = loading(MINIMAL + "errors: {default: {body: {a: '${A}', b: 7, c: true}}}\n", environ={"A": "5"})
    assert config.default_error is not None
    assert config.default_error.body == {"a": "5", "b": 7, "c": True}


def test_an_unset_variable_is_reported(problems: Complaining) -> None:
    assert problems(MINIMAL + "realm: ${NOPE}\n") == [
        "4:8: realm: the variable NOPE is not set (write ${NOPE:-default} to allow that)"
    ]


@pytest.mark.parametrize("text", ["${}", "${a b}", "${A", "${key.id}"])
def test_an_incomplete_variable_is_reported(problems: Complaining, text: str) -> None:
    (line,) = problems(MINIMAL + f'realm: "{text}"\n', environ={"A": "x"})
    assert "4:8: realm: '${' does not start a variable" in line


def test_an_invalid_value_from_a_variable_is_reported_at_its_location_without_the_value(problems: Complaining) -> None:
    (line,) = problems(MINIMAL + 'keys: {cache_size: "${SIZE}"}\n', environ={"SIZE": "hunter2"})
    assert line == "4:20: keys.cache_size: must be a whole number in plain decimal digits (the value is that of SIZE)"


def test_keys_are_not_replaced(problems: Complaining) -> None:
    (line,) = problems(MINIMAL + '"${NAME}": 1\n', environ={"NAME": "realm"})
    assert "${NAME}: unknown key" in line


def test_overrides_win_and_an_upstream_keeps_its_settings(loading: Loading) -> None:
    text = MINIMAL.replace("http://127.0.0.1:8000", "{url: 'http://h', connect_timeout: 3s}")
    overrides = {"listen": "[::1]:81", "ops": "h:9", "upstream": "https://u:8443", "store": "sqlite:///o.db"}
    config = loading(text, overrides=overrides)
    assert config.listen == (Address(host="::1", port=81),)
    assert config.ops == (Address(host="h", port=9),)
    assert config.upstream.address == Address(host="u", port=8443)
    assert config.upstream.connect_timeout == 3.0
    assert config.store == "sqlite:///o.db"


def test_an_override_replaces_missing_or_invalid_values_of_the_file(loading: Loading) -> None:
    overrides = {"upstream": "http://h", "store": "sqlite:///o.db", "listen": "h:1"}
    assert loading("store: postgresql://h/db\n", overrides=overrides).store == "sqlite:///o.db"


def test_an_invalid_override_is_reported_under_its_own_name(problems: Complaining) -> None:
    overrides = {**overrides_from({"SIDECAR_OPS": "nope", "SIDECAR_STORE": ""}), "listen": "nope", "upstream": "h:1"}
    lines = problems(MINIMAL.replace("http://127.0.0.1:8000", "{url: 'http://h'}"), overrides=overrides)
    assert {line.split(" ")[0] for line in lines} == {"SIDECAR_OPS:", "--listen:", "--upstream:"}
    assert lines[0] == "--listen: must be host:port, [ipv6]:port or unix:/path"


def test_an_override_is_taken_literally(loading: Loading) -> None:
    config = loading(MINIMAL, overrides={"store": "sqlite:///a$$b.db"}, environ={})
    assert config.store == "sqlite:///a$$b.db"


def test_only_variables_that_are_set_override() -> None:
    found = overrides_from({"SIDECAR_LISTEN": "h:1", "SIDECAR_ADMIN": "", "SIDECAR_PEPPER": "x"})
    assert found == {"listen": "h:1"}


@pytest.mark.parametrize("between", [",", ", "])
def test_an_override_lists_addresses_with_commas_between(loading: Loading, between: str) -> None:
    config = loading(MINIMAL, overrides={"listen": between.join(["[::1]:81", "unix:/run/a,b.sock", "h:82"])})
    assert config.listen == (Address(host="::1", port=81), Address(path="/run/a,b.sock"), Address(host="h", port=82))


def test_a_wrong_address_among_several_of_an_override_is_named(problems: Complaining) -> None:
    (line,) = problems(MINIMAL, overrides={"ops": "h:1,h:2,h:1"})
    assert line == "--ops: is in the list already"


MAPPED = MINIMAL.replace("store: sqlite:///tmp/keys.db", "store: {url: sqlite:///tmp/keys.db, grace: 30s}")


def test_the_grace_applies_wherever_the_store_is_configured(loading: Loading) -> None:
    assert MAPPED != MINIMAL
    assert (loading(MINIMAL).store, loading(MINIMAL).store_grace) == ("sqlite:///tmp/keys.db", 0)
    assert (loading(MAPPED).store, loading(MAPPED).store_grace) == ("sqlite:///tmp/keys.db", 30)
    named = loading(MAPPED, overrides={"store": "sqlite:///other.db"})
    assert (named.store, named.store_grace) == ("sqlite:///other.db", 30)


@pytest.mark.parametrize("grace", ["500ms", "61m"])
def test_the_grace_has_a_minimum_and_a_maximum(problems: Complaining, grace: str) -> None:
    (line,) = problems(MAPPED.replace("30s", grace))
    assert "store.grace: must be 0s, or between 1s and 1h: a revoked key may go on for as long" in line


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("keys: {default_plan: '${WORD}'}\n", "unknown plan '${WORD}'"),
        ("keys: {default_scopes: ['${WORD}']}\n", "unknown scope '${WORD}'"),
        ("keys: {default_scopes: ['x-${WORD}-y']}\n", "unknown scope '${WORD}'"),
        ("upstreams: {other: '${WORD}'}\n", "(did you mean '${WORD}'?) (the value is that of WORD)"),
        ("trusted_proxies: ['${NETWORK}']\n", "names a host inside a network"),
    ],
)
def test_no_message_repeats_the_value_of_a_variable(problems: Complaining, text: str, told: str) -> None:
    environ = {"WORD": "s3cret.of.somebody", "NETWORK": "10.1.2.3/8"}
    (line,) = problems(MINIMAL + text, environ=environ)
    assert told in line
    assert not [value for value in environ.values() if value in line]


def test_our_own_words_stay_though_a_variable_holds_them(problems: Complaining) -> None:
    (line,) = problems(MINIMAL + "ops: '${WORD}'\n", environ={"WORD": "must"})
    assert ": ops: must be " in line
