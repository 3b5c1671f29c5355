"""HITL, as deploy/examples/hitl.yaml has it."""

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import islice
from pathlib import Path

import pytest

from tests.harness.keys import IssuedKey
from tests.harness.recording import Upstream
from tests.harness.running import EXAMPLES, Sidecar, StartSidecar
from tests.harness.wire import Response
from tests.wire.admin.calls import OPS, Admin, admin_address

CONFIG = EXAMPLES / "hitl.yaml"
HOUR = 3600
OWNER = {"user_id": "usr_1", "email": "ana@example.com"}
PERMISSIONS = ["loops:read", "loops:write", "requests:read", "requests:write"]
RATE_LIMIT_FIELDS = ("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset")

MISSING = b'{"error":true,"msg":"Missing Authorization header"}'
MALFORMED = b"""{"error":true,"msg":"Invalid Authorization header format. Use 'Bearer <api_key>'"}"""
INVALID = b'{"error":true,"msg":"Invalid API key"}'
INACTIVE = b'{"error":true,"msg":"API key is inactive"}'
DENIED = b'{"error":true,"msg":"Access denied to this resource"}'
EXCEEDED = b'{"error":true,"msg":"API rate limit exceeded","data":{"usage_count":100,"usage_limit":100,"remaining":0}}'


@pytest.fixture(scope="module")
def sidecar(start_shared_sidecar: StartSidecar) -> Sidecar:
    return start_shared_sidecar(CONFIG)


@pytest.fixture
def key(sidecar: Sidecar) -> IssuedKey:
    return sidecar.keys.issue("Ana's agent", metadata=OWNER)


