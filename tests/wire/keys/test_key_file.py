"""Keys in a file: served as written, reloaded when it changes, and never changed by the sidecar."""

import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.harness.forks import ForkedProcess
from tests.harness.keys import IssuedKey, Keys, run_cli
from tests.harness.processes import Process, clean_environ
from tests.harness.running import Sidecar, StartSidecar
from tests.harness.wire import Connection
from tests.wire.admin.calls import ACME, CONFIG, Admin, Person, admin_address


class MountedKeys:
    """A file as mounted by the kubelet: a link to `..data`, which links to a new folder each time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "keys.yaml"
        self.issued: list[dict[str, Any]] = []
        self._version = 0
        self.config = folder / "sidecar.yaml"
        self.config.write_text(CONFIG)
        self._keys = Keys(self.config, folder / "none.db")

    @property
    def url(self) -> str:
        return f"file://{self.file}"

    def issue(self, name: str, *options: str, **changes: Any) -> IssuedKey:
        """Add a record for the next `write`."""
        told = self._keys.told("issue", "--offline", "--name", name, *options)
        self.issued.append({**told["record"], **changes})
        return IssuedKey(id=told["id"], text=told["key"], told=told)

    def write(self, text: str | None = None) -> None:
        """The whole folder is replaced, by the rename of a link."""
        self._version += 1
        version = self.folder / f"..{self._version}"
        version.mkdir()
        records = "\n".join(f"- {json.dumps(record)}" for record in self.issued) or "[]"
        (version / "keys.yaml").write_text(records if text is None else text, encoding="utf-8")
        os.utime(version / "keys.yaml", (1e9, 1e9))
        (self.folder / "..data_tmp").symlink_to(version.name)
        os.replace(self.folder / "..data_tmp", self.folder / "..data")
        if not self.file.is_symlink():
            self.file.symlink_to("..data/keys.yaml")

    def run(self, *arguments: str, **environ: str) -> Any:
        return run_cli(*arguments, "-c", str(self.config), environ={"SIDECAR_STORE": self.url, **environ})


def told(sidecar: Sidecar, wanted: str, *, count: int = 1) -> str:
    """The line about the store, once there are this many."""
    seen = 0

    def enough(line: str) -> bool:
        nonlocal seen
        seen += line.startswith("sidecar: store: ") and wanted in line
        return seen >= count

    line = sidecar.process.stderr.wait_for(enough)
    assert line is not None, sidecar.process.stderr.all()
    return line


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A sidecar on a mounted file."""

    sidecar: Sidecar
    mounted: MountedKeys

    def status(self, key: IssuedKey) -> int:
        return self.sidecar.ask("GET", "/streams/1", key=key).status

    def readiness(self) -> tuple[int, list[str]]:
        with Connection(self.sidecar.ops) as connection:
            found = connection.ask("GET", "/readyz?verbose")
        return found.status, found.body.decode().splitlines()


@pytest.fixture
def mounted(tmp_path: Path) -> MountedKeys:
    return MountedKeys(tmp_path)


def serve(start: StartSidecar, mounted: MountedKeys, config: str = CONFIG) -> Served:
    return Served(sidecar=start(config, options=["--store", mounted.url]), mounted=mounted)


def test_keys_are_those_of_the_file_and_follow_it(start_sidecar: StartSidecar, mounted: MountedKeys) -> None:
    first = mounted.issue("First")
    off = mounted.issue("Off", enabled=False)
    over = mounted.issue("Over", expires_at="2024-01-31")
    mounted.write()
    served = serve(start_sidecar, mounted)
    assert [served.status(key) for key in (first, off, over)] == [200, 401, 401]
    second = mounted.issue("Second")
    mounted.issued[:] = [{**mounted.issued[1], "enabled": True}, mounted.issued[3]]
    mounted.write()
    told(served.sidecar, "is in force (2 records)")
    assert [served.status(key) for key in (first, off, second)] == [401, 200, 200]
    assert served.sidecar.metric("sidecar_key_file_last_reload_successful") == 1


