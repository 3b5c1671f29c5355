"""A store that accepts no writes: refusals say why, and every view of the sidecar reports it."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.harness.keys import run_cli
from tests.harness.processes import ROOT, clean_environ
from tests.harness.running import Sidecar, StartSidecar
from tests.harness.waiting import until
from tests.wire.admin.calls import ACME, CONFIG, Admin, Person, admin_address

CAUSE = "cannot be read or written (I/O error): check the disk"


@contextmanager
def no_writes(process: int) -> Iterator[None]:
    """No file of the process may grow, as on a full disk."""
    before = resource.prlimit(process, resource.RLIMIT_FSIZE)
    resource.prlimit(process, resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.prlimit(process, resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def full(start_shared_sidecar: StartSidecar) -> Iterator[Sidecar]:
    """A sidecar whose store did not accept a change."""
    sidecar = start_shared_sidecar(CONFIG)
    key_id, _ = Admin(address=admin_address(sidecar)).issue(tenant="acme")
    with no_writes(sidecar.process.pid):
        assert Admin(address=admin_address(sidecar)).call("POST", f"keys/{key_id}/disable").status == 503
        yield sidecar


def test_a_change_that_is_not_written_is_refused_with_its_cause(full: Sidecar) -> None:
    ops = Admin(address=admin_address(full))
    refused = ops.call("POST", "keys", {"name": "one more"})
    assert (refused.status, refused.json["code"]) == (503, "store_unavailable")
    assert refused.json["detail"].startswith(f"the change was not written: the key store {CAUSE}")
    assert str(full.keys.store).encode() not in refused.body


def test_a_form_that_is_not_written_is_refused_with_its_cause(full: Sidecar) -> None:
    person = Person(Admin(address=admin_address(full)))
    page = person.post("/keys/new", name="x", scope="streams:read", expiry="never", once="1")
    assert page.status == 503
    assert b"The change was not written: the key store " + CAUSE.encode() in page.body


def test_keys_are_read_and_decided_on_all_the_same(full: Sidecar) -> None:
    ops = Admin(address=admin_address(full))
    assert ops.call("GET", "keys").status == 200
    assert full.ask("GET", "/streams/1", key="hv_live_unknown").status == 401


def test_the_overview_reports_it_and_a_tenant_sees_only_that(full: Sidecar) -> None:
    ops = Admin(address=admin_address(full))
    health = ops.call("GET", "overview").json["health"]
    assert health["ready"] and CAUSE in health["remarks"][0]
    assert CAUSE in ops.call("GET", "/", Accept="text/html").body.decode()
    acme = Admin(address=ops.address, token=ACME).call("GET", "overview").json["health"]
    assert acme["remarks"] == ["store: who operates the sidecar can see why"]


def test_doctor_reports_the_failing_writes(full: Sidecar) -> None:
    line = full.process.stderr.wait_for(lambda line: "ops listener on" in line)
    assert line is not None
    result = run_cli("doctor", "-c", str(full.keys.config), "--json",
                     environ={"SIDECAR_STORE": full.keys.url, "SIDECAR_OPS": line.rpartition(" ")[2]})  # fmt: skip
    findings = {f"{one['group']}: {one['check']}": one for one in json.loads(result.stdout)["findings"]}
    assert CAUSE in findings["Running sidecar: writes"]["saw"]
    assert findings["Running sidecar: writes"]["severity"] == "problem"


@pytest.mark.parametrize(
    ("suffix", "cause"),
    [
        (
            "",
            "is gone or out of reach (No such file or directory): put it back, or restore a backup with `sidecar store "
            "restore FILE`, and restart",
        ),
        ("-wal", "cannot be used, its -wal file is gone while in use: stop all that use the store, then restart"),
        ("-shm", "cannot be used, its -shm file is gone while in use: stop all that use the store, then restart"),
    ],
)
def test_a_change_of_a_store_that_lost_a_file_is_refused_with_its_cause(
    start_sidecar: StartSidecar, suffix: str, cause: str
) -> None:
    sidecar = start_sidecar(CONFIG)
    os.unlink(f"{sidecar.keys.store}{suffix}")
    refused = Admin(address=admin_address(sidecar)).call("POST", "keys", {"name": "one more"})
    assert refused.status == 503
    assert refused.json["detail"] == f"the change was not written: the key store {cause}"


def test_the_problem_clears_once_the_store_accepts_writes(start_sidecar: StartSidecar) -> None:
    sidecar = start_sidecar(CONFIG)
    ops = Admin(address=admin_address(sidecar))
    key_id, _ = ops.issue(tenant="acme")
    with no_writes(sidecar.process.pid):
        assert ops.call("POST", f"keys/{key_id}/disable").status == 503
        assert CAUSE in ops.call("GET", "overview").json["health"]["remarks"][0]
    until(lambda: ops.call("GET", "overview").json["health"]["remarks"] == [])
    assert ops.call("GET", f"keys/{key_id}").json["status"] == "active"


def test_a_command_that_cannot_write_names_the_cause(start_sidecar: StartSidecar) -> None:
    sidecar = start_sidecar(CONFIG)
    key = sidecar.keys.issue(scopes=("streams:read",))
    line = [sys.executable, "-m", "sidecar", "keys", "revoke", key.id, "--yes", "-c", str(sidecar.keys.config)]
    environ = clean_environ(SIDECAR_STORE=sidecar.keys.url, PYTHONPATH=str(ROOT))
    shell = ["sh", "-c", 'ulimit -f 0 && exec "$@"', "sh", *line]
    refused = subprocess.run(shell, capture_output=True, text=True, env=environ, timeout=60, check=False)
    assert refused.returncode == 1
    assert CAUSE in refused.stderr
    assert sidecar.keys.told("show", key.id)["status"] == "active"
