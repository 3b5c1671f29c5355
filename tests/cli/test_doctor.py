"""`sidecar doctor` on real files, a real upstream and a running sidecar."""

import json
import signal
import socket
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from click.testing import CliRunner

from sidecar.cli.main import main
from sidecar.doctor.machine import own_addresses
from tests.harness.keys import Keys, run_cli
from tests.harness.ports import free_port
from tests.harness.processes import clean_environ
from tests.harness.recording import Upstream
from tests.harness.running import Sidecar, StartSidecar
from tests.proxy.certificates import Authority

PEPPER = "3q2+7w9Xv1kPzL0aTg5yRb8uMc4nHd6sJfEiWoQx"
CONFIG = """
listen: 127.0.0.1:0
ops: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:unused.db
limits: {connections: 500}
keys: {environments: {live: acme_}, max_age: 90d}
routes: [GET /v1/**: {}]
"""


class Told:
    """What `sidecar doctor --json` said."""

    def __init__(self, status: int, told: dict[str, Any]) -> None:
        self.status, self.told = status, told
        self._found = {f"{one['group']}: {one['check']}": one for one in told["findings"]}

    def __getitem__(self, name: str) -> tuple[str, str]:
        """Severity and what was seen, by `group: check`."""
        return self._found[name]["severity"], self._found[name]["saw"]

    def do(self, name: str) -> str:
        advice: str = self._found[name]["do"]
        return advice

    def unwell(self) -> dict[str, str]:
        return {name: one["severity"] for name, one in self._found.items() if one["severity"] != "ok"}


def examined(config: Path, *arguments: str, **environ: str) -> Told:
    done = run_cli("doctor", "-c", str(config), "--json", *arguments, environ=environ)
    return Told(done.exit_code, json.loads(done.stdout))


def examined_running(sidecar: Sidecar, upstream_url: str, **environ: str) -> Told:
    """With the addresses that it was started with, and the ports that it got."""
    addresses = {
        "SIDECAR_LISTEN": f"127.0.0.1:{sidecar.data[1]}",
        "SIDECAR_OPS": f"127.0.0.1:{sidecar.ops[1]}",
        "SIDECAR_STORE": sidecar.keys.url,
        "SIDECAR_UPSTREAM": upstream_url,
    }
    return examined(sidecar.keys.config, **{**addresses, **environ})


class Place:
    """A configuration and its store, without a sidecar that runs."""

    def __init__(self, folder: Path, config: str = CONFIG) -> None:
        self.config, self.store = folder / "sidecar.yaml", folder / "keys.db"
        self.config.write_text(config.replace("sqlite:unused.db", f"sqlite://{self.store}"), encoding="utf-8")
        self.keys = Keys(self.config, self.store)

    def change(self, sql: str) -> None:
        with closing(sqlite3.connect(self.store)) as connection, connection:
            connection.execute(sql)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    made = Place(tmp_path)
    made.keys.issue(expires="30d")
    return made


def test_of_a_running_sidecar_with_everything_in_order_there_is_nothing_to_mend(
    start_sidecar: StartSidecar, upstream: Upstream
) -> None:
    upstream.answer(b"HTTP/1.1 404 Not Found\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\nContent-Length: 0\r\n\r\n")
    sidecar = start_sidecar(CONFIG, environ={"SIDECAR_PEPPER": PEPPER})
    told = examined_running(sidecar, upstream.url, SIDECAR_PEPPER=PEPPER)
    # What the disk below a temporary folder is, is not for this test to say.
    assert {name for name in told.unwell() if name != "Key store: disk"} == {"Upstream: clock"}
    assert "behind this host's clock" in told["Upstream: clock"][1]
    assert told.status == 0
    assert told["Running sidecar: configuration"] == ("ok", "what stands in the file is in force")
    assert f"process {sidecar.process.pid}" in told["Listeners: open files"][1]
    assert upstream.last().method == "HEAD"
    assert sidecar.ask("GET", "/v1/x").status == 401


def test_a_file_that_the_sidecar_has_not_read_is_told_until_it_has(
    start_sidecar: StartSidecar, upstream: Upstream
) -> None:
    sidecar = start_sidecar(CONFIG + "reload: {watch: false}\n")
    with sidecar.keys.config.open("a") as file:
        file.write("realm: changed\n")
    assert examined_running(sidecar, upstream.url)["Running sidecar: configuration"][0] == "warning"
    sidecar.process.signal(signal.SIGHUP)
    assert sidecar.process.stderr.wait_for(lambda line: "is in force" in line)
    assert examined_running(sidecar, upstream.url)["Running sidecar: configuration"][0] == "ok"


def test_a_change_that_needs_a_restart_is_told(start_sidecar: StartSidecar, upstream: Upstream) -> None:
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


def test_a_wrong_configuration_is_told_as_check_tells_it(tmp_path: Path) -> None:
    file = tmp_path / "sidecar.yaml"
    file.write_text("listen: nonsense\n")
    done = run_cli("doctor", "-c", str(file))
    assert done.exit_code == 2
    assert f"{file}:1:9: listen: must be host:port" in done.stderr
    assert done.stdout == ""