def next_hours(before: float) -> set[int]:
    """The next full hour, in Unix seconds, `before` the response and now."""
    return {int(at // HOUR + 1) * HOUR for at in (before, time.time())}


def responses(sidecar: Sidecar, key: IssuedKey, target: str = "/v1/api/loops") -> Iterator[Response]:
    """Consecutive responses on one connection."""
    with sidecar.connect() as connection:
        while True:
            yield connection.ask("GET", target, [("Authorization", f"Bearer {key.text}")])


def used_up(sidecar: Sidecar, key: IssuedKey, limit: int = 100) -> tuple[list[Response], Response]:
    """The responses of the hour in which the limit was reached, and the refusal after them."""
    passed: list[Response] = []
    for response in islice(responses(sidecar, key), 2 * limit + 1):
        if response.status == 429:
            return passed, response
        if passed and response.header("X-RateLimit-Reset") != passed[-1].header("X-RateLimit-Reset"):
            passed.clear()
        passed.append(response)
    raise AssertionError(f"{2 * limit + 1} requests passed")


@pytest.mark.requirement("T1")
def test_the_key_travels_as_bearer(sidecar: Sidecar, upstream: Upstream, key: IssuedKey) -> None:
    assert sidecar.ask("GET", "/v1/api/loops", [("Authorization", f"Bearer {key.text}")]).status == 200
    seen = upstream.last()
    assert "authorization" not in seen.names and key.text.encode() not in seen.head
    assert sidecar.ask("GET", "/v1/api/loops", [("X-Api-Key", key.text)]).status == 401
    assert upstream.requests() == []


@pytest.mark.requirement("T2")
@pytest.mark.parametrize(
    ("value", "body"),
    [
        (None, MISSING),
        ("{key}", MALFORMED),
        ("Bearer", MALFORMED),
        ("Basic {key}", MALFORMED),
        ("Token {key}", MALFORMED),
        ("Bearer nonsense", INVALID),
        ("Bearer {key}x", INVALID),
        ("Bearer hitl_0000000000000000000000000000000000000000000", INVALID),
    ],
)
def test_each_failure_has_its_own_body(
    sidecar: Sidecar, upstream: Upstream, key: IssuedKey, value: str | None, body: bytes
) -> None:
    response = sidecar.ask("GET", "/v1/api/loops", [("Authorization", value.format(key=key.text))] if value else [])
    assert (response.status, response.body, response.header("Content-Type")) == (401, body, "application/json")
    assert upstream.requests() == []


@pytest.mark.requirement("T2")
def test_a_revoked_key_is_invalid(sidecar: Sidecar, key: IssuedKey) -> None:
    sidecar.keys.told("revoke", key.id)
    response = sidecar.ask("GET", "/v1/api/loops", key=key)
    assert (response.status, response.body) == (401, INVALID)


@pytest.mark.requirement("T2")
@pytest.mark.parametrize(
    ("scopes", "method", "target"),
    [
        (("loops:read",), "POST", "/v1/api/loops"),
        (("loops:read", "loops:write"), "GET", "/v1/api/requests"),
        (("loops:read", "loops:write"), "GET", "/v1/api/loops/1/requests"),
        (("loops:read", "loops:write"), "POST", "/v1/api/loops/1/requests"),
        ((), "GET", "/v1/admin"),
        ((), "POST", "/v1/test"),
    ],
)
def test_without_access_to_the_resource(
    sidecar: Sidecar, upstream: Upstream, scopes: tuple[str, ...], method: str, target: str
) -> None:
    key = sidecar.keys.issue(scopes=scopes, metadata=OWNER)
    response = sidecar.ask(method, target, key=key)
    assert (response.status, response.body) == (403, DENIED)
    assert upstream.requests() == []


@pytest.mark.requirement("T3")
def test_a_key_is_made_inactive_and_active_again(sidecar: Sidecar, upstream: Upstream, key: IssuedKey) -> None:
    for _ in range(2):
        assert sidecar.ask("GET", "/v1/api/loops", key=key).status == 200
        sidecar.keys.told("disable", key.id)
        response = sidecar.ask("GET", "/v1/api/loops", key=key)
        assert (response.status, response.body) == (401, INACTIVE)
        sidecar.keys.told("enable", key.id)
    assert sidecar.ask("GET", "/v1/api/loops", key=key).status == 200
    assert len(upstream.requests()) == 3


@pytest.mark.requirement("T4.100")
def test_requests_per_hour_reset_at_the_full_hour(sidecar: Sidecar, key: IssuedKey) -> None:
    before = time.time()
    passed, refused = used_up(sidecar, key)
    assert [int(response.header("X-RateLimit-Remaining")) for response in passed] == list(range(99, -1, -1))
    assert {response.header("X-RateLimit-Limit") for response in (*passed, refused)} == {"100"}
    (reset,) = {int(response.header("X-RateLimit-Reset")) for response in (*passed, refused)}
    assert reset in next_hours(before) and reset % HOUR == 0
    wait = int(refused.header("Retry-After"))
    assert 1 <= wait <= HOUR and before - 1 <= reset - wait <= time.time()


@pytest.mark.requirement("T4")
def test_every_response_to_a_key_reports_its_limit(sidecar: Sidecar, upstream: Upstream, key: IssuedKey) -> None:
    reader = sidecar.keys.issue(scopes=("loops:read",), metadata=OWNER)
    upstream.plan(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n")
    asked = [(key, "GET", "/v1/api/loops", 500), (key, "GET", "/v1/test", 200), (key, "GET", "/nowhere", 403)]
    for who, method, target, status in [*asked, (reader, "POST", "/v1/api/loops", 403)]:
        before = time.time()
        response = sidecar.ask(method, target, key=who)
        assert response.status == status
        limit, remaining, reset = (int(response.header(name)) for name in RATE_LIMIT_FIELDS)
        assert limit == 100 and 98 <= remaining <= 100 and reset in next_hours(before)


@pytest.mark.requirement("T5")
def test_over_the_limit_the_body_gives_the_usage_in_numbers(
    sidecar: Sidecar, upstream: Upstream, key: IssuedKey
) -> None:
    _, refused = used_up(sidecar, key)
    passed = len(upstream.requests())
    for response in (
        refused,
        sidecar.ask("POST", "/v1/api/requests", key=key),
        sidecar.ask("GET", "/v1/test", key=key),
    ):
        assert (response.status, response.body) == (429, EXCEEDED)
    assert len(upstream.requests()) == passed
    assert sidecar.ask("GET", "/v1/api/loops", key=sidecar.keys.issue(metadata=OWNER)).status == 200


@pytest.mark.requirement("T6")
@pytest.mark.parametrize("scopes", [(), ("loops:read",)])
def test_the_sidecar_itself_describes_any_valid_key(
    sidecar: Sidecar, upstream: Upstream, scopes: tuple[str, ...]
) -> None:
    key = sidecar.keys.issue(scopes=scopes, metadata=OWNER)
    before = time.time()
    response = sidecar.ask("GET", "/v1/test", key=key)
    assert (response.status, response.header("Content-Type")) == (200, "application/json")
    told = response.json()
    reset_at = told["data"]["rate_limit"].pop("reset_at")
    assert told == {
        "error": False,
        "msg": "API key is valid",
        "data": {
            "api_key_id": key.id,
            "user_id": "usr_1",
            "email": "ana@example.com",
            "account_status": "active",
            "rate_limit": {"limit": 100, "remaining": 99},
            "permissions": list(scopes) or PERMISSIONS,
        },
    }
    assert reset_at in {datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") for at in next_hours(before)}
    assert upstream.requests() == []


@pytest.mark.requirement("T6")
def test_an_invalid_key_gets_the_401_for_its_reason(sidecar: Sidecar, key: IssuedKey) -> None:
    sidecar.keys.told("disable", key.id)
    asked = [sidecar.ask("GET", "/v1/test", key=text) for text in (None, "nonsense", key)]
    assert [(response.status, response.body) for response in asked] == [(401, MISSING), (401, INVALID), (401, INACTIVE)]


@pytest.mark.requirement("T7")
@pytest.mark.parametrize(
    "target", ["/v1/api/loops", "/v1/api/loops/1", "/v1/api/loops/1/requests/2", "/v1/api/requests"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
def test_the_users_id_and_email_reach_the_upstream(
    sidecar: Sidecar, upstream: Upstream, key: IssuedKey, method: str, target: str
) -> None:
    forged = [("X-User-Id", "usr_2"), ("x_user_email", "eve@example.com")]
    assert sidecar.ask(method, target, forged, key=key, body=b'{"a": 1}').status == 200
    seen = upstream.last()
    told = [seen.header(name) for name in ("X-User-Id", "X-User-Email", "X-Key-Id")]
    assert told == ["usr_1", "ana@example.com", key.id]
    assert (seen.method, seen.target, seen.body) == (method, target, b'{"a": 1}')
    assert b"usr_2" not in seen.head and b"eve@" not in seen.head


@pytest.mark.requirement("T8")
def test_keys_older_than_90_days_are_due(sidecar: Sidecar, key: IssuedKey) -> None:
    old = sidecar.keys.issue("Old", metadata=OWNER)
    created_at = int((time.time() - 91 * 24 * HOUR) * 1_000_000)
    with closing(sqlite3.connect(sidecar.keys.store)) as store, store:
        store.execute("UPDATE api_key SET created_at = ? WHERE id = ?", (created_at, old.id))
    due = {told["key"]["id"]: told["why"] for told in sidecar.keys.told("due")}
    assert due[old.id] == "max_age"
    assert key.id not in due


@pytest.mark.requirement("T8a")
def test_a_key_over_its_maximum_age_is_reported_once_and_is_due(start_sidecar: StartSidecar) -> None:
    config = CONFIG.read_text(encoding="utf-8") + "\nadmin: {listen: 127.0.0.1:0}\n"
    first = start_sidecar(config, environ={"SIDECAR_ADMIN_TOKEN": OPS})
    old, _ = (first.keys.issue(name, metadata=OWNER) for name in ("Old", "New"))
    first.stop()
    created_at = int((time.time() - 91 * 24 * HOUR) * 1_000_000)
    with closing(sqlite3.connect(first.keys.store)) as store, store:
        store.execute("UPDATE api_key SET created_at = ? WHERE id = ?", (created_at, old.id))
    announced: list[dict[str, object]] = []
    for _ in range(2):
        sidecar = start_sidecar(config, store=first.keys.store, environ={"SIDECAR_ADMIN_TOKEN": OPS})
        overview = Admin(address=admin_address(sidecar), token=OPS).call("GET", "overview").json
        assert [(event["kind"], event["key_id"]) for event in overview["unusual"]] == [("old_key", old.id)]
        assert [due["why"] for due in overview["due"] if due["key"]["id"] == old.id] == ["max_age"]
        assert [due["key"]["id"] for due in sidecar.keys.told("due")] == [old.id]
        sidecar.stop()
        announced += [json.loads(line) for line in sidecar.process.stderr.all() if '"kind":"old_key"' in line]
    [event] = announced
    assert (event["event"], event["key_id"], event["client_address"]) == ("unusual", old.id, "")


@pytest.mark.requirement("T8a")
def test_a_key_over_its_maximum_age_is_replaced_automatically_with_an_overlap(
    sidecar: Sidecar, upstream: Upstream, tmp_path: Path
) -> None:
    old = sidecar.keys.issue("Past its age", plan="enterprise", metadata=OWNER)
    created_at = int((time.time() - 91 * 24 * HOUR) * 1_000_000)
    with closing(sqlite3.connect(sidecar.keys.store)) as store, store:
        store.execute("UPDATE api_key SET created_at = ? WHERE id = ?", (created_at, old.id))
    replaced = sidecar.keys.told("rotate", "--due", "--into", str(tmp_path), "--overlap", "1h")["replaced"]
    [new] = [one for one in replaced if one["old"] == old.id]
    text = Path(new["file"]).read_text(encoding="utf-8").strip()
    for key in (old, text):
        assert sidecar.ask("GET", "/v1/api/loops", key=key).status == 200
    assert {seen.header("X-User-Id") for seen in upstream.requests()} == {"usr_1"}
    assert old.id not in {due["key"]["id"] for due in sidecar.keys.told("due", "--within", "0s")}


@pytest.mark.requirement("T8")
def test_a_new_key_works_while_the_old_one_does_and_the_old_one_stops_when_its_overlap_ends(
    sidecar: Sidecar, upstream: Upstream
) -> None:
    key = sidecar.keys.issue("Old", plan="enterprise", metadata=OWNER)
    new = sidecar.keys.told("rotate", key.id, "--overlap", "2s")
    assert sidecar.ask("GET", "/v1/api/loops", key=new["key"]).status == 200
    last = sidecar.ask("GET", "/v1/api/loops", key=key)
    deadline = time.monotonic() + 60
    while (response := sidecar.ask("GET", "/v1/api/loops", key=key)).status == 200 and time.monotonic() < deadline:
        last = response
    assert (response.status, response.body) == (401, INVALID)
    assert int(last.header("Deprecation").removeprefix("@")) == pytest.approx(time.time(), abs=60)
    assert parsedate_to_datetime(last.header("Sunset")).timestamp() == pytest.approx(time.time(), abs=60)
    response = sidecar.ask("GET", "/v1/api/loops", key=new["key"])
    assert (response.status, response.all("Deprecation")) == (200, [])
    assert {seen.header("X-User-Id") for seen in upstream.requests()} == {"usr_1"}


@pytest.mark.requirement("T9")
@pytest.mark.parametrize(("plan", "limit"), [("pro", 1_000), ("enterprise", 10_000)])
def test_a_plan_on_the_key_raises_its_limit(sidecar: Sidecar, key: IssuedKey, plan: str, limit: int) -> None:
    higher = sidecar.keys.issue(plan=plan, metadata=OWNER)
    told = sidecar.ask("GET", "/v1/test", key=higher)
    assert told.json()["data"]["rate_limit"]["limit"] == int(told.header("X-RateLimit-Limit")) == limit
    passed = list(islice(responses(sidecar, higher), 101))
    assert {response.status for response in passed} == {200}
    assert int(sidecar.ask("GET", "/v1/api/loops", key=key).header("X-RateLimit-Limit")) == 100


@pytest.mark.requirement("T10")
def test_access_logs_name_the_key_and_usage_by_key_is_available(sidecar: Sidecar, key: IssuedKey) -> None:
    targets = ["/v1/api/loops", "/v1/api/loops/1?secret=x", "/v1/nowhere"]
    for target in targets:
        sidecar.ask("GET", target, key=key)
    sidecar.logged(lambda line: line["key_id"] == key.id and line["path"] == "/v1/nowhere")
    lines = [line for line in map(json.loads, sidecar.process.stdout.all()) if line["key_id"] == key.id]
    told = [(line["method"], line["path"], line["status"], line["reason"], line["route"]) for line in lines]
    assert told == [
        ("GET", "/v1/api/loops", 200, None, "GET /v1/api/loops/**"),
        ("GET", "/v1/api/loops/1", 200, None, "GET /v1/api/loops/**"),
        ("GET", "/v1/nowhere", 403, "no_route", None),
    ]
    assert {line["key_prefix"] for line in lines} == {key.told["prefix"]}


@pytest.mark.requirement("T10")
def test_metrics_count_requests_and_unusual_activity(sidecar: Sidecar, key: IssuedKey) -> None:
    samples = {
        'sidecar_requests_total{code="200",method="GET",route="GET /v1/api/loops/**"}': 100,
        'sidecar_requests_total{code="429",method="GET",route="GET /v1/api/loops/**"}': 1,
        'sidecar_denied_total{reason="quota_exceeded",route="GET /v1/api/loops/**"}': 1,
        'sidecar_quota_refused_total{quota="hourly",route="GET /v1/api/loops/**"}': 1,
        'sidecar_auth_failures_total{reason="invalid_key"}': 2,
        'sidecar_auth_failures_total{reason="disabled_key"}': 1,
    }
    before = {sample: sidecar.metric(sample) for sample in samples}
    used_up(sidecar, key)
    for wrong in ("nonsense", "hitl_nonsense"):
        sidecar.ask("GET", "/v1/api/loops", key=wrong)
    sidecar.keys.told("disable", key.id)
    sidecar.ask("GET", "/v1/api/loops", key=key)
    risen = {sample: sidecar.metric(sample) - before[sample] for sample in samples}
    assert all(risen[sample] >= least for sample, least in samples.items()), risen


@pytest.mark.requirement("T7")
@pytest.mark.parametrize("metadata", [(), ("--metadata", "user_id=usr_1"), ("--metadata", "email=ana@example.com")])
def test_a_key_without_an_owner_is_not_issued(sidecar: Sidecar, metadata: tuple[str, ...]) -> None:
    refused = sidecar.keys.run("issue", "--name", "Nobody's", *metadata)
    assert refused.exit_code != 0 and "each key must have metadata" in refused.output


@pytest.mark.requirement("T1")
def test_the_endpoints_are_those_of_the_document(sidecar: Sidecar, upstream: Upstream, key: IssuedKey) -> None:
    for target in ("/v1/api/loops", "/v1/api/loops/1/requests", "/v1/api/requests", "/v1/api/requests/1"):
        assert sidecar.ask("GET", target, key=key).status == 200
        assert upstream.last().target == target
    assert [sidecar.ask("GET", target, key=key).status for target in ("/v1/loops", "/v1/requests")] == [403, 403]


@pytest.mark.requirement("T4")
def test_the_limits_of_inactive_and_expired_keys_are_reported_too(sidecar: Sidecar, key: IssuedKey) -> None:
    assert sidecar.ask("GET", "/v1/api/loops", key=key).status == 200
    sidecar.keys.told("disable", key.id)
    expired = sidecar.keys.issue(metadata=OWNER, expires="1s")
    deadline = time.monotonic() + 60
    while sidecar.ask("GET", "/v1/nowhere", key=expired).status == 403:
        assert time.monotonic() < deadline, "a key of one second still works after a minute"
    before = time.time()
    for who, left in [(key, 99), (expired, 100)]:
        response = sidecar.ask("GET", "/v1/api/loops", key=who)
        assert response.status == 401
        limit, remaining, reset = (int(response.header(name)) for name in RATE_LIMIT_FIELDS)
        assert limit == 100 and remaining == left and reset in next_hours(before)
    unknown = sidecar.ask("GET", "/v1/api/loops", key="hitl_nonsense")
    assert (unknown.status, unknown.all("X-RateLimit-Limit")) == (401, [])
