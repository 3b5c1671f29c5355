"""A past decision as it was recorded, and today's decision."""

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.app import make_gate
from sidecar.config.build.config import Config
from sidecar.config.load import load
from sidecar.core.apikey import Hasher
from sidecar.core.errors import Reason
from sidecar.gate.explain import Line
from sidecar.rehearsal.past_decision import PastDecision, past_decision
from sidecar.rehearsal.recorded import RecordedRequest
from tests.harness.targets import CLIMBS, DISGUISES
from tests.unit.gate.world import CONFIG

KEY = {"key_id": "key_1", "key_prefix": "hv_live_abcd", "scopes": ("read",), "tenant": "acme", "environment": "live",
       "credential": "key"}  # fmt: skip


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    file = Path(tmp_path_factory.mktemp("config"), "sidecar.yaml")
    file.write_text(CONFIG, encoding="utf-8")
    return load(str(file), environ={})


def record(method: str, path: str, status: int, reason: str | None = None, **more: Any) -> RecordedRequest:
    values = {
        "time": "2026-03-01T12:00:00Z",
        "request_id": "r1",
        "client_address": "192.0.2.1",
        "config": "old",
        **more,
    }
    return RecordedRequest(method=method, path=path, status=status, reason=reason, **values)


def told(record: RecordedRequest, config: Config, **more: Any) -> PastDecision:
    hasher = Hasher([])
    return asyncio.run(
        past_decision(
            record,
            config,
            lambda keys, limiter: make_gate(config, keys, limiter, hasher),
            randbelow=random.Random(1).randrange,  # noqa: S311 - no secret is guarded
            **more,
        )
    )


def texts(lines: Any, label: str) -> list[str]:
    """The texts of the lines with this label, and of those that continue it."""
    found, current = [], ""
    for line in lines:
        current = line.label or current
        found += [line.text] if current == label else []
    return found


def test_a_refusal_is_shown_with_its_past_decision_and_todays(config: Config) -> None:
    refused = record("POST", "/items/7", 403, "insufficient_scope", route="POST /items/**", plan="pro", **KEY)
    decision = told(refused, config, missing=("write",))
    assert decision.then == [
        Line("request", "r1"), Line("time", "2026-03-01T12:00:00Z"), Line("asked", "POST /items/7"),
        Line("from", "192.0.2.1"), Line("answered", "403: insufficient_scope"), Line("route", "POST /items/**"),
        Line("key", "key_1  hv_live_abcd…"), Line("", "tenant acme, environment live, plan pro"),
        Line("scopes", "granted then: read"), Line("missing", "write"),
        Line("config", f"old; today's is {config.sha256[:3]}"),
    ]  # fmt: skip
    assert (decision.otherwise, decision.verdict) == (False, "Today's configuration decides the same.")
    assert texts(decision.now, "missing") == ["write"]
    [matches, *others] = texts(decision.now, "routes")
    assert matches.startswith("POST /items/** (") and matches.endswith(": matches")
    assert any("GET /items/**" in one and "it takes GET, HEAD, not POST" in one for one in others)


@pytest.mark.parametrize(
    ("past", "verdict"),
    [
        (record("GET", "/items/7", 403, "insufficient_scope", **KEY), "otherwise: it lets it through."),
        (record("DELETE", "/items/7", 200, route="DELETE /items/**", **KEY), "otherwise: it refuses it, no_route."),
        (record("GET", "/o/globex/e/live/x", 200, **KEY), "otherwise: it refuses it, wrong_tenant."),
        (record("GET", "/counted/x", 200, route="GET /{x}/x", **KEY), "by another route: GET /counted/**"),
        (record("GET", "/items/7", 502, "upstream_invalid", route="GET /items/**", **KEY), "same; what went wrong"),
        (record("GET", "/items/7", 401, "missing_credential"), "decides the same"),
        (record("GET", "/counted/x", 429, "quota_exceeded", quota="general", limit=3, **KEY), "limit of general: what"),
        (record("GET", "/counted/x", 429, "quota_exceeded", quota="general", limit=9, **KEY), "3 for this key, in"),
        (record("GET", "/items/x", 429, "quota_exceeded", quota="general", limit=3, **KEY), "does not count general"),
        (record("GET", "/counted/x", 429, "quota_exceeded", **KEY), "which one refused is not recorded"),
        (record("POST", "/items/x", 429, "quota_exceeded", quota="x", **KEY), "before any quota is counted: insuff"),
    ],
)  # fmt: skip
def test_the_current_decision_is_described_in_a_sentence(config: Config, past: RecordedRequest, verdict: str) -> None:
    assert verdict in told(past, config).verdict


