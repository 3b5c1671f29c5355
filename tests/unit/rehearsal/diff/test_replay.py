"""Recorded requests, judged under two configurations: by the gate's own steps, and within bounds."""

from collections.abc import AsyncIterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from sidecar.core.errors import Reason
from sidecar.core.model import ApiKey, Deny
from sidecar.rehearsal.diff.outcomes import Caller, Judge, parsed
from sidecar.rehearsal.diff.replay import Disagreement, Replay
from sidecar.rehearsal.recorded import RecordedRequest
from tests.harness.targets import CLIMBS, DISGUISES, MALFORMED, OTHER_CLIMBS, OVERLONG, TWICE_DECODED
from tests.unit.gate.world import CONFIG, World, make_world
from tests.unit.rehearsal.diff.configuring import KEYS, SCOPES, Configured

OLD = """\
- GET /items/**: {scopes: [read]}
- GET /open/**: {public: true}
- POST /jobs: {scopes: [write], quotas: [few]}
"""
NEW = """\
- GET /items/**: {scopes: [admin]}
- GET /items/free: {public: true}
- GET /open/**: {public: true}
- POST /jobs: {scopes: [write], quotas: [few]}
"""
MORE = KEYS + SCOPES + "quotas: {few: {limit: 3, per: hour}}\n"


def recorded(method: str = "GET", path: str = "/items/1", status: int = 200, **values: Any) -> RecordedRequest:
    keyed: dict[str, Any] = {"key_id": "key_1", "scopes": ("read",), "credential": "key", "config": "3f2a91c0bd12"}
    return RecordedRequest(method=method, path=path, status=status, **{**keyed, **values})


def anonymous(path: str = "/items/1", status: int = 401, **values: Any) -> RecordedRequest:
    return recorded(**{"path": path, "status": status, "key_id": None, "scopes": (), "credential": None, **values})


@pytest.fixture
def configured(tmp_path: Path) -> Configured:
    return Configured(tmp_path)


@pytest.fixture
def replay(configured: Configured) -> Replay:
    return Replay(configured(OLD, MORE), configured(NEW, MORE))


def kinds(replay: Replay) -> dict[str, int]:
    return {kind: count.lines for kind, count in replay.changed.items()}


def test_requests_whose_outcome_changes_are_counted_by_key_route_and_reason(replay: Replay) -> None:
    for number in range(5):
        replay.add(recorded(path=f"/items/{number}", request_id=f"r{number}"))
    replay.add(recorded(path="/items/1", key_id="key_2"))
    replay.add(anonymous(path="/items/free", reason="missing_credential"))
    replay.add(anonymous(path="/items/1", reason="missing_credential"))
    assert kinds(replay) == {"opened": 1, "closed": 6, "refused otherwise": 0}
    rows = [(key.kind, key.key_id, key.old[:2], key.new[:2], group.count.lines) for key, group in replay.ordered()]
    free, items = "GET /items/free", "GET /items/**"
    assert rows == [
        ("opened", None, (Reason.MISSING_CREDENTIAL, items), (None, free), 1),
        ("closed", "key_1", (None, items), (Reason.INSUFFICIENT_SCOPE, items), 5),
        ("closed", "key_2", (None, items), (Reason.INSUFFICIENT_SCOPE, items), 1),
    ]
    assert [example.request_id for example in replay.ordered()[1][1].examples] == ["r0", "r1", "r2"]


def test_an_example_contains_no_key_no_query_and_at_most_one_line(replay: Replay) -> None:
    key = "hv_live_" + "aB3" * 14
    replay.add(recorded(path=f"/items/{key}?token=hidden", request_id=key, time="t" * 5_000))
    [(_, group)] = replay.ordered()
    [example] = group.examples
    assert example.path == "/items/hv_live_[redacted]" and example.request_id == "hv_live_[redacted]"
    assert len(example.time) <= 201


def test_a_refusal_for_another_reason_is_neither_opened_nor_closed(configured: Configured) -> None:
    replay = Replay(configured(OLD, MORE), configured("- GET /a: {}\n", MORE))
    replay.add(recorded(path="/items/1", scopes=("admin",), status=403, reason="insufficient_scope"))
    assert kinds(replay) == {"opened": 0, "closed": 0, "refused otherwise": 1}


NOT_JUDGED = {
    "redacted": [recorded(path="/items/hv_live_[redacted]")],
    "cut": [recorded(path="/" + "a" * 2047)],
    "wrong key": [
        recorded(status=401, reason="revoked_key"),
        anonymous(reason="invalid_key"),
        anonymous(status=429, reason="too_many_failures"),
    ],
    "malformed": [anonymous(status=400, reason="bad_header"), anonymous(status=400, reason="bad_target")],
    "fault": [anonymous(status=503, reason="store_unavailable")],
    "preflight": [anonymous(path="*", status=204, method="OPTIONS"), anonymous(status=204, method="OPTIONS")],
    "without scopes": [recorded(scopes=(), config=None)],
    "unknown reason": [recorded(status=418, reason="of_a_later_version")],
}


