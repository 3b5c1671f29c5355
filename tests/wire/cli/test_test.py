"""`sidecar test`: what it prints, what it writes, and how it exits."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.harness.keys import run_cli
from tests.harness.processes import ROOT, clean_environ
from tests.harness.running import EXAMPLES

CONFIG = """\
listen: 127.0.0.1:0
upstream: ${UPSTREAM}
store: sqlite:///nowhere
keys: {environments: {live: ex_}}
scopes: {read: Read}
routes:
  - GET /items/**: {scopes: [read]}
"""
TESTS = """\
config: sidecar.yaml
variables: {UPSTREAM: http://127.0.0.1:1}
keys:
  reader: {scopes: [read]}
  idle: {scopes: []}
cases:
  - GET /items as reader: allow
  - GET /items as idle: allow
  - {name: "<&> \\e[31m", request: POST /items as idle, expect: {status: 200}}
"""
EACH = sorted(EXAMPLES.glob("*.tests.yml"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "sidecar.yaml").write_text(CONFIG, encoding="utf-8")
    file = tmp_path / "policy.tests.yml"
    file.write_text(TESTS, encoding="utf-8")
    return file


def test_every_example_has_tests_of_which_all_pass() -> None:
    assert {file.name.removesuffix(".tests.yml") for file in EACH} == {file.stem for file in EXAMPLES.glob("*.yaml")}
    tested = run_cli("test", *map(str, EACH), "--coverage-minimum", "100")
    assert tested.exit_code == 0, tested.output
    assert f" cases in {len(EACH)} files: all passed (" in tested.stdout


@pytest.mark.parametrize(
    ("example", "rule", "weaker"),
    [
        ("hitorino", "GET /v1/users/**: {scopes: [read]", "GET /v1/users/**: {scopes: [write]"),
        ("hakari", '"* /v1/projects/{project}/vods/**": {tenant: project,', '"* /v1/projects/{project}/vods/**": {'),
        ("hesedvid", "{tenant: orgID, environment: env, quotas: [videos]}", "{tenant: orgID, quotas: [videos]}"),
        ("hitl", "on_refused_keys: true", "on_refused_keys: false"),
        ("hoko", "DELETE /api/links/**: {scopes: [linksWrite]}", "DELETE /api/links/**: {scopes: [linksRead]}"),
    ],
)
def test_an_example_that_is_changed_fails_its_tests(tmp_path: Path, example: str, rule: str, weaker: str) -> None:
    text = (EXAMPLES / f"{example}.yaml").read_text(encoding="utf-8")
    assert text.count(rule) == 1
    (tmp_path / f"{example}.yaml").write_text(text.replace(rule, weaker), encoding="utf-8")
    shutil.copy(EXAMPLES / f"{example}.tests.yml", tmp_path)
    assert run_cli("test", str(tmp_path / f"{example}.tests.yml")).exit_code == 1


def test_a_case_that_fails_is_shown_with_the_rules_that_decided(file: Path) -> None:
    tested = run_cli("test", str(file))
    assert tested.exit_code == 1
    first, second, end = tested.stdout.replace(f"{file.parent}/", "").split("\n\n")
    assert first.splitlines() == [
        "FAILED policy.tests.yml:8  GET /items as idle",
        "            expected  got",
        "  decision  allow     insufficient_scope",
        "  rule  sidecar.yaml:7  GET /items/**: read",
        "  rule  sidecar.yaml:5  scope read",
        "  why   the key lacks read: sidecar keys change key_idle --scope read",
    ]
    assert second.startswith("FAILED policy.tests.yml:9  <&> ?[31m\n")
    assert end.startswith("3 cases in 1 file: 2 cases failed (")


def test_a_key_that_was_pasted_into_a_request_is_shown_nowhere(file: Path, tmp_path: Path) -> None:
    key, report = "ex_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefg", tmp_path / "report.xml"
    file.write_text(TESTS + f"  - GET /other/{key}?key={key} as idle: allow\n", encoding="utf-8")
    for options in ((), ("--json",)):
        tested = run_cli("test", str(file), "--junit", str(report), *options)
        assert tested.exit_code == 1
        assert key not in tested.output + report.read_text(encoding="utf-8")
        assert "ex_012345678" in tested.stdout


def test_results_are_written_as_junit_and_printed_as_json(file: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    tested = run_cli("test", str(file), "--junit", str(report), "--json", "--coverage")
    assert tested.exit_code == 1
    root = ElementTree.fromstring(report.read_text(encoding="utf-8"))  # noqa: S314 - our own
    assert (root.get("tests"), root.get("failures")) == ("3", "2")
    cases = {case.get("line"): case.find("failure") for case in root.iter("testcase")}
    assert cases["7"] is None
    failure = cases["8"]
    assert failure is not None and failure.get("message") == "decision: expected allow, got insufficient_scope"
    told = json.loads(tested.stdout)
    assert told["counts"] == {"cases": 3, "passed": 1, "failed": 2} and told["ok"] is False
    [of_file] = told["files"]
    assert [case["where"].rpartition(":")[2] for case in of_file["failed"]] == ["8", "9"]
    assert of_file["failed"][1]["differences"] == [{"what": "status", "expected": "200", "got": "403"}]
    [covered] = told["coverage"]
    assert covered["reached"] + sum(1 for _ in covered["gaps"]) == covered["total"]


def test_cases_are_selected_by_text_and_no_match_is_an_error(file: Path) -> None:
    assert run_cli("test", str(file), "-k", "as reader").exit_code == 0
    none = run_cli("test", str(file), "-k", "nothing of the kind")
    assert none.exit_code == 2 and none.stderr.startswith("Error: no case has 'nothing of t…'")


def test_less_coverage_than_is_asked_for_fails(file: Path) -> None:
    assert run_cli("test", str(file), "-k", "as reader", "--coverage-minimum", "10").exit_code == 0
    below = run_cli("test", str(file), "-k", "as reader", "--coverage-minimum", "90")
    assert below.exit_code == 1
    assert below.stderr == f"Error: {file.parent}/sidecar.yaml: 25.0 % is reached, which is less than 90 %\n"


def test_the_configuration_is_that_of_the_option_then_of_the_file_then_of_the_environment(file: Path) -> None:
    other = file.parent / "other.yaml"
    other.write_text(CONFIG.replace("{scopes: [read]}", "{}"), encoding="utf-8")
    environ = {"SIDECAR_CONFIG": str(other)}
    assert run_cli("test", str(file), "-k", "as idle", "-c", str(other)).exit_code == 0
    assert run_cli("test", str(file), "-k", "as idle", environ=environ).exit_code == 1
    file.write_text(TESTS.replace("config: sidecar.yaml\n", ""), encoding="utf-8")
    assert run_cli("test", str(file), "-k", "as idle", environ=environ).exit_code == 0


def test_errors_of_all_files_are_reported_at_once(file: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yml"
    bad.write_text("config: sidecar.yaml\ncsaes: []\n", encoding="utf-8")
    tested = run_cli("test", str(file), str(bad), str(tmp_path), str(tmp_path / "missing.yml"), "/dev/null")
    assert tested.exit_code == 2 and tested.stdout == ""
    assert [line.replace(f"{tmp_path}", "") for line in tested.stderr.splitlines()] == [
        "/bad.yml:2:1: csaes: unknown key (did you mean 'cases'?)",
        ": cannot be read: Is a directory",
        "/missing.yml: cannot be read: No such file or directory",
        "/dev/null:1:1: the file is empty",
    ]


def test_a_report_that_cannot_be_written_is_one_line_of_error(file: Path, tmp_path: Path) -> None:
    for place in (str(tmp_path), str(tmp_path / "no" / "report.xml"), "/dev/full"):
        tested = run_cli("test", str(file), "--junit", place)
        assert tested.exit_code == 1 and tested.stderr.startswith(f"Error: cannot write {place}: ")


def test_a_closed_stdout_is_not_an_error(file: Path) -> None:
    many = "".join(f"  - GET /items/{number}: allow\n" for number in range(5_000))
    file.write_text(TESTS + many, encoding="utf-8")
    environ = clean_environ(PYTHONPATH=str(ROOT))
    command = [sys.executable, "-m", "sidecar", "test", str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 1
