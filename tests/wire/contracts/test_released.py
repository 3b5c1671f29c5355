"""The contracts hold: what users build on is as it was released.

An intended change is recorded by `python -m pytest tests/wire/contracts --write-contracts`, and reviewed in the diff.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sidecar.cli.main import main
from tests.harness.recording import Upstream
from tests.harness.running import Sidecar, StartSidecar
from tests.harness.wire import ConnectionClosed, request_bytes
from tests.wire.contracts.outside import (
    CONFIG,
    TOKEN,
    commands,
    inlined,
    listener,
    metrics,
    schema_of,
    without_prose,
    yaml_files,
)

RELEASED = Path(__file__).parent / "released"


def holds(request: pytest.FixtureRequest, name: str, found: Any) -> None:
    """Asserts that `found` equals the released contract `name`."""
    file = RELEASED / f"{name}.json"
    if request.config.getoption("--write-contracts"):
        file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    assert json.loads(json.dumps(found)) == json.loads(file.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def used(start_shared_sidecar: StartSidecar, upstream_process: Upstream) -> Iterator[Sidecar]:
    """A sidecar that has allowed and refused requests, had a failing upstream, and served a forward-auth proxy."""
    sidecar = start_shared_sidecar(CONFIG)
    key = sidecar.keys.issue(scopes=("read",), plan="basic")
    for target, credential in (("/items/1?a=1", key), ("/items/1", key), ("/items/1", None), ("/public/1", None)):
        sidecar.ask("GET", target, key=credential)
    upstream_process.plan(b"GARBAGE\r\n\r\n")
    sidecar.ask("GET", "/public/1")
    upstream_process.plan(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npart", close=True)
    with suppress(OSError, ConnectionClosed):
        sidecar.ask("GET", "/public/1")
    sidecar.ask("GET", "/items/1", key="hv_live_wrong")
    sidecar.ask("GET", "/observed/1")
    sidecar.exchange(b"GARBAGE\r\n\r\n")
    with listener(sidecar, "decision") as proxy:
        proxy.ask("GET", "/envoy/items/1")
    revoked = sidecar.keys.issue(scopes=("read",))
    sidecar.keys.told("revoke", revoked.id)
    sidecar.ask("GET", "/items/1", key=revoked)
    yield sidecar


def test_the_schema_of_the_configuration_is_as_released(request: pytest.FixtureRequest) -> None:
    printed = CliRunner().invoke(main, ["schema"], catch_exceptions=False).output
    holds(request, "configuration", without_prose(json.loads(printed)))


def test_the_commands_and_their_options_are_as_released(request: pytest.FixtureRequest) -> None:
    holds(request, "commands", commands())


def test_the_openapi_document_is_as_released(request: pytest.FixtureRequest, used: Sidecar) -> None:
    with listener(used, "admin") as admin:
        credential = ("Authorization", f"Bearer {TOKEN}")
        found = admin.exchange(request_bytes("GET", "/api/openapi.json", [credential], host="localhost"))
    holds(request, "openapi", without_prose(inlined(found.json())))


def test_the_metrics_are_as_released(request: pytest.FixtureRequest, used: Sidecar) -> None:
    holds(request, "metrics", metrics(used))


def test_the_fields_of_a_log_line_are_as_released(request: pytest.FixtureRequest, used: Sidecar) -> None:
    line = used.logged(lambda line: "query" in line)
    refused = used.logged(lambda line: line["reason"] == "missing_credential")
    failed = used.logged(lambda line: line["reason"] == "upstream_invalid")
    cut = used.logged(lambda line: "cut" in line)
    spent = used.logged(lambda line: line["reason"] == "quota_exceeded")
    observed = used.logged(lambda line: "would_deny" in line)
    lines = (line, refused, failed, spent, observed, cut)
    shapes = [{name: type(value).__name__ for name, value in found.items()} for found in lines]
    holds(request, "log_line", shapes)


def test_the_fields_of_an_event_are_as_released(request: pytest.FixtureRequest, used: Sidecar) -> None:
    line = used.process.stderr.wait_for(lambda line: line.startswith("{"))
    assert line is not None
    event = json.loads(line)
    fixed = {name: event.pop(name) for name in ("event", "kind")}
    holds(request, "event", {**fixed, **{name: type(value).__name__ for name, value in event.items()}})


def test_the_columns_of_the_store_are_as_released(request: pytest.FixtureRequest, used: Sidecar) -> None:
    holds(request, "store", schema_of(used.keys.store))


def test_the_yaml_in_the_repository_is_as_released(request: pytest.FixtureRequest) -> None:
    holds(request, "yaml", yaml_files())