@pytest.mark.parametrize(
    ("past", "why"),
    [
        (record("GET", "/items/7", 401, "expired_key", **KEY), "sidecar keys show key_1"),
        (record("GET", "/items/7", 401, "invalid_key"), "nobody knew the key"),
        (record("GET", "/items/7", 503, "store_unavailable"), "sidecar doctor"),
        (record("GET", "/items/7", 400, "bad_header", **KEY), "its head, which is not recorded"),
        (record("", "", 400, "bad_request"), "its head, which is not recorded"),
        (record("GET", "/items/hv_live_[redacted]", 200, **KEY), "its path is redacted"),
        (record("GET", "/" + "a" * 3000, 200, **KEY), "its path is cut"),
        (record("GET", "/items/7", 200, credential="pass_through"), "a credential that is not a key"),
        (record("GET", "/items/7", 200, config=None), "of an older version"),
        (record("OPTIONS", "/items/7", 204), "CORS"),
        (record("GET", "/items/\\udcff", 400, "bad_target", **KEY), "not recorded as they came"),
        (record("GET", "http://a.test/x", 200, **KEY), "its target is no path"),
        (record("GET", "/items/7", 408, "request_timeout"), "before it was decided on"),
    ],
)
def test_missing_data_of_a_record_is_not_guessed(config: Config, past: RecordedRequest, why: str) -> None:
    decision = told(past, config)
    assert decision.otherwise is None and decision.now == ()
    assert why in decision.verdict


def test_under_the_same_configuration_another_decision_is_put_down_to_what_is_not_recorded(config: Config) -> None:
    past = record("GET", "/items/7", 403, "insufficient_scope", **{**KEY, "config": config.sha256[:12]})
    decision = told(past, config)
    assert texts(decision.then, "config") == [f"{config.sha256[:12]}, the same as today"]
    assert decision.otherwise is None and "a header or query that is not recorded" in decision.verdict


def test_readings_that_lead_to_different_routes_are_shown_with_their_routes(config: Config) -> None:
    decision = told(record("GET", "/items/..%2fpublic/x", 400, "ambiguous_target", **KEY), config)
    assert decision.otherwise is False
    first, *_, last = texts(decision.now, "readings")
    assert first.endswith(" leads to GET /items/**") and last == "/public/x leads to GET /public/**"


USED_UP = {"quota": "video", "limit": 10, "retry_after": 60}
OBSERVED = CONFIG.replace("GET /items/**: {", "GET /items/**: {mode: observe, ").replace(
    "video: {limit: 10,", "video: {limit: 10, mode: observe,"
)


