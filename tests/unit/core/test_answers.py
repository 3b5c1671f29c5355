"""Our own responses: problem details, challenges, configured bodies, and what an outsider may learn."""

import json
import re
from collections.abc import Mapping
from typing import Any

import pytest

from sidecar.core.error_responses import ErrorResponses, ErrorTemplate, tightest
from sidecar.core.errors import Reason, status_of
from sidecar.core.model import Allow, Deny, Response, Route, Source, StaticResponse
from sidecar.core.quotas import RateLimitFields
from tests.unit.core.samples import match, principal, state

BEARER = Source(kind="header", name="Authorization", scheme="Bearer")
HEADER = Source(kind="header", name="X-Api-Key")
RATE_LIMITS = RateLimitFields(x=True, reset="unix", ietf=True)
NOW = 3000.0


def responses(
    errors: Mapping[Reason, ErrorTemplate] | None = None, default: ErrorTemplate | None = None, *sources: Source
) -> ErrorResponses:
    return ErrorResponses(
        errors or {}, default, realm="api", sources=sources or (BEARER, HEADER), rate_limits=RATE_LIMITS
    )


def deny(reason: Reason, **changes: Any) -> Deny:
    return Deny(reason=reason, request_id="r", client_address="a", **changes)


def route(**policy: Any) -> Route:
    return match(**policy).route


def fields(response: Response) -> dict[str, str]:
    found = {name.decode().lower(): value.decode() for name, value in response.headers}
    assert len(found) == len(response.headers), "a field stands twice"
    return found


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_has_a_problem_detail_that_is_not_kept(reason: Reason) -> None:
    response = responses().for_reason(reason)
    assert response.status == status_of(reason)
    assert fields(response)["content-type"] == "application/problem+json"
    assert fields(response)["cache-control"] == "no-store"
    problem = json.loads(response.body)
    assert problem["type"] == "about:blank"
    assert problem["status"] == response.status
    assert problem["title"]
    assert re.fullmatch(r"[A-Z][A-Za-z ,;()'-]+\.(?: [A-Z][A-Za-z ,;'-]+\.)*", problem["detail"])


def test_an_outsider_cannot_find_out_what_is_wrong_with_a_key() -> None:
    told = {
        responses().denied(deny(reason), NOW)
        for reason in Reason
        if status_of(reason) == 401 and reason is not Reason.MISSING_CREDENTIAL
    }
    assert len(told) == 1
    assert json.loads(told.pop().body)["code"] == "invalid_key"


def test_each_reason_may_have_a_body_status_and_headers_of_its_own() -> None:
    configured = responses(
        {
            Reason.EXPIRED_KEY: ErrorTemplate(
                status=418, headers={"X-Why": "old"}, body={"e": "{reason}", "s": "{status}"}
            )
        }
    )
    response = configured.denied(deny(Reason.EXPIRED_KEY), NOW)
    assert response.status == 418
    assert json.loads(response.body) == {"e": "expired_key", "s": 418}
    assert fields(response)["x-why"] == "old"
    assert fields(response)["content-type"] == "application/json"
    assert json.loads(configured.denied(deny(Reason.REVOKED_KEY), NOW).body)["code"] == "invalid_key"


def test_a_default_body_is_sent_for_every_reason_not_configured() -> None:
    configured = responses({Reason.NO_ROUTE: ErrorTemplate(body={"a": 1})}, ErrorTemplate(body={"b": "{reason}"}))
    assert json.loads(configured.for_reason(Reason.NO_ROUTE).body) == {"a": 1}
    assert json.loads(configured.for_reason(Reason.BAD_TARGET).body) == {"b": "bad_target"}


def test_the_challenge_says_what_is_missing_and_what_is_wrong() -> None:
    missing = responses().denied(deny(Reason.MISSING_CREDENTIAL), NOW)
    assert fields(missing)["www-authenticate"] == 'Bearer realm="api"'
    wrong = responses().denied(deny(Reason.EXPIRED_KEY), NOW)
    assert fields(wrong)["www-authenticate"] == 'Bearer realm="api", error="invalid_token"'
    scopes = {"all_scopes": frozenset({"b"}), "any_scopes": frozenset({"a"})}
    short = responses().denied(deny(Reason.INSUFFICIENT_SCOPE, route=route(**scopes)), NOW)
    assert fields(short)["www-authenticate"] == 'Bearer realm="api", error="insufficient_scope", scope="a b"'
    assert "www-authenticate" not in fields(responses().denied(deny(Reason.NO_ROUTE), NOW))


