"""A service whose clients have no keys yet: observed, given keys, narrowed, enforced, by the commands of the recipe."""

import json
import signal
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.harness.keys import IssuedKey, run_cli
from tests.harness.running import Sidecar, StartSidecar

API = """\
openapi: 3.1.0
info: {title: Streams, version: "1"}
servers: [{url: https://api.example.com/v1}]
paths:
  /streams/{id}: {get: {tags: [Streams]}, delete: {tags: [Streams]}}
  /status: {get: {security: []}}
"""
BEGIN = """\
listen: 127.0.0.1:0
ops: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:unused.db
keys: {from: [{header: X-Api-Key}], environments: {live: acme_}}
identity: {headers: {X-Key-Id: "{key.id}"}, would_deny: X-Would-Deny}
"""
TESTS = """\
keys:
  reader: {scopes: [streams:read]}
  idle: {scopes: []}
cases:
  - GET /v1/streams/1 as reader: allow
  - GET /v1/streams/1 as idle: insufficient_scope
  - GET /v1/streams/1: missing_credential
  - GET /v1/other as reader: no_route
  - GET /v1/status: allow
"""
READ, DELETE = "GET /v1/streams/{id}", "DELETE /v1/streams/{id}"
REQUESTS = 30
"""More than needed for a suggestion: the log has milliseconds, so the first may be before `--since`."""


@dataclass(slots=True)
class Adoption:
    folder: Path
    sidecar: Sidecar
    reloads: int = 0

    def cli(self, *words: str, exit_code: int = 0) -> Any:
        """The output, parsed if JSON was requested."""
        done = run_cli(*words)
        assert done.exit_code == exit_code, done.output
        return json.loads(done.stdout) if "--json" in words else done.stdout

    def file(self, name: str, text: str = "") -> str:
        path = self.folder / name
        if text:
            path.write_text(text, encoding="utf-8")
        return str(path)

    def log(self) -> str:
        """The access log so far, as a file."""
        return self.file("access.log", "".join(f"{line}\n" for line in self.sidecar.process.stdout.all()))

    def serve(self, text: str) -> None:
        """By a reload."""
        self.sidecar.keys.config.write_text(text, encoding="utf-8")
        self.reloads += 1
        self.sidecar.process.signal(signal.SIGHUP)
        count = self.reloads
        stderr = self.sidecar.process.stderr
        assert stderr.wait_for(lambda _: sum("is in force" in line for line in stderr.all()) >= count)

    def ask(self, request: str, key: IssuedKey | None = None, *, request_id: str = "") -> int:
        method, target = request.split()
        headers = [("X-Request-Id", request_id)] if request_id else []
        if key is not None:
            headers.append(("X-Api-Key", key.text))
        return self.sidecar.ask(method, target, headers).status

    def logged(self, request_id: str) -> dict[str, Any]:
        return self.sidecar.logged(lambda line: line["request_id"] == request_id)


@pytest.fixture
def adoption(start_sidecar: StartSidecar, tmp_path: Path) -> Adoption:
    """Serves the draft of the document, and only observes it."""
    (tmp_path / "api.yaml").write_text(API, encoding="utf-8")
    drafted = run_cli("routes", "from-openapi", "--routes-only", str(tmp_path / "api.yaml"))
    assert drafted.exit_code == 0, drafted.output
    (tmp_path / "enforce.yaml").write_text(BEGIN + drafted.stdout, encoding="utf-8")
    observing = f"mode: observe\n{BEGIN}{drafted.stdout}"
    (tmp_path / "observe.yaml").write_text(observing, encoding="utf-8")
    return Adoption(tmp_path, start_sidecar(observing))


def test_a_service_with_clients_moves_from_observing_to_enforcing(adoption: Adoption) -> None:
    observe, enforce, sidecar = adoption.file("observe.yaml"), adoption.file("enforce.yaml"), adoption.sidecar
    adoption.cli("check", "--strict", "--openapi", adoption.file("api.yaml"), observe)
    tests = adoption.file("policy.tests.yml", TESTS)
    adoption.cli("test", "-c", enforce, tests)

    # No client has a key, and none is refused.
    asked = {"early": "GET /v1/streams/1", "other": "GET /v1/other", "write": "DELETE /v1/streams/1"}
    assert [adoption.ask(request, request_id=name) for name, request in asked.items()] == [200, 200, 200]
    assert [adoption.logged(name)["would_deny"] for name in asked] == ["missing_credential"] * 3
    assert adoption.logged("other")["route"] is None
    closing = adoption.cli("diff", observe, enforce, "--replay", adoption.log(), "--json", exit_code=1)["replay"]
    assert closing["changed"]["closed"]["lines"] == 3
    assert (closing["other_configuration_lines"], closing["disagreements"], closing["not_judged"]) == (0, [], {})

    # Clients get keys, with more scopes than they need, and one with too few.
    broad = sidecar.keys.issue("broad", scopes=("streams:read", "streams:write"))
    idle = sidecar.keys.issue("idle")
    since = datetime.now(UTC).isoformat()
    assert {adoption.ask("GET /v1/streams/1", broad, request_id=f"broad-{n}") for n in range(REQUESTS)} == {200}
    assert adoption.ask("GET /v1/streams/1", idle, request_id="idle") == 200
    assert "would_deny" not in adoption.logged(f"broad-{REQUESTS - 1}")
    assert adoption.logged("idle")["would_deny"] == "insufficient_scope"
    told = adoption.cli("why", "idle", "-c", observe, "--log", adoption.log())
    assert "insufficient_scope: it went on all the same" in told
    assert "it goes on, because the mode of the file is observe." in told
    closing = adoption.cli("diff", observe, enforce, "--replay", adoption.log(), "--json", exit_code=1)["replay"]
    by_key = {group["key_id"]: group["new"]["reason"] for group in closing["groups"]}
    assert by_key == {None: "missing_credential", idle.id: "insufficient_scope"}

    # Scopes are narrowed to what was used.
    store = ("--store", sidecar.keys.url)
    words = ("suggest", "-c", observe, *store, "--from", adoption.log(), "--since", since, "--json")
    keys = {key["id"]: key for key in adoption.cli(*words)["keys"]}
    assert (keys[broad.id]["suggestion"], keys[broad.id]["needed"]) == ("narrow", ["streams:read"])
    lacks = {"route": READ, "lacks": ["streams:read"], "count": 0, "observed": 1}
    assert (keys[idle.id]["suggestion"], keys[idle.id]["refused"]) == ("undecided", [lacks])
    adoption.cli("keys", "change", "-c", observe, *store, broad.id, "--scope", "streams:read")

    # One route is enforced, then all are.
    text = Path(observe).read_text(encoding="utf-8")
    adoption.serve(text.replace(f"{READ}: {{", f"{READ}: {{mode: enforce, "))
    assert [adoption.ask("GET /v1/streams/1", key) for key in (None, idle, broad)] == [401, 403, 200]
    assert adoption.ask("DELETE /v1/streams/1", broad) == 200
    adoption.serve(Path(enforce).read_text(encoding="utf-8"))
    assert adoption.ask("DELETE /v1/streams/1", broad, request_id="late") == 403
    assert sidecar.metric("sidecar_observing") == 0
    assert adoption.logged("late")["reason"] == "insufficient_scope"
    told = adoption.cli("why", "late", "-c", enforce, "--log", adoption.log())
    assert "answered      403: insufficient_scope" in told and "decides the same." in told
