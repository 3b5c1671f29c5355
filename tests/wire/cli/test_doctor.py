"""`sidecar doctor` on real files, a real upstream and a running sidecar."""

import json
import signal
from pathlib import Path

from click.testing import CliRunner

from sidecar.cli.main import main
from tests.harness.keys import run_cli
from tests.harness.processes import clean_environ
from tests.harness.recording import Upstream
from tests.harness.running import StartSidecar
from tests.wire.cli.doctoring import CONFIG, PEPPER, Place, examined, examined_running


def test_a_healthy_running_sidecar_has_no_problems(start_sidecar: StartSidecar, upstream: Upstream) -> None:
    upstream.plan(b"HTTP/1.1 404 Not Found\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\nContent-Length: 0\r\n\r\n")
    sidecar = start_sidecar(CONFIG, environ={"SIDECAR_PEPPER": PEPPER})
    report = examined_running(sidecar, upstream.url, SIDECAR_PEPPER=PEPPER)
    # The file system of a temporary folder is outside this test's control.
    assert {name for name in report.not_ok() if name != "Key store: disk"} == {"Upstream: clock"}
    assert "behind this host's clock" in report["Upstream: clock"][1]
    assert report.status == 0
    assert report["Running sidecar: configuration"] == ("ok", "the running configuration is that of the file")
    assert f"process {sidecar.process.pid}" in report["Listeners: open files"][1]
    assert upstream.last().method == "HEAD"
    assert sidecar.ask("GET", "/v1/x").status == 401


def test_a_file_that_the_sidecar_has_not_loaded_is_reported_until_it_has(
    start_sidecar: StartSidecar, upstream: Upstream
) -> None:
    sidecar = start_sidecar(CONFIG + "reload: {watch: false}\n")
    with sidecar.keys.config.open("a") as file:
        file.write("realm: changed\n")
    assert examined_running(sidecar, upstream.url)["Running sidecar: configuration"][0] == "warning"
    sidecar.process.signal(signal.SIGHUP)
    assert sidecar.process.stderr.wait_for(lambda line: "is in force" in line)
    assert examined_running(sidecar, upstream.url)["Running sidecar: configuration"][0] == "ok"


def test_a_change_that_needs_a_restart_is_reported(start_sidecar: StartSidecar, upstream: Upstream) -> None:
    sidecar = start_sidecar(CONFIG + "reload: {watch: false}\n")
    with sidecar.keys.config.open("a") as file:
        file.write("access_log: off\n")
    sidecar.process.signal(signal.SIGHUP)
    assert sidecar.process.stderr.wait_for(lambda line: "needs a restart" in line)
    severity, saw = examined_running(sidecar, upstream.url)["Running sidecar: configuration"]
    assert severity == "warning"
    assert "access_log" in saw


def test_a_running_sidecar_that_is_not_ready_is_a_problem_and_says_why(
    start_sidecar: StartSidecar, upstream: Upstream
) -> None:
    sidecar = start_sidecar(CONFIG)
    sidecar.keys.store.rename(sidecar.keys.store.with_name("away.db"))
    severity, saw = examined_running(sidecar, upstream.url)["Running sidecar: readiness"]
    assert severity == "problem"
    assert "is gone or out of reach" in saw


def test_a_wrong_configuration_is_reported_as_check_reports_it(tmp_path: Path) -> None:
    file = tmp_path / "sidecar.yaml"
    file.write_text("listen: nonsense\n")
    done = run_cli("doctor", "-c", str(file))
    assert done.exit_code == 2
    assert f"{file}:1:9: listen: must be host:port" in done.stderr
    assert done.stdout == ""


def test_the_platforms_patience_is_compared_with_the_drain(place: Place) -> None:
    assert examined(place.config, "--grace", "45s")["Configuration: time to end"][0] == "ok"
    assert examined(place.config, "--grace", "20s")["Configuration: time to end"][0] == "problem"
    assert run_cli("doctor", "-c", str(place.config), "--grace", "long").exit_code == 2


def test_no_secret_is_printed(place: Place) -> None:
    token, imported = "canary-admin-token-value", "canary-of-an-imported-pepper"
    key = place.keys.issue()
    written = place.config.read_text().replace(
        "max_age: 90d", f"imported: [{{prefix: sk_, hash: sha256-pepper-last, pepper: {imported}}}]"
    )
    place.config.write_text(f"{written}admin: 0.0.0.0:9091\n")
    environ = {"SIDECAR_ADMIN_TOKEN": token, "SIDECAR_PEPPER": PEPPER, "SIDECAR_PEPPER_PREVIOUS": PEPPER[::-1]}
    for form in ([], ["--json"]):
        done = run_cli("doctor", "-c", str(place.config), *form, environ=environ)
        assert done.exit_code == 1
        for secret in (token, imported, PEPPER, PEPPER[::-1], key.text):
            assert secret not in done.output


def test_text_is_grouped_aligned_at_most_100_columns_and_coloured_on_a_terminal_only(place: Place) -> None:
    plain, coloured = (
        CliRunner().invoke(main, ["doctor", "-c", str(place.config)], color=color, env=dict(clean_environ()))
        for color in (False, True)
    )
    lines = plain.stdout.splitlines()
    assert all(len(line) <= 100 for line in lines if str(place.config.parent) not in line)
    groups = [line for line in lines[1:-1] if line and not line.startswith(" ")]
    assert groups == ["Upstream", "Listeners", "Configuration", "Secrets", "Key store", "Running sidecar"]
    assert any(line.startswith("  problem    connection       127.0.0.1:1: nothing listens there") for line in lines)
    assert "\x1b[" not in plain.stdout
    assert "\x1b[31mproblem" in coloured.stdout


def test_a_check_that_could_not_run_is_not_reported_as_healthy(place: Place) -> None:
    unchecked = examined(place.config).printed["counts"]["unchecked"]
    last = run_cli("doctor", "-c", str(place.config)).stdout.splitlines()[-1]
    assert unchecked > 0
    assert f"{unchecked} check{'s' * (unchecked > 1)} could not run: whether these are in order is not known." in last


def test_json_counts_what_it_lists(place: Place) -> None:
    report = examined(place.config).printed
    listed = [one["severity"] for one in report["findings"]]
    assert report["counts"] == {name: listed.count(name) for name in ("ok", "warning", "problem", "unchecked")}
    assert report["config"] == str(place.config)
    assert {frozenset(one) for one in report["findings"]} == {
        frozenset({"group", "check", "severity", "saw", "why", "do"})
    }


def test_configuration_errors_are_json_with_the_json_option(tmp_path: Path) -> None:
    file = tmp_path / "sidecar.yaml"
    file.write_text("listen: 1\nupstream: http://127.0.0.1:1\nstore: sqlite:keys.db\n")
    done = run_cli("doctor", "-c", str(file), "--json")
    report = json.loads(done.stdout)
    assert (done.exit_code, report["counts"]["problem"]) == (2, 1)
    [finding] = report["findings"]
    assert finding["saw"].startswith(f"{file}:1:9: listen: must be host:port")
    assert finding["saw"] in done.stderr