def test_a_header_without_scheme_has_a_challenge_too() -> None:
    response = responses(None, None, HEADER).denied(deny(Reason.MISSING_CREDENTIAL), NOW)
    assert fields(response)["www-authenticate"] == 'ApiKey realm="api"'


def test_a_realm_cannot_leave_its_quotes() -> None:
    quoted = ErrorResponses({}, None, realm='a"b\\', sources=(BEARER,), rate_limits=RATE_LIMITS)
    assert fields(quoted.for_reason(Reason.INVALID_KEY))["www-authenticate"].startswith('Bearer realm="a\\"b\\\\"')


def test_an_exhausted_quota_is_reported_in_numbers() -> None:
    spent = state(limit=100, remaining=0, retry_after_seconds=600)
    body = {"count": "{quota.used}", "limit": "{quota.limit}", "left": "{quota.remaining}", "text": "of {quota.limit}"}
    configured = responses({Reason.QUOTA_EXCEEDED: ErrorTemplate(body=body)})
    response = configured.denied(deny(Reason.QUOTA_EXCEEDED, quota_states=(spent,), refused_quota=spent), NOW)
    assert response.body == b'{"count":100,"limit":100,"left":0,"text":"of 100"}'
    assert fields(response)["retry-after"] == "600"
    assert fields(response)["x-ratelimit-remaining"] == "0"


def test_too_many_failures_say_when_to_come_back_but_not_how_many() -> None:
    refused = state("failures", remaining=0, retry_after_seconds=0)
    response = responses().denied(deny(Reason.TOO_MANY_FAILURES, refused_quota=refused), NOW)
    assert response.status == 429
    assert fields(response)["retry-after"] == "1"
    assert "x-ratelimit-limit" not in fields(response)


LACKS = "The API key lacks a scope that this operation requires"
KEY = principal("a", tenant="acme")
SPENT = state("general", limit=100, remaining=0, retry_after_seconds=600)
DETAILED = {reason: ErrorTemplate(detail=True) for reason in (Reason.INSUFFICIENT_SCOPE, Reason.QUOTA_EXCEEDED)}


@pytest.mark.parametrize(
    ("scopes", "expected"),
    [
        ({"all_scopes": frozenset({"a", "c", "b"})}, "b and c."),
        ({"any_scopes": frozenset({"c", "b"})}, "b or c."),
        ({"any_scopes": frozenset({"a", "b"}), "all_scopes": frozenset({"d"})}, "d."),
    ],
)
def test_the_detail_names_the_missing_scopes_where_the_configuration_says_so(
    scopes: dict[str, Any], expected: str
) -> None:
    refused = deny(Reason.INSUFFICIENT_SCOPE, route=route(**scopes), principal=KEY)
    assert json.loads(responses(DETAILED).denied(refused, NOW).body)["detail"] == f"{LACKS}: {expected}"
    assert json.loads(responses().denied(refused, NOW).body)["detail"] == LACKS + "."


def test_the_detail_names_the_quota_that_is_used_up_to_a_valid_key_only() -> None:
    refused = deny(Reason.QUOTA_EXCEEDED, route=route(), principal=KEY, refused_quota=SPENT)
    told = json.loads(responses(DETAILED).denied(refused, NOW).body)["detail"]
    assert told == "The quota general of 100 is used up. It is fully available again at 1970-01-01T01:00:00Z."
    anonymous = deny(Reason.QUOTA_EXCEEDED, route=route(), refused_quota=SPENT)
    assert json.loads(responses(DETAILED).denied(anonymous, NOW).body)["detail"] == "The quota is used up."