def test_a_bad_file_changes_no_keys_and_is_reported(start_sidecar: StartSidecar, mounted: MountedKeys) -> None:
    key = mounted.issue("First")
    mounted.write()
    served = serve(start_sidecar, mounted)
    mounted.write("- {name: x}\n- 7\n")
    line = told(served.sidecar, "not taken")
    place = f"{mounted.file}:1"
    assert (
        line
        == f"sidecar: store: not taken, the keys before stay in force: {place}: hash: is required (and 1 more problem)"
    )
    assert served.status(key) == 200
    status, lines = served.readiness()
    assert (status, [line for line in lines if line.startswith("store")]) == (
        200,
        [f"store: not taken, the keys before stay in force: {place}, {mounted.file}:2"],
    )
    assert served.sidecar.metric("sidecar_key_file_last_reload_successful") == 0
    mounted.issued.clear()
    mounted.write()
    told(served.sidecar, "is in force (0 records)")
    assert served.status(key) == 401
    assert served.readiness()[1] == [
        f"keys: from the file {mounted.file}, which is read-only; their use and changes are not stored",
        *("data: ok", "store: ok", "config: ok"),
    ]


def test_a_reload_rereads_the_file(start_sidecar: StartSidecar, mounted: MountedKeys) -> None:
    mounted.write()
    config = CONFIG + "reload: {interval: 50ms}\n"
    served = serve(start_sidecar, mounted, config)
    key = mounted.issue("Of later", scopes=["later"])
    mounted.write()
    told(served.sidecar, "unknown scope 'later'")
    assert served.status(key) == 401
    later = config.replace("  billing: Pay", "  billing: Pay\n  later: {includes: ['streams:read']}")
    served.sidecar.keys.config.write_text(later, encoding="utf-8")
    told(served.sidecar, "is in force (1 record)")
    assert served.status(key) == 200


def test_a_bad_file_at_startup_is_an_error_that_lists_every_problem(mounted: MountedKeys) -> None:
    mounted.write("- {name: x}\n- 7\n- {name: y, hsh: 1}\n")
    arguments = ["serve", "-c", str(mounted.config), "--store", mounted.url]
    process = Process(ForkedProcess(arguments, clean_environ()))
    assert process.wait() == 1
    process.stderr.join()
    problems = [line.partition(" (known")[0] for line in process.stderr.all()]
    assert problems == [
        f"sidecar: {mounted.file}:1: hash: is required",
        f"sidecar: {mounted.file}:2: is not a record: each item of the list maps fields to values",
        f"sidecar: {mounted.file}:3: unknown field 'hsh'",
    ]


def test_commands_read_the_file_and_refuse_to_change_its_keys(mounted: MountedKeys) -> None:
    key = mounted.issue("First", "--tenant", "acme")
    mounted.write()
    assert [row["name"] for row in json.loads(mounted.run("keys", "list", "--json").stdout)] == ["First"]
    assert json.loads(mounted.run("keys", "show", key.id, "--json").stdout)["tenant"] == "acme"
    assert mounted.run("keys", "export").exit_code == 0
    assert mounted.run("explain", "GET", "/streams/1", "--key", key.id).exit_code == 0
    refused = [
        mounted.run("keys", "issue", "--name", "x"),
        mounted.run("keys", "revoke", key.id),
        mounted.run("keys", "disable", "--tenant", "acme", "--yes"),
        mounted.run("keys", "rotate", key.id),
        mounted.run("keys", "change", key.id, "--name", "y"),
        mounted.run("keys", "apply", str(mounted.file)),
        mounted.run("store", "make"),
    ]
    message = f"Error: the keys come from the file {mounted.file}, which is read-only here: change the file\n"
    assert {(each.exit_code, each.stderr) for each in refused} == {(1, message)}
    mounted.write("- 7")
    assert mounted.run("keys", "list").stderr.startswith(f"Error: {mounted.file}:1: is not a record")


