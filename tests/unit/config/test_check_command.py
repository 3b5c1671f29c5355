import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from sidecar.cli.check import check_command, schema_command
from sidecar.cli.main import main
from sidecar.config.load import NAMES
from tests.unit.config.conftest import MINIMAL
from tests.unit.config.test_examples import EXAMPLE


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    for name in NAMES:
        monkeypatch.delenv(f"SIDECAR_{name.upper()}", raising=False)
    return CliRunner()


def test_check_of_a_good_file_is_one_line(runner: CliRunner) -> None:
    result = runner.invoke(check_command, [str(EXAMPLE)])
    assert result.exit_code == 0
    assert result.stdout == f"{EXAMPLE}: ok (10 routes, 3 scopes, 4 quotas, 2 plans)\n"
    assert result.stderr == ""


def test_check_of_a_wrong_file_prints_every_problem_and_exits_2(runner: CliRunner, tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(MINIMAL + "lisen: x\npaths: 5\n")
    result = runner.invoke(check_command, [str(file)])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        f"{file}:4:1: lisen: unknown key (did you mean 'listen'?)",
        f"{file}:5:8: paths: must be a mapping, not a single value",
    ]


def test_check_finds_the_file_like_every_command(
    runner: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    nothing = runner.invoke(main, ["check"])
    assert (nothing.exit_code, "SIDECAR_CONFIG" in nothing.stderr) == (2, True)
    for name in ("sidecar.yaml", "other.yaml"):
        (tmp_path / name).write_text(MINIMAL)
    assert runner.invoke(main, ["check"]).stdout.startswith("sidecar.yaml: ok")
    assert runner.invoke(main, ["check", "-c", "other.yaml"]).stdout.startswith("other.yaml: ok")
    told = runner.invoke(main, ["check"], env={"SIDECAR_CONFIG": "other.yaml"})
    assert told.stdout.startswith("other.yaml: ok")


def test_check_prints_problems_as_json(runner: CliRunner, tmp_path: Path) -> None:
    file = tmp_path / "sidecar.yaml"
    file.write_text("listen: nonsense\n")
    told = runner.invoke(main, ["check", "--json", str(file)])
    found = json.loads(told.stdout)
    assert (told.exit_code, told.stderr, found["ok"]) == (2, "", False)
    assert {(one["line"], one["path"]) for one in found["problems"]} >= {(1, "listen")}


def test_a_mistyped_command_suggests_the_nearest_one(runner: CliRunner) -> None:
    assert "Did you mean 'check'?" in runner.invoke(main, ["chek"]).stderr
    assert "Did you mean 'list'?" in runner.invoke(main, ["keys", "lst"]).stderr


@pytest.mark.parametrize("words", [[], ["keys"], ["keys", "list"], ["serve"]], ids=" ".join)
def test_h_prints_the_help(runner: CliRunner, words: list[str]) -> None:
    assert runner.invoke(main, [*words, "-h"]).stdout == runner.invoke(main, [*words, "--help"]).stdout != ""


def test_check_of_a_file_that_is_not_there_exits_2(runner: CliRunner, tmp_path: Path) -> None:
    result = runner.invoke(check_command, [str(tmp_path / "none.yaml")])
    assert result.exit_code == 2
    assert result.stderr == f"{tmp_path}/none.yaml: cannot be read: No such file or directory\n"


def test_check_reads_the_variables_that_serve_reads(runner: CliRunner, tmp_path: Path) -> None:
    file = tmp_path / "sidecar.yaml"
    file.write_text("realm: ${REALM}\n")
    variables = {"SIDECAR_LISTEN": "h:1", "SIDECAR_UPSTREAM": "nope", "SIDECAR_STORE": "sqlite:///k", "REALM": "x"}
    result = runner.invoke(check_command, [str(file)], env=variables)
    assert result.stderr.startswith("SIDECAR_UPSTREAM: has no scheme")
    assert len(result.stderr.splitlines()) == 1


def test_schema_prints_json(runner: CliRunner) -> None:
    result = runner.invoke(schema_command)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize("command", [check_command, schema_command], ids=lambda command: command.name)
def test_help_shows_an_example(runner: CliRunner, command: object) -> None:
    result = runner.invoke(command, ["--help"])  # type: ignore[arg-type]  # both are commands
    assert f"Example:\n    sidecar {command.name}" in result.stdout  # type: ignore[attr-defined]


def test_warnings_are_reported_and_fail_only_a_strict_check(runner: CliRunner, tmp_path: Path) -> None:
    file = tmp_path / "odd.yaml"
    file.write_text(MINIMAL + "routes:\n- GET /v1/:id: {}\n")
    warning = f"{file}:5:3: routes[0]: warning: ':id' matches these characters only: write {{id}} for a parameter\n"
    for options, status, told in (([], 0, "ok"), (["--strict"], 1, "valid, but --strict allows no warnings")):
        result = runner.invoke(check_command, [*options, str(file)])
        assert (result.exit_code, result.stderr) == (status, warning)
        assert result.stdout == f"{file}: {told} (1 route, 0 scopes, 0 quotas, 0 plans)\n"


def test_an_admin_section_without_a_token_is_a_note_which_strict_allows(runner: CliRunner, tmp_path: Path) -> None:
    file = tmp_path / "sidecar.yaml"
    file.write_text(MINIMAL + "admin: 127.0.0.1:9091\n")
    noted = runner.invoke(check_command, ["--strict", str(file)])
    assert noted.exit_code == 0
    assert noted.stderr.startswith(f"{file}:4:1: admin: note: no listener is opened without an admin token")
    [note] = json.loads(runner.invoke(check_command, ["--json", str(file)]).stdout)["notes"]
    assert (note["line"], note["path"]) == (4, "admin")


def test_strict_accepts_a_file_without_warnings(runner: CliRunner) -> None:
    assert runner.invoke(check_command, ["--strict", str(EXAMPLE)]).exit_code == 0


def test_two_files_and_an_empty_name_are_no_file_to_check(tmp_path: Path) -> None:
    good = tmp_path / "good.yaml"
    good.write_text(MINIMAL, encoding="utf-8")
    runner = CliRunner()
    both = runner.invoke(main, ["check", "-c", str(tmp_path / "other.yaml"), str(good)])
    assert (both.exit_code, both.stderr) == (2, "Error: -c and FILE name two files: check one at a time\n")
    empty = runner.invoke(main, ["check", ""], env={"SIDECAR_CONFIG": str(good)})
    assert (empty.exit_code, empty.stderr) == (2, "Error: FILE is empty: name a file, or leave it out\n")
    for words in (["-c", str(good), str(good)], ["-c", str(good)]):
        assert runner.invoke(main, ["check", *words]).exit_code == 0
    assert runner.invoke(main, ["check", str(good)], env={"SIDECAR_CONFIG": "other.yaml"}).exit_code == 0
