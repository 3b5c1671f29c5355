"""`mode: observe`: where it is allowed, and what is then listed as observed."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from sidecar.cli.check import check_command
from sidecar.config.build.modes import in_one_line, observing
from tests.unit.config.conftest import MINIMAL, Complaining, Loading

WHOLE = "key_" + "a" * 43
WRONG = {
    "mode: observ": "4:7: mode: must be enforce or observe (did you mean 'observe'?)",
    "mode: on": "mode: must be ",
    "mode: [observe]": "mode: must be ",
    "mod: observe": "4:1: mod: unknown key (did you mean 'mode'?)",
    "routes: [GET /x: {mode: audit}]": "routes[0].mode: must be enforce or observe",
    "routes: [GET /x: {deny: true, mode: observe}]": "a route that denies refuses every request: leave all other",
    "routes: [GET /x: {respond: {a: b}, mode: observe}]": "routes[0].mode: the sidecar itself responds (`respond`)",
    "scopes: {a: {mode: 1}}": "scopes.a.mode: must be ",
    "quotas: {a: {limit: 1, per: day, mode: off}}": "quotas.a.mode: must be ",
    f"keys: {{observe: [{WHOLE}]}}": "keys.observe[0]: is as long as a whole key: write its id or what is shown of it",
    "keys: {observe: key_1}": "keys.observe: must be a list",
    "identity: {would_deny: X-Request-Id}": "identity.would_deny: is the same header as another one here",
    "identity: {would_deny: Host}": "identity.would_deny: ",
    "identity: {would_deny: X-A, headers: {X-A: a}}": "identity.would_deny: is the same header as another one here",
    "identity: {would_deny: X-A, keep: [X-A]}\ntrusted_proxies: [10.0.0.1]": "is that of identity.would_deny",
    "identity: {would_deny: X-A}\nkeys: {pass_through: [{header: X-A}]}": "that keys.pass_through lets the client set",
}


@pytest.mark.parametrize("text", WRONG)
def test_an_invalid_mode_is_reported_at_its_location(problems: Complaining, text: str) -> None:
    told = problems(MINIMAL + text + "\n")
    assert any(WRONG[text] in line for line in told), told
    assert WHOLE not in str(told)


def test_nothing_is_observed_unless_something_says_so(loading: Loading) -> None:
    assert observing(loading(MINIMAL + "mode: enforce\nroutes: [GET /x: {mode: enforce}]\n")) == ()


def test_an_observed_refusal_is_reported_by_name(loading: Loading) -> None:
    config = loading(
        MINIMAL
        + """mode: observe
keys: {observe: [key_1]}
scopes: {a: {mode: observe}, b: {mode: enforce}}
quotas: {few: {limit: 1, per: day, mode: observe}}
routes:
  - GET /a: {scopes: [a, b], quotas: [few], mode: enforce}
  - path: /b
    mode: observe
    routes: [{GET: {}}, {GET /c: {mode: enforce}}]
unmatched: {mode: observe}
"""
    )
    found = observing(config)
    assert found == (
        "everything but 2 of 3 routes", "`GET /b`", "paths that no route names", "scope a", "quota few", "key key_1"
    )  # fmt: skip
    assert observing(config, keys=False) == found[:-1]
    assert in_one_line(found).endswith("quota few and 1 more")


def test_check_lists_what_is_observed(tmp_path: Path) -> None:
    file = tmp_path / "sidecar.yaml"
    file.write_text(MINIMAL + "mode: observe\n")
    told = CliRunner().invoke(check_command, [str(file)])
    assert told.exit_code == 0
    assert told.stderr == f"{file}: note: only observed, not enforced: everything\n"
    assert json.loads(CliRunner().invoke(check_command, ["--json", str(file)]).stdout)["observing"] == ["everything"]
