"""A running sidecar treats each request as `sidecar test` predicts."""

import json
import os
from pathlib import Path

import pytest

from sidecar.config.load import load
from sidecar.core.model import ApiKey, RequestHead
from sidecar.limiter.memory import MemoryLimiter
from sidecar.rehearsal.policy_tests.judge import Judge, Outcome
from sidecar.rehearsal.policy_tests.suite import Case, Suite, read_suite
from tests.harness.recording import Upstream
from tests.harness.running import EXAMPLES, Sidecar, StartSidecar
from tests.harness.wire import Response, request_bytes

OWN = frozenset({"x-request-id", "ratelimit", "x-ratelimit-remaining", "x-ratelimit-reset", "x-key-id"})
"""Properties that depend on the time, on earlier requests, or on how a key was made."""

WAY = frozenset({"x-forwarded-for", "x-forwarded-host", "x-real-ip", "forwarded"})
"""Properties that depend on addresses."""


def suite_of(name: str) -> Suite:
    file = str(EXAMPLES / f"{name}.tests.yml")
    return read_suite(
        file, config_path=None, load=lambda path, environ: load(path, environ=environ), environ=os.environ
    )


def stored(key: ApiKey) -> str:
    """A line for `keys import`. What it cannot express is not compared."""
    fields = {
        "hash": key.digest.hex(),
        "algorithm": key.algorithm,
        "prefix": key.prefix,
        "name": key.name,
        "tenant": key.tenant,
        "environment": key.environment,
        "scopes": list(key.scopes),
        "plan": key.plan,
        "metadata": dict(key.metadata),
        "enabled": key.status == "active",
    }
    return json.dumps({name: value for name, value in fields.items() if value is not None})


def is_comparable(case: Case) -> bool:
    """Whether it has no history or time of its own, and a key that can be imported."""
    key = case.key.key
    plain = case.times == 1 and not case.used and not case.after and not case.follows and case.head.method != "HEAD"
    return plain and (key is None or is_importable(key))


def is_importable(key: ApiKey) -> bool:
    return key.expires_at is None and key.retires_at is None and key.status != "revoked"


def start(start_sidecar: StartSidecar, name: str, suite: Suite, folder: Path) -> Sidecar:
    sidecar = start_sidecar(EXAMPLES / f"{name}.yaml")
    lines = folder / "keys.jsonl"
    keys = [made.key for made in suite.keys if made.key is not None and is_importable(made.key)]
    lines.write_text("\n".join(map(stored, keys)) + "\n", encoding="utf-8")
    imported = sidecar.keys.run("import", str(lines))
    assert imported.exit_code == 0, imported.output
    return sidecar


def sent(sidecar: Sidecar, head: RequestHead) -> Response:
    fields = [(name.decode(), value.decode()) for name, value in head.headers if name.lower() != b"host"]
    return sidecar.exchange(request_bytes(head.method, head.target, fields))


@pytest.mark.parametrize("name", ["hakari", "hesedvid", "hitl", "hitorino", "hoko"])
def test_a_running_sidecar_does_as_rehearsed(
    name: str, start_sidecar: StartSidecar, upstream: Upstream, tmp_path: Path
) -> None:
    suite = suite_of(name)
    judge, sidecar = Judge(suite, MemoryLimiter), start(start_sidecar, name, suite, tmp_path)
    cases = [case for case in suite.cases if is_comparable(case)]
    assert len(cases) > 15
    for case in cases:
        upstream.clear()
        outcome = judge.judge(case)
        compare(judge, outcome, sent(sidecar, case.head), upstream)


def compare(judge: Judge, outcome: Outcome, got: Response, upstream: Upstream) -> None:
    place, expected = f"{outcome.case.where} {outcome.case.name}", judge.response(outcome)
    seen = upstream.requests()
    assert bool(seen) == (outcome.forwarded is not None), place
    assert expected.status in (None, got.status), place
    if expected.body is not None and b"reset_at" not in expected.body:
        assert got.body == expected.body, place
    fields = {(field.decode().lower(), value.decode()) for field, value in expected.headers}
    mine = {(field.lower(), value) for field, value in got.headers}
    assert {field for field in fields if field[0] not in OWN} <= mine, place
    assert {field for field, _ in fields} <= {field for field, _ in mine}, place
    if outcome.forwarded is not None:
        allow, [request] = outcome.forwarded, seen
        assert request.target == allow.target, place
        told = {(field.decode().lower(), value.decode()) for field, value in allow.headers}
        reached = {(field.lower(), value) for field, value in request.headers}
        assert {field for field in told if field[0] not in OWN | WAY} <= reached, place
        assert {field for field, _ in reached} - {field for field, _ in told} <= {"host", "connection"}, place
