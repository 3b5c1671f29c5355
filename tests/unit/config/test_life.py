"""The sections `reload` and `drain`, and what of a new file can take effect without a restart."""

from dataclasses import fields, replace

import pytest

from sidecar.config.build.config import Config
from sidecar.config.document import Drain, Reload
from sidecar.config.reload import without_restart
from tests.unit.config.conftest import MINIMAL, Complaining, Loading

TLS = "tls: {certificate: /a.crt, key: /a.key}\n"


def test_reload_and_drain_are_read(loading: Loading) -> None:
    config = loading(MINIMAL + "reload: {watch: false, interval: 1m}\ndrain: {delay: 0s, timeout: 500ms}\n")
    assert config.reload == Reload(watch=False, interval=60)
    assert config.drain == Drain(delay=0, timeout=0.5)


@pytest.mark.parametrize(
    ("section", "path"),
    [
        ("reload: {interval: 0s}", "reload.interval"),
        ("reload: {watch: sometimes}", "reload.watch"),
        ("drain: {delay: 5}", "drain.delay"),
        ("drain: {wait: 5s}", "drain.wait"),
    ],
)
def test_their_errors_are_reported(problems: Complaining, section: str, path: str) -> None:
    [problem] = problems(MINIMAL + section + "\n")
    assert problem.startswith("4:")
    assert path in problem


@pytest.mark.parametrize(
    ("option", "change"),
    [
        ("listen", "listen: 127.0.0.1:9\n"),
        ("store", "store: sqlite:///other.db\n"),
        ("ops", "ops: 127.0.0.1:9\n"),
        ("access_log", "access_log: off\n"),
        ("tls", TLS),
        ("drain", "drain: {socket: /run/drain.sock}\n"),
    ],
)
def test_what_is_bound_or_opened_once_is_kept_and_named(loading: Loading, option: str, change: str) -> None:
    running = loading(MINIMAL)
    lines = [line for line in MINIMAL.splitlines(keepends=True) if not line.startswith(f"{option}:")]
    wanted = loading("".join(lines) + change + "realm: new\n")
    config, kept = without_restart(running, wanted)
    assert kept == (option,)
    assert getattr(config, option) == getattr(running, option)
    assert config.realm == "new"


@pytest.mark.parametrize(
    ("option", "change"),
    [
        ("cors", "cors: {origins: [https://app.test]}\n"),
        ("colon", "paths: {colon: plain}\n"),
        ("method_not_allowed", "unmatched: {method_not_allowed: true}\n"),
    ],
)
def test_what_affects_decisions_changes_without_a_restart(loading: Loading, option: str, change: str) -> None:
    running, wanted = loading(MINIMAL), loading(MINIMAL + change)
    config, kept = without_restart(running, wanted)
    assert (kept, getattr(config, option)) == ((), getattr(wanted, option))
    assert getattr(config, option) != getattr(running, option)


def test_what_is_only_said_about_the_file_waits_for_no_restart(loading: Loading) -> None:
    running, wanted = loading(MINIMAL), loading(MINIMAL + "routes: [GET /a/:id: {}]\nadmin: 127.0.0.1:9091\n")
    config, kept = without_restart(running, wanted)
    assert kept == ()
    assert (config.warnings, config.notes, config.sha256) == (wanted.warnings, wanted.notes, wanted.sha256)
    assert config.warnings and config.notes


def test_an_unclassified_option_needs_a_restart(loading: Loading) -> None:
    """Of what is not said to be live, the running value stands, whatever is added later."""
    config = loading(MINIMAL)
    for field in fields(Config):
        changed = replace(config, **{field.name: Drain(socket="/other") if field.name == "drain" else "other"})
        merged, kept = without_restart(config, changed)
        written = field.name.replace("store_", "store.")
        assert kept == ((written,) if getattr(merged, field.name) != "other" else ()), field.name


def test_what_is_doubtful_in_a_new_file_is_no_option_that_waits_for_a_restart(loading: Loading) -> None:
    routes = "quotas: {unused: {limit: 1, per: hour}}\nroutes:\n- GET /a: {}\n"
    running, wanted = loading(MINIMAL + routes.partition("\n")[2]), loading(MINIMAL + routes)
    config, kept = without_restart(running, wanted)
    assert kept == ()
    assert config.warnings == wanted.warnings != running.warnings


def test_drain_is_reloaded_as_a_whole_unless_its_socket_needs_a_restart(loading: Loading) -> None:
    running = loading(MINIMAL + "drain: {delay: 5s, socket: /run/a.sock}\n")
    config, kept = without_restart(running, loading(MINIMAL + "drain: {delay: 7s, socket: /run/b.sock}\n"))
    assert (kept, config.drain) == (("drain",), running.drain)
    config, kept = without_restart(running, loading(MINIMAL + "drain: {delay: 7s, socket: /run/a.sock}\n"))
    assert (kept, config.drain.delay) == ((), 7)


def test_new_certificates_are_loaded_but_tls_is_not_turned_off(loading: Loading) -> None:
    running = loading(MINIMAL + TLS)
    config, kept = without_restart(running, loading(MINIMAL + TLS.replace("/a", "/b")))
    assert (kept, config.tls is not None and config.tls.key) == ((), "/b.key")
    assert without_restart(running, loading(MINIMAL))[1] == ("tls",)


def test_the_digest_is_that_of_the_file(loading: Loading) -> None:
    assert loading("# a\n" + MINIMAL).sha256 != loading(MINIMAL).sha256
    assert loading("# a\n" + MINIMAL).sha256 == loading("# a\n" + MINIMAL).sha256


def test_how_browsers_and_verbs_are_treated_needs_no_restart(loading: Loading) -> None:
    wanted = loading(MINIMAL + "cors: {origins: ['*']}\npaths: {colon: plain}\n")
    assert without_restart(loading(MINIMAL), wanted) == (wanted, ())