def test_the_page_and_the_api_show_keys_and_change_none(start_sidecar: StartSidecar, mounted: MountedKeys) -> None:
    key = mounted.issue("First", "--tenant", "acme")
    mounted.write()
    served = serve(start_sidecar, mounted)
    admin = Admin(address=admin_address(served.sidecar))
    assert [found["name"] for found in admin.call("GET", "keys").json["keys"]] == ["First"]
    refused = admin.call("POST", f"keys/{key.id}/revoke")
    assert (refused.status, refused.json["code"]) == (409, "read_only")
    assert str(mounted.file) in refused.json["detail"]
    assert admin.call("POST", "keys", {"name": "x"}).status == 409
    of_tenant = Admin(address=admin.address, token=ACME).call("POST", f"keys/{key.id}/revoke")
    assert (of_tenant.status, str(mounted.file) in of_tenant.json["detail"]) == (409, False)
    person = Person(admin)
    page = person.get("/keys").body.decode()
    assert "First" in page
    assert str(mounted.file) in page
    assert "Their use and changes are not stored" in page
    assert "Issue a key" not in page
    assert person.post(f"/keys/{key.id}/revoke").status == 409
    assert served.status(key) == 200


def test_use_and_changes_are_kept_where_the_configuration_says(
    start_sidecar: StartSidecar, mounted: MountedKeys, tmp_path: Path
) -> None:
    kept = tmp_path / "usage.db"
    config = CONFIG.replace("store: sqlite:///nowhere", f"store: {{url: '{mounted.url}', usage: 'sqlite://{kept}'}}")
    mounted.config.write_text(config)
    key = mounted.issue("First")
    mounted.write()
    served = serve(start_sidecar, mounted, config)
    assert served.status(key) == 200
    assert served.sidecar.stop() == 0
    shown = json.loads(mounted.run("keys", "show", key.id, "--json").stdout)
    assert shown["last_used_at"] is not None
    assert "1 requests in the last" in mounted.run("keys", "usage", key.id).stdout
    gone = mounted.issued.pop()
    mounted.issue("Second")
    mounted.write()
    mounted.run("keys", "list")
    rows = json.loads(mounted.run("audit", "--json").stdout)
    assert [(row["action"], row["actor"], row["source"]) for row in rows] == [
        ("revoke", "file", str(mounted.file)),
        ("import", "file", str(mounted.file)),
        ("import", "file", str(mounted.file)),
    ]
    assert rows[0]["key_id"] == gone["id"]
    assert mounted.run("audit", "verify").exit_code == 0


def test_a_store_of_issued_keys_is_refused_as_usage_store(mounted: MountedKeys, tmp_path: Path) -> None:
    issued = Keys(mounted.config, tmp_path / "keys.db")
    issued.issue("Issued")
    usage = f"store: {{url: '{mounted.url}', usage: '{issued.url}'}}"
    mounted.write("[]")
    other = tmp_path / "other.yaml"
    other.write_text(CONFIG.replace("store: sqlite:///nowhere", usage))
    refused = run_cli("keys", "list", "-c", str(other))
    assert refused.exit_code == 1
    assert "holds keys that did not come from a file" in refused.stderr
    assert [key["name"] for key in issued.told("list")] == ["Issued"]


def test_what_a_killed_process_left_behind_is_removed_by_the_next_one(mounted: MountedKeys, tmp_path: Path) -> None:
    mounted.write()
    temporary = tmp_path / "tmp"
    for name in ("killed", "running", "starting"):
        (temporary / f"sidecar-keys-{name}").mkdir(parents=True)
    for name in ("killed", "running"):
        os.utime(temporary / f"sidecar-keys-{name}", (1e9, 1e9))
    lock = os.open(temporary / "sidecar-keys-running", os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
        assert mounted.run("keys", "list", TMPDIR=str(temporary)).exit_code == 0
    finally:
        os.close(lock)
    assert {left.name for left in temporary.iterdir()} == {"sidecar-keys-running", "sidecar-keys-starting"}


def test_doctor_reads_the_file_as_a_sidecar_would(mounted: MountedKeys) -> None:
    def found() -> tuple[str, str]:
        findings = json.loads(mounted.run("doctor", "--json").stdout)["findings"]
        [one] = [one for one in findings if one["group"] == "Key store"]
        return one["severity"], one["saw"]

    mounted.issue("First")
    mounted.write()
    kept = "; their use and changes are not stored (store.usage)"
    assert found() == ("ok", f"1 record in {mounted.file}{kept}")
    mounted.write("- 7\n- 8\n")
    wrong = "is not a record: each item of the list maps fields to values"
    assert found() == ("problem", f"{mounted.file}:1: {wrong} (and 1 more)")