@contextmanager
def answering(host: str) -> Iterator[int]:
    """An upstream that answers everything with 501, and the Date."""
    with ThreadingHTTPServer((host, 0), BaseHTTPRequestHandler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_an_upstream_that_listens_at_every_address_is_a_problem(place: Place) -> None:
    if not own_addresses():
        pytest.skip("this host has no address beside loopback")
    with answering("0.0.0.0") as port:  # noqa: S104 - what is looked for
        told = examined(place.config, SIDECAR_UPSTREAM=f"http://127.0.0.1:{port}")
    severity, saw = told["Upstream: ways around"]
    assert severity == "problem"
    assert f":{port}" in saw
    assert told.status == 1
    with answering("127.0.0.1") as port:
        told = examined(place.config, SIDECAR_UPSTREAM=f"http://127.0.0.1:{port}")
    assert told["Upstream: ways around"][0] == "ok"
    assert told["Upstream: clock"] == ("ok", "its Date agrees with this host's clock")


def test_an_upstream_at_an_address_of_this_host_or_of_another_is_told(place: Place) -> None:
    for address in own_addresses()[:1]:
        host = f"[{address}]" if ":" in address else address
        assert examined(place.config, SIDECAR_UPSTREAM=f"http://{host}:1")["Upstream: ways around"][0] == "problem"
    # A documentation address (RFC 5737) that nobody has.
    slow = place.config.read_text().replace(
        "upstream: http://127.0.0.1:1", "upstream: {url: http://203.0.113.7:1, connect_timeout: 100ms}"
    )
    place.config.write_text(slow)
    assert examined(place.config)["Upstream: ways around"][0] == "warning"


def test_an_upstream_socket_that_everybody_may_use_is_told(place: Place, tmp_path: Path) -> None:
    path = tmp_path / "up.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        path.chmod(0o777)
        told = examined(place.config, SIDECAR_UPSTREAM=f"unix:{path}")
        assert told["Upstream: ways around"][0] == "warning"
        assert told["Upstream: connection"][0] == "ok"
        path.chmod(0o660)
        assert examined(place.config, SIDECAR_UPSTREAM=f"unix:{path}")["Upstream: ways around"][0] == "ok"


def test_an_upstream_that_nobody_runs_is_a_problem(place: Place) -> None:
    told = examined(place.config)
    assert told["Upstream: connection"] == ("problem", "127.0.0.1:1: nothing listens there (connection refused)")
    assert told["Upstream: clock"][0] == "unchecked"


def test_what_is_no_sidecar_at_the_ops_address_is_said_to_be_none(place: Place) -> None:
    with answering("127.0.0.1") as port:
        told = examined(place.config, SIDECAR_OPS=f"127.0.0.1:{port}")
    assert told["Running sidecar: readiness"] == (
        "unchecked",
        f"what answers at 127.0.0.1:{port} is no sidecar's ops listener",
    )


@contextmanager
def speaking_tls(certificate: Path, key: Path) -> Iterator[int]:
    """An upstream of openssl's own."""
    port = free_port()
    arguments = ["-accept", f"127.0.0.1:{port}", "-cert", certificate, "-key", key, "-www"]
    process = subprocess.Popen(["openssl", "s_server", *arguments], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    try:
        assert process.stdout is not None
        assert any(line.startswith(b"ACCEPT") for line in process.stdout)
        yield port
    finally:
        process.kill()
        process.communicate()


def test_the_upstreams_certificate_is_verified_as_the_sidecar_does(place: Place, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    plain = place.config.read_text()
    with speaking_tls(*authority.issue("up")) as port:
        told = examined(place.config, SIDECAR_UPSTREAM=f"https://localhost:{port}")
        assert told["Upstream: connection"][0] == "problem"
        assert "certificate is not trusted" in told["Upstream: connection"][1]
        trusting = f"upstream: {{url: https://localhost:{port}, tls: {{ca: {authority.certificate}}}}}"
        place.config.write_text(plain.replace("upstream: http://127.0.0.1:1", trusting))
        told = examined(place.config)
    assert told["Upstream: connection"][0] == "ok"
    assert told["Upstream: certificate"][0] == "ok"


def test_files_that_others_can_read_are_told_and_well_after_what_doctor_says_to_do(place: Place) -> None:
    place.store.chmod(0o644)
    told = examined(place.config)
    assert told["Key store: file modes"] == ("problem", "keys.db 0644")
    subprocess.run(["/bin/sh", "-c", told.do("Key store: file modes")], check=True)
    assert examined(place.config)["Key store: file modes"] == ("ok", "keys.db 0600")


def test_a_listeners_key_that_others_can_read_and_one_that_does_not_fit_are_told(place: Place, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("listener")
    _, other = authority.issue("other")
    plain = place.config.read_text()
    key.chmod(0o644)
    place.config.write_text(f"{plain}tls: {{certificate: {certificate}, key: {key}}}\n")
    told = examined(place.config)
    assert told["Secrets: TLS keys"][0] == "problem"
    assert told["Listeners: certificates"][0] == "ok"
    place.config.write_text(f"{plain}tls: {{certificate: {certificate}, key: {other}}}\n")
    assert examined(place.config)["Listeners: certificates"][0] == "problem"


def test_a_pepper_in_a_file_that_others_can_read_is_a_problem_and_one_of_a_variable_is_not(place: Place) -> None:
    imported = "imported: [{{prefix: sk_, hash: sha256-pepper-first, pepper: {pepper!r}}}]"
    plain = place.config.read_text()
    place.config.write_text(plain.replace("max_age: 90d", imported.format(pepper=PEPPER)))
    place.config.chmod(0o644)
    assert examined(place.config)["Configuration: file mode"][0] == "problem"
    place.config.write_text(plain.replace("max_age: 90d", imported.format(pepper="${LEGACY}")))
    assert examined(place.config, LEGACY=PEPPER)["Configuration: file mode"][0] == "ok"


def test_a_missing_store_is_a_problem_and_none_is_made(tmp_path: Path) -> None:
    place = Place(tmp_path)
    told = examined(place.config)
    assert told["Key store: schema"] == ("problem", f"there is no key store at {place.store}")
    assert not place.store.exists()


def test_an_older_store_is_told_and_left_as_it_is(place: Place) -> None:
    place.change("UPDATE schema_version SET version = 1")
    assert examined(place.config)["Key store: schema"][0] == "warning"
    place.change("UPDATE schema_version SET version = 99")
    told = examined(place.config)
    assert told["Key store: schema"][0] == "problem"
    assert told["Key store: latency"][0] == "unchecked"
    with closing(sqlite3.connect(place.store)) as connection:
        assert connection.execute("SELECT version FROM schema_version").fetchall() == [(99,)]


def test_a_store_that_somebody_holds_is_a_problem_and_its_audit_is_looked_at_all_the_same(place: Place) -> None:
    with closing(sqlite3.connect(place.store, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        told = examined(place.config)
    severity, saw = told["Key store: latency"]
    assert severity == "problem"
    assert "is locked by another process" in saw
    assert told["Key store: audit"] == ("ok", "1 row, none changed or removed")


def test_times_in_the_store_that_lie_ahead_are_told(place: Place) -> None:
    place.change("UPDATE api_key SET last_used_at = created_at + 3600 * 1000000")
    severity, saw = examined(place.config)["Key store: clock"]
    assert severity == "problem"
    assert "60m ahead" in saw


def test_an_audit_that_somebody_changed_is_a_problem(place: Place) -> None:
    place.change("UPDATE audit SET actor = 'nobody'")
    told = examined(place.config)
    assert told["Key store: audit"] == ("problem", "row 1 was changed, or the row before it was")


def test_a_long_audit_is_verified_on_demand(place: Place) -> None:
    place.change(
        "INSERT INTO audit (id, at, actor, action, key_id, hash) VALUES (100001, 0, 'x', 'revoke', 'k', x'00')"
    )
    assert examined(place.config)["Key store: audit"] == ("unchecked", "100,001 rows take a while: give --deep")
    assert examined(place.config, "--deep")["Key store: audit"][0] == "problem"


def test_keys_of_a_pepper_that_is_not_set_are_a_problem(tmp_path: Path) -> None:
    place = Place(tmp_path)
    Keys(place.config, place.store, {"SIDECAR_PEPPER": PEPPER}).issue()
    assert examined(place.config)["Secrets: pepper"][0] == "problem"
    assert examined(place.config, SIDECAR_PEPPER=PEPPER)["Secrets: pepper"] == ("ok", "set, and long enough")
    turned = {"SIDECAR_PEPPER": PEPPER[::-1], "SIDECAR_PEPPER_PREVIOUS": PEPPER}
    assert examined(place.config, **turned)["Secrets: previous pepper"][0] == "ok"
    unneeded = {"SIDECAR_PEPPER": PEPPER, "SIDECAR_PEPPER_PREVIOUS": PEPPER[::-1]}
    assert examined(place.config, **unneeded)["Secrets: previous pepper"][0] == "warning"


def test_keys_without_an_end_and_keys_past_their_age_are_counted(place: Place) -> None:
    place.keys.issue()
    assert examined(place.config)["Key store: age of keys"] == ("ok", "1 of 2 active keys never expires")
    place.change("UPDATE api_key SET created_at = created_at - 91 * 86400 * 1000000 WHERE expires_at IS NULL")
    severity, saw = examined(place.config)["Key store: age of keys"]
    assert severity == "warning"
    assert saw.startswith("1 key older than keys.max_age (90d)")


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


def test_json_counts_what_it_lists(place: Place) -> None:
    told = examined(place.config).told
    listed = [one["severity"] for one in told["findings"]]
    assert told["counts"] == {name: listed.count(name) for name in ("ok", "warning", "problem", "unchecked")}
    assert told["config"] == str(place.config)
    assert {frozenset(one) for one in told["findings"]} == {
        frozenset({"group", "check", "severity", "saw", "why", "do"})
    }