@pytest.mark.parametrize(
    ("past", "enforced", "observed"),
    [
        (
            {"would_deny": "missing_credential"},
            "otherwise: it refuses it, missing_credential.",
            "decides the same: it goes on, because the mode of the route is observe.",
        ),
        (
            {"would_deny": "insufficient_scope", **KEY, "scopes": ()},
            "otherwise: it refuses it, insufficient_scope.",
            "decides the same: it goes on, because the mode of the route is observe.",
        ),
        (
            {"would_deny": "invalid_key"},
            "otherwise: it refuses it, invalid_key.",
            "decides the same: it goes on without the wrong key, because the mode of the route is observe.",
        ),
        (
            {"would_deny": "missing_credential", **KEY},
            "otherwise: it lets it through.",
            "otherwise: it lets it through.",
        ),
        (
            {"would_deny": "quota_exceeded", "path": "/counted/x", "route": "GET /counted/**", **KEY},
            "as far as quotas allow; which one refused is not recorded.",
            "as far as quotas allow; video is only observed, because the mode of quota video is observe.",
        ),
        (
            {"would_deny": "quota_exceeded", "path": "/counted/x", "route": "GET /counted/**", **KEY, **USED_UP},
            "what is left of it decides. It is enforced today, and was only observed then.",
            "what is left of it decides. It is only observed, because the mode of quota video is observe.",
        ),
        (
            {"reason": "missing_credential", "status": 401},
            "decides the same.",
            "otherwise: it lets it go on, though it would be refused for missing_credential, because the mode of the "
            "route is observe.",
        ),
        (
            {"would_deny": "missing_credential", "reason": "upstream_invalid", "status": 502},
            "otherwise: it refuses it, missing_credential.",
            "the same; what went wrong came after it: it goes on, because the mode of the route is observe.",
        ),
    ],
)
def test_observed_requests_are_reported_with_the_reason(
    config: Config, tmp_path: Path, past: dict[str, Any], enforced: str, observed: str
) -> None:
    values = {"method": "GET", "path": "/items/7", "status": 200, "route": "GET /items/**", **past}
    request = record(**values)
    file = tmp_path / "observing.yaml"
    file.write_text(OBSERVED, encoding="utf-8")
    then, now = told(request, config), told(request, load(str(file), environ={}))
    assert then.verdict.endswith(enforced)
    assert now.verdict.endswith(observed)
    if "quota" in past:
        assert texts(now.then, "used up") == ["video of 10; free again after 60 s"]
    if "would_deny" in past:
        assert texts(now.then, "would deny") == [
            f"{past['would_deny']}: it went on all the same, because the refusal was only observed"
        ]


def test_a_response_that_was_broken_off_is_told_apart_from_a_whole_one(config: Config) -> None:
    whole = record("GET", "/items/7", 200, route="GET /items/**", **KEY)
    cut = record("GET", "/items/7", 200, route="GET /items/**", cut=True, **KEY)
    ending = "the sidecar ended the connection before the response was whole"
    assert texts(told(whole, config).then, "answered") == ["200"]
    assert texts(told(cut, config).then, "answered") == ["200", ending]


HOSTILE = st.sampled_from(
    [
        *CLIMBS,
        *DISGUISES,
        "/items/\x1b[2J",
        "/items/\u2028",
        "/items/\ud800",
        "/items/é",
        "/" * 500,
        "",
        "*",
        "/%",
        "\0",
    ]
)


@settings(max_examples=150, deadline=None)
@given(
    path=st.one_of(HOSTILE, st.text(max_size=40).map(lambda text: f"/{text}")),
    method=st.one_of(st.sampled_from(["GET", "POST", "TRACE", "get"]), st.text(max_size=8)),
    reason=st.one_of(st.none(), st.sampled_from([reason.value for reason in Reason]), st.text(max_size=5)),
    scopes=st.lists(st.text(max_size=5), max_size=2).map(tuple),
    key_id=st.one_of(st.none(), st.text(max_size=5)),
    would_deny=st.one_of(st.none(), st.sampled_from([reason.value for reason in Reason]), st.text(max_size=5)),
    environment=st.one_of(st.none(), st.sampled_from(["live", "test", "*"]), st.text(max_size=5)),
)
def test_no_record_however_forged_ends_in_an_error(config: Config, **values: Any) -> None:
    method, path, reason = values.pop("method"), values.pop("path"), values.pop("reason")
    decision = told(record(method, path, 403, reason, **values), config)
    assert decision.verdict.endswith(".")


def test_a_key_in_a_record_is_not_shown(config: Config) -> None:
    secret = "hv_live_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8s9T0abc"
    decision = told(record("GET", f"/nowhere/{secret}", 403, "no_route", request_id=secret, **KEY), config)
    assert not any(secret[10:] in line.text for line in (*decision.then, *decision.now))