def test_a_custom_body_contains_the_same_detail() -> None:
    body = {"error": {"code": "{reason}", "message": "No: {detail}"}}
    own = responses({Reason.INSUFFICIENT_SCOPE: ErrorTemplate(body=body, detail=True)}, ErrorTemplate(body=body))
    refused = deny(Reason.INSUFFICIENT_SCOPE, route=route(all_scopes=frozenset({"b"})), principal=KEY)
    assert json.loads(own.denied(refused, NOW).body)["error"]["message"] == f"No: {LACKS}: b."
    invalid = json.loads(own.denied(deny(Reason.REVOKED_KEY), NOW).body)
    assert invalid["error"]["message"] == "No: The API key is not valid."


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason not in DETAILED])
def test_no_other_reason_reveals_more(reason: Reason) -> None:
    plain, detailed = (responses(None, ErrorTemplate(detail=more)) for more in (False, True))
    refused = deny(reason, route=route(all_scopes=frozenset({"b"})), principal=KEY, refused_quota=SPENT)
    assert detailed.denied(refused, NOW) == plain.denied(refused, NOW)


def test_faults_have_retry_after_and_method_denials_have_allow() -> None:
    assert fields(responses().for_reason(Reason.STORE_UNAVAILABLE))["retry-after"] == "1"
    assert "GET" in fields(responses().for_reason(Reason.METHOD_NOT_ALLOWED))["allow"]


def allow(respond: StaticResponse | None = None, **changes: Any) -> Allow:
    return Allow(
        route=route(respond=respond),
        principal=principal(**changes),
        target="/",
        headers=(),
        host=b"h",
        request_id="r",
        client_address="a",
        quota_states=(state("wide", remaining=9), state("narrow", remaining=1, resets_at=3599.2)),
    )


def test_a_static_response_has_typed_values() -> None:
    template = {
        "id": "{key.id}",
        "scopes": "{key.scopes}",
        "plan": "{key.plan}",
        "user": "{key.metadata.user}",
        "left": "{quota.remaining}",
        "at": "{quota.reset_at}",
        "on": True,
    }
    own = StaticResponse(body=template)
    response = responses().static_response(allow(own, scopes=("a", "b"), metadata={"user": "ü"}), own, NOW)
    assert response.status == 200
    assert json.loads(response.body) == {
        "id": "key_1",
        "scopes": ["a", "b"],
        "plan": None,
        "user": "ü",
        "left": 1,
        "at": "1970-01-01T01:00:00Z",
        "on": True,
    }
    assert fields(response)["cache-control"] == "no-store"
    assert fields(response)["x-ratelimit-remaining"] == "1"


def test_values_of_a_key_cannot_leave_their_place_in_the_body() -> None:
    name = '","admin":true,"x":"\\\r\n\x00\x1b[31m\u2028é{key.id}'
    own = StaticResponse(body={"name": "{key.name}", "text": "of {key.name}", "at": "{key.retires_at}"})
    response = responses().static_response(allow(own, name=name, retires_at=1_000_000), own, NOW)
    assert json.loads(response.body) == {"name": name, "text": f"of {name}", "at": "1970-01-01T00:00:01Z"}
    assert not any(byte < 32 for byte in response.body)


def test_a_static_response_is_sent_unchanged_with_the_quotas_of_the_key() -> None:
    own = StaticResponse(status=308, headers=((b"Location", b"/v2"),), body=b"{key.id}")
    response = responses().static_response(allow(own), own, NOW)
    assert (response.status, response.body) == (308, b"{key.id}")
    assert fields(response)["location"] == "/v2"
    assert fields(response)["x-ratelimit-remaining"] == "1"


def test_a_failed_request_still_reports_the_remaining_quota() -> None:
    response = responses().fault(Reason.UPSTREAM_TIMEOUT, allow(), NOW)
    assert response.status == 504
    assert fields(response)["x-ratelimit-remaining"] == "1"


def test_the_tightest_state_has_least_left_and_then_the_lowest_limit() -> None:
    states = [state("a", remaining=3), state("b", remaining=1, limit=9), state("c", remaining=1, limit=5)]
    assert tightest(states) == states[2]
    assert tightest([]) is None


def test_only_responses_to_a_counted_request_have_fields() -> None:
    assert responses().client_headers(None, (), NOW) == ()
    assert b"RateLimit" in dict(responses().client_headers(None, (state(),), NOW))