@pytest.mark.parametrize(("why", "requests"), NOT_JUDGED.items(), ids=NOT_JUDGED)
def test_requests_without_enough_detail_are_counted_as_not_judged(
    replay: Replay, why: str, requests: list[RecordedRequest]
) -> None:
    for request in requests:
        replay.add(request)
    assert replay.not_judged == {why: len(requests)}
    assert replay.judged.lines == 0 and not any(kinds(replay).values())


PASSED = [
    recorded(),
    recorded(status=404),
    recorded(status=429, reason="quota_exceeded"),
    recorded(status=502, reason="upstream_invalid"),
    recorded(status=101, reason="revoked_key"),
    recorded(config=None),
]


@pytest.mark.parametrize("request_", PASSED)
def test_a_request_that_the_policy_allowed_counts_as_allowed_despite_later_refusals(
    replay: Replay, request_: RecordedRequest
) -> None:
    replay.add(request_)
    assert kinds(replay)["closed"] == 1
    assert replay.disagreements == {}


def test_a_log_of_another_configuration_is_recognised_by_outcomes_and_hash(configured: Configured) -> None:
    old = configured(OLD, MORE)
    replay = Replay(old, configured(NEW, MORE))
    replay.add(recorded(scopes=("write",), config=old.sha256[:12]))
    replay.add(recorded(scopes=(), status=200))
    replay.add(recorded(path="/other", status=403, reason="no_route"))
    assert {pair: group.count.lines for pair, group in replay.disagreements.items()} == {
        Disagreement(None, Reason.INSUFFICIENT_SCOPE): 1
    }
    assert replay.elsewhere == 2


def test_lines_of_a_sample_represent_those_left_out(replay: Replay) -> None:
    for _ in range(3):
        replay.add(recorded(sampled=0.1))
    replay.add(recorded(status=429, reason="quota_exceeded"))
    assert replay.sampled
    assert (replay.changed["closed"].lines, round(replay.changed["closed"].requests)) == (4, 31)


def test_a_credential_that_passes_through_is_judged_as_such(configured: Configured) -> None:
    passing = MORE.replace("}}", "}, pass_through: [{header: X-Session}]}", 1)
    replay = Replay(configured(OLD, passing), configured(OLD, MORE))
    replay.add(recorded(key_id=None, scopes=(), credential="pass_through"))
    assert kinds(replay)["closed"] == 1
    [(key, _)] = replay.ordered()
    assert key.pass_through and key.new.reason is Reason.MISSING_CREDENTIAL


def test_what_a_replay_holds_is_bounded(replay: Replay) -> None:
    for number in range(12_000):
        replay.add(recorded(path=f"/items/{number}", key_id=f"key_{number}", config=f"{number:012}"))
    assert len(replay.groups) == 10_000
    assert (replay.beyond.lines, replay.changed["closed"].lines, replay.elsewhere) == (2_000, 12_000, 12_000)


# The judge, held against the gate itself.

PATHS = [
    "/public/x", "/items", "/items/", "/items/1", "/items/1/", "/counted/x", "/me", "/me/", "/signin", "/sessions/1",
    "/o/acme/e/live/x", "/o/acme/e/test/x", "/o/other/e/live", "/live/x", "/named/x", "/none", "/",
    "http://api.test/items/1", "items/1",
]  # fmt: skip
SPELLINGS = [*CLIMBS, *DISGUISES, *OTHER_CLIMBS, *OVERLONG, *TWICE_DECODED, *(f"/items/{tail}" for tail in MALFORMED)]
METHODS = ["GET", "POST", "DELETE", "get", "LIST", "TRACE"]


def observed(reason: str, path: str = "/items/1", **values: Any) -> RecordedRequest:
    return anonymous(path, 200, would_deny=reason, **values)


