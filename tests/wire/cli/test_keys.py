import json
import os
import pty
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sidecar.cli.main import main
from sidecar.core.apikey import KeyFormat
from tests.harness import forks

CONFIG = """
listen: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite://{store}
keys:
  environments: {{live: hv_live_, test: hv_test_}}
scopes: {{"streams:read": Read, "streams:write": Write}}
quotas: {{general: {{limit: 10, per: hour}}}}
plans: {{pro: {{general: 100}}}}
routes:
  - GET /v1/**: {{scopes: ["streams:read"]}}
"""
Run = Callable[..., Result]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "keys.db"


@pytest.fixture
def config(tmp_path: Path, store: Path) -> Path:
    path = tmp_path / "sidecar.yaml"
    path.write_text(CONFIG.format(store=store))
    return path


@pytest.fixture
def run(config: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`sidecar keys VERB -c FILE …`, with an environment that configures nothing."""
    for name in [name for name in os.environ if name.startswith("SIDECAR_")]:
        monkeypatch.delenv(name)

    def invoke(verb: str, *arguments: str, stdin: str | None = None, named: bool = True) -> Result:
        line = [verb, *(["-c", str(config)] if named else []), *arguments]
        result = CliRunner().invoke(main, ["keys", *line], input=stdin)
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result

    return invoke


def test_issue_prints_the_plaintext_once_and_says_so(run: Run) -> None:
    result = run("issue", "--name", "CI", "--scope", "streams:read")
    assert result.exit_code == 0
    [text] = [line.strip() for line in result.stdout.splitlines() if line.startswith("    ")]
    assert KeyFormat().check(text, ["hv_live_"])
    assert result.stdout.count(text) == 1
    assert "shown only once" in result.stdout
    assert "cannot be recovered" in result.stdout
    assert text not in run("list", "--json").stdout + run("list").stdout


def test_issue_prints_everything_as_json(run: Run) -> None:
    options = "--name CI --scope streams:read --scope streams:write --tenant acme --environment test --plan pro"
    more = "--expires 2100-01-31 --metadata user_id=7 --metadata note=a=b --quota general=5 --json"
    told = json.loads(run("issue", *options.split(), *more.split()).stdout)
    assert KeyFormat().check(told["key"], ["hv_test_"])
    expected = {
        "prefix": told["key"][:12],
        "name": "CI",
        "scopes": ["streams:read", "streams:write"],
        "tenant": "acme",
        "environment": "test",
        "plan": "pro",
        "expires_at": "2100-01-31T00:00:00Z",
        "metadata": {"user_id": "7", "note": "a=b"},
        "quotas": {"general": 5},
        "status": "active",
    }
    assert {name: told[name] for name in expected} == expected
    assert told["id"].startswith("key_")
    assert told["created_at"].endswith("Z")
    assert "digest" not in told
    assert json.loads(run("issue", "--name", "plain", "--json").stdout)["expires_at"] is None


def test_issue_makes_the_store_for_its_owner_only(run: Run, store: Path) -> None:
    run("issue", "--name", "CI")
    assert stat.S_IMODE(store.stat().st_mode) == 0o600


def test_only_issue_makes_a_store(run: Run, store: Path) -> None:
    for verb in (["list"], ["show", "x"], ["revoke", "x"]):
        result = run(*verb)
        assert result.exit_code == 1
        assert "sidecar keys issue" in result.stderr
    assert not store.exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--scope", "stream:read"], "did you mean 'streams:read'"),
        (["--environment", "lve"], "did you mean 'live'"),
        (["--plan", "prp"], "did you mean 'pro'"),
        (["--expires", "yesterday"], "such as 90d"),
        (["--expires", "2001-01-31"], "not in the future"),
        (["--expires", "2001-31-31"], "such as 2027-01-31"),
        (["--metadata", "novalue"], "has no ="),
        (["--metadata", "a=1", "--metadata", "a=2"], "given twice"),
        (["--quota", "general=lots"], "whole number"),
        (["--quota", "other=1"], "unknown quota 'other'"),
        (["--tenant", "a b"], "a tenant has"),
    ],
)
def test_issue_refuses_what_does_not_fit_and_makes_nothing(
    run: Run, store: Path, arguments: list[str], told: str
) -> None:
    result = run("issue", "--name", "CI", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert told in result.stderr
    assert not store.exists()


HEADINGS = ["ID", "PREFIX", "NAME", "TENANT", "ENV", "SCOPES", "STATUS", "USED", "ENDS"]


def test_list_cuts_nothing_in_a_pipe(run: Run) -> None:
    long = ["--name", "n" * 99, "--tenant", "t" * 99, "--scope", "streams:read", "--scope", "streams:write"]
    told = json.loads(run("issue", *long, "--expires", "90d", "--json").stdout)
    run("issue", "--name", "short")
    heading, *lines = run("list").stdout.splitlines()
    assert heading.split() == HEADINGS
    [line] = [line for line in lines if told["id"] in line]
    expected = [told["id"], told["prefix"] + "…", "n" * 99, "t" * 99, "live", "streams:read,streams:write"]
    assert line.split() == [*expected, "active", "never", "89d"]


@pytest.mark.parametrize("width", [100, 120])
def test_list_fits_the_terminal(run: Run, config: Path, width: int) -> None:
    run("issue", "--name", "n" * 99, "--tenant", "t" * 99)
    ours, theirs = pty.openpty()
    line, passed = forks.command("keys", "list", "-c", str(config)), [forks.server().fileno()]
    process = subprocess.Popen(line, stdout=theirs, env={**os.environ, "COLUMNS": str(width)}, pass_fds=passed)
    shown = b""
    while shown.count(b"\n") < 2:
        shown += os.read(ours, 10_000)
    assert process.wait(60) == 0
    os.close(ours)
    os.close(theirs)
    assert [len(line) <= width for line in shown.decode().splitlines()] == [True, True]
    assert "nnnnnnnn…" in shown.decode()


def test_list_shows_when_a_replaced_key_ends(run: Run) -> None:
    old = json.loads(run("issue", "--name", "CI", "--expires", "90d", "--json").stdout)["id"]
    run("rotate", old, "--overlap", "48h")
    [line] = [line for line in run("list", "--columns", "id,status,ends").stdout.splitlines() if old in line]
    assert line.split() == [old, "retiring", "1d"]
    assert [line.split()[0] for line in run("list", "--status", "retiring").stdout.splitlines()[1:]] == [old]
    assert json.loads(run("show", old, "--json").stdout)["status"] == "active"


def test_list_sorts_limits_and_chooses_columns(run: Run) -> None:
    for name, expires in (("b", "3d"), ("A", "never"), ("c", "1d")):
        run("issue", "--name", name, *([] if expires == "never" else ["--expires", expires]))

    def names(*options: str) -> list[str]:
        lines = [line.split() for line in run("list", "--columns", "name", *options).stdout.splitlines()]
        assert lines[0] == ["NAME"]
        assert [key["name"] for key in json.loads(run("list", "--json", *options).stdout)] == [
            one[0] for one in lines[1:]
        ]
        return [line[0] for line in lines[1:]]

    assert names() == ["c", "A", "b"]
    assert names("--limit", "2") == ["c", "A"]
    assert names("--sort", "name") == ["A", "b", "c"]
    assert names("--sort", "ends", "--limit", "2") == ["c", "b"]
    wrong = run("list", "--columns", "name,expires")
    assert wrong.exit_code == 2
    assert "there is no column 'expires'; there are id, prefix, name" in wrong.stderr


def test_list_filters_by_tenant_environment_and_status(run: Run, store: Path) -> None:
    made = {
        name: json.loads(run("issue", "--name", name, *options, "--json").stdout)["id"]
        for name, options in {
            "a": ["--tenant", "acme"],
            "b": ["--tenant", "acme", "--environment", "test"],
            "c": ["--tenant", "other", "--expires", "1d"],
        }.items()
    }
    run("disable", made["b"])
    with closing(sqlite3.connect(store)) as connection, connection:
        connection.execute("UPDATE api_key SET expires_at = 1 WHERE id = ?", (made["c"],))

    def names(*filters: str) -> set[str]:
        return {key["name"] for key in json.loads(run("list", *filters, "--json").stdout)}

    assert names() == {"a", "b", "c"}
    assert names("--tenant", "acme") == {"a", "b"}
    assert names("--tenant", "acme", "--environment", "test") == {"b"}
    assert names("--status", "active") == {"a"}
    assert names("--status", "disabled") == {"b"}
    assert names("--status", "expired") == {"c"}
    assert run("list", "--tenant", "").stdout.startswith("No key in ")
    assert names("--status", "revoked") == set()
    assert run("list", "--tenant", "nobody").stdout.startswith("No key")
    assert run("list", "--tenant", "\x1b[2J").exit_code == 2


def test_an_empty_store_says_how_to_issue_the_first_key(run: Run, store: Path) -> None:
    run("issue", "--name", "CI")
    with closing(sqlite3.connect(store)) as connection, connection:
        connection.execute("DELETE FROM api_key")
    assert "sidecar keys issue -c FILE --name NAME" in run("list").stdout
    assert json.loads(run("list", "--json").stdout) == []


def test_a_key_is_named_by_id_prefix_or_plaintext_on_stdin(run: Run) -> None:
    told = json.loads(run("issue", "--name", "CI", "--json").stdout)
    for name, stdin in ((told["id"], None), (told["prefix"], None), ("-", told["key"]), ("-", told["key"] + "\n")):
        shown = run("show", name, "--json", stdin=stdin)
        assert json.loads(shown.stdout)["id"] == told["id"]
        assert told["key"] not in shown.output
    assert "CI" in run("show", told["id"]).stdout


def test_a_plaintext_as_an_argument_is_refused_without_being_repeated(run: Run) -> None:
    text = json.loads(run("issue", "--name", "CI", "--json").stdout)["key"]
    for name in (text, text[:-1] + ("0" if text[-1] != "0" else "1"), text + " "):
        result = run("show", name)
        assert result.exit_code == 2
        assert "stdin" in result.stderr
        assert text[12:-1] not in result.output


@pytest.mark.parametrize("stdin", ["", "nonsense", "hv_live_" + "0" * 43, "\udce9\n", "x\x00y"])
def test_an_unknown_key_is_one_line_that_says_where_to_look(run: Run, stdin: str) -> None:
    run("issue", "--name", "CI")
    result = run("revoke", "key_unknown")
    assert (result.exit_code, result.stderr) == (1, "Error: no key 'key_unknown'; see sidecar keys list\n")
    unknown = run("revoke", "-", stdin=stdin.encode("utf-8", "surrogateescape"))
    assert unknown.exit_code == 1
    assert "sidecar keys list" in unknown.stderr
    assert stdin == "" or stdin.strip() not in unknown.stderr


def test_a_key_is_disabled_enabled_and_revoked_for_good(run: Run) -> None:
    told = json.loads(run("issue", "--name", "CI", "--json").stdout)
    for verb, status in (("disable", "disabled"), ("disable", "disabled"), ("enable", "active"), ("revoke", "revoked")):
        assert json.loads(run(verb, told["id"], "--json").stdout)["status"] == status
    result = run("enable", told["id"])
    assert result.exit_code == 1
    assert "final" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_the_store_option_makes_the_configuration_needless_but_for_issue(run: Run, store: Path) -> None:
    run("issue", "--name", "CI")
    url = f"sqlite://{store}"
    assert "CI" in run("list", "--store", url, named=False).stdout
    for result in (run("issue", "--name", "x", "--store", url, named=False), run("list", named=False)):
        assert result.exit_code == 2
        assert "SIDECAR_CONFIG" in result.stderr


def test_the_store_option_wins_over_the_configuration(run: Run, tmp_path: Path, store: Path) -> None:
    url = f"sqlite://{tmp_path / 'other.db'}"
    run("issue", "--name", "elsewhere", "--store", url)
    assert not store.exists()
    assert "elsewhere" in run("list", "--store", url).stdout


@pytest.mark.parametrize("url", ["mysql://x", "sqlite://relative/path", "sqlite:", "keys.db"])
def test_a_store_of_another_kind_is_refused(run: Run, url: str) -> None:
    result = run("list", "--store", url, named=False)
    assert result.exit_code == 2
    assert "sqlite:///absolute/path" in result.stderr


def test_a_wrong_configuration_is_reported_in_one_line_per_problem(run: Run, config: Path) -> None:
    config.write_text(config.read_text() + "nonsense: 1\nmore: 2\n")
    result = run("issue", "--name", "CI")
    assert result.exit_code == 2
    assert result.stderr.count(f"{config}:") == 2


def test_a_pepper_that_is_missing_or_unfit_stops_issue(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SIDECAR_PEPPER", "a pepper that is long")
    text = json.loads(run("issue", "--name", "CI", "--json").stdout)["key"]
    assert run("show", "-", stdin=text).exit_code == 0
    monkeypatch.setenv("SIDECAR_PEPPER", "short")
    unfit = run("issue", "--name", "CI")
    assert (unfit.exit_code, "short" in unfit.stderr) == (2, False)
    monkeypatch.setenv("SIDECAR_PEPPER", "'a pepper that is long'")
    quoted = run("issue", "--name", "CI")
    assert (quoted.exit_code, "has quotes around it" in quoted.stderr, "long" in quoted.stderr) == (2, True, False)
    monkeypatch.delenv("SIDECAR_PEPPER")
    (tmp_path / "pepper").write_text("a pepper that is long\n")
    monkeypatch.setenv("SIDECAR_PEPPER_FILE", str(tmp_path / "pepper"))
    assert run("show", "-", stdin=text).exit_code == 0
    monkeypatch.delenv("SIDECAR_PEPPER_FILE")
    missing = run("issue", "--name", "CI")
    assert missing.exit_code == 1
    assert "SIDECAR_PEPPER_PREVIOUS" in missing.stderr


@pytest.mark.parametrize("verb", ["issue", "list", "show", "disable", "enable", "revoke"])
def test_help_shows_an_example(verb: str) -> None:
    shown = CliRunner().invoke(main, ["keys", verb, "--help"]).stdout
    assert f"sidecar keys {verb} -c sidecar.yaml" in shown.split("Example:")[1]


def test_the_command_ends_by_itself_and_leaves_no_traceback(run: Run, config: Path) -> None:
    run("issue", "--name", "CI")
    code = "from sidecar.cli.keys import keys_group; keys_group()"
    nowhere = ["list", "--store", "sqlite:///nowhere/keys.db"]
    for arguments, status in ((["list"], 0), (["show", "nobody"], 1), (nowhere, 1)):
        line = [sys.executable, "-c", code, arguments[0], "-c", str(config), *arguments[1:]]
        done = subprocess.run(line, capture_output=True, text=True, timeout=100, check=False)
        assert (done.returncode, "Traceback" in done.stderr) == (status, False)