def test_an_observed_request_would_be_refused_once_enforced(configured: Configured) -> None:
    observing = configured(OLD, f"mode: observe\n{MORE}")
    replay = Replay(observing, configured(OLD, MORE))
    config = observing.sha256[:12]
    for line in (
        observed("missing_credential", config=config),
        observed("invalid_key", config=config),
        observed("invalid_key", "/open/1", config=config),
        observed("no_route", "/nowhere", key_id="key_1", credential="key", config=config),
        recorded(scopes=(), would_deny="insufficient_scope", config=config),
        recorded("POST", "/jobs", scopes=("write",), would_deny="quota_exceeded", config=config),
        recorded(config=config),
    ):
        replay.add(line)
    found = {(key.old.would_deny, key.new.reason, key.new.route) for key, _ in replay.ordered()}
    items = "GET /items/**"
    assert found == {
        (Reason.MISSING_CREDENTIAL, Reason.MISSING_CREDENTIAL, items),
        (Reason.INVALID_KEY, Reason.INVALID_KEY, items),
        (Reason.INVALID_KEY, Reason.INVALID_KEY, "GET /open/**"),
        (Reason.NO_ROUTE, Reason.NO_ROUTE, None),
        (Reason.INSUFFICIENT_SCOPE, Reason.INSUFFICIENT_SCOPE, items),
    }
    assert kinds(replay) == {"opened": 0, "closed": 5, "refused otherwise": 0}
    assert (replay.elsewhere, replay.disagreements, replay.not_judged, replay.over_quota) == (0, {}, {}, 1)


def test_wrong_keys_are_judged_where_they_are_observed_and_only_there(configured: Configured) -> None:
    enforcing, observing = configured(OLD, MORE), configured(OLD, f"mode: observe\n{MORE}")
    line = anonymous(reason="invalid_key", credential="key")
    opening, same = Replay(enforcing, observing), Replay(enforcing, enforcing)
    opening.add(line)
    same.add(line)
    assert (kinds(opening)["opened"], opening.not_judged) == (1, {})
    assert (kinds(same)["opened"], same.not_judged) == (0, {"wrong key": 1})


def test_a_preflight_that_was_answered_while_all_was_observed_is_not_judged(configured: Configured) -> None:
    replay = Replay(configured(OLD, f"mode: observe\n{MORE}"), configured(OLD, MORE))
    replay.add(recorded("OPTIONS", "/items/1", 204, key_id=None, scopes=(), credential=None))
    replay.add(observed("missing_credential", method="OPTIONS"))
    assert (replay.not_judged, kinds(replay)["closed"]) == ({"preflight": 1}, 1)


UNCOUNTED = (
    CONFIG.replace("limit: 3, per: hour", "limit: 1000000, per: hour")
    .replace("limit: 10,", "limit: 1000000,")
    .replace("failures: {limit: 3, per: minute}", "failures: off")
    .replace("limit: 2, per: minute", "limit: 1000000, per: minute")
)
UPSTREAM = "upstream: {url: 'http://127.0.0.1:1', strip_prefix: /items}"
OBSERVED = UNCOUNTED.replace("read: Read", "read: {mode: observe}").replace(
    "GET /counted/**: {", "GET /counted/**: {mode: enforce, "
)
CONFIGS = {
    "an observed scope": OBSERVED,
    "all observed": f"mode: observe\n{OBSERVED}",
    "plain": UNCOUNTED,
    "with a prefix": UNCOUNTED.replace("upstream: http://127.0.0.1:1", UPSTREAM),
}


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS)
async def world(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    made = await make_world(tmp_path, request.param)
    yield made
    await made.store.close()


async def test_the_judge_decides_like_the_gate_except_for_quotas(world: World) -> None:
    keys = [await world.issue(*scopes, tenant="acme") for scopes in ((), ("read",), ("write",))]
    judge, reasons = Judge(world.gate.config), set()
    callers: list[tuple[str, ApiKey | None, dict[str, str]]] = [(text, key, {}) for text, key in keys]
    callers += [("", None, {}), ("", None, {"Cookie": "session=1"}), ("hv_live_short", None, {})]
    asked = product([*PATHS, *(spelling.partition("?")[0] for spelling in SPELLINGS)], METHODS, callers)
    for path, method, (text, key, headers) in asked:
        decision = await world.decide(method, path, key=text, **headers)
        wrong_key = Reason.INVALID_KEY if text and key is None else None
        principal = judge.principal(of_key(key))
        outcome = judge.judge(method, parsed(path), Caller(principal, bool(headers), wrong_key))
        reason = decision.reason if isinstance(decision, Deny) else None
        route = None if decision.route is None else decision.route.name
        seen = None if isinstance(decision, Deny) or decision.would_deny is None else decision.would_deny.reason
        assert outcome == (reason, route, seen), (method, path, key, headers)
        reasons.add(reason)
    assert len(reasons) > 6


def of_key(key: ApiKey | None) -> RecordedRequest:
    if key is None:
        return anonymous()
    named = {"key_id": key.id, "key_prefix": key.prefix}
    return recorded(**named, tenant=key.tenant, environment=key.environment, scopes=key.scopes)
