"""Whether a principal satisfies a route's policy, and the outcome of differing readings."""

from dataclasses import replace

import pytest

from sidecar.core.errors import Denied, Reason
from sidecar.core.model import EVERY, KeyStatus, Principal, StaticResponse
from sidecar.core.policy import DENIED, authorize, authorize_all_readings, check_status, missing_scopes
from sidecar.core.routing import Match
from tests.unit.core.samples import api_key, match, principal


def refusal(found: Match | None, caller: Principal | None, *, foreign: bool = False) -> Reason | None:
    try:
        authorize(found, caller, foreign=foreign)
    except Denied as denied:
        return denied.reason
    return None


def disagreement(matches: list[Match | None], caller: Principal | None) -> Reason:
    with pytest.raises(Denied) as denied:
        authorize_all_readings(matches, caller, foreign=False)
    return denied.value.reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"status": KeyStatus.REVOKED, "expires_at": 1}, Reason.REVOKED_KEY),
        ({"status": KeyStatus.DISABLED, "expires_at": 1}, Reason.DISABLED_KEY),
        ({"expires_at": 1000}, Reason.EXPIRED_KEY),
        ({"expires_at": 999}, Reason.EXPIRED_KEY),
        ({"retires_at": 1000}, Reason.RETIRED_KEY),
        ({"expires_at": 0}, Reason.EXPIRED_KEY),
    ],
)
def test_a_key_that_is_no_longer_valid_is_refused(changes: dict[str, object], reason: Reason) -> None:
    with pytest.raises(Denied) as denied:
        check_status(api_key(**changes), 1000)
    assert denied.value.reason is reason


def test_a_key_is_valid_to_the_exact_microsecond() -> None:
    check_status(api_key(expires_at=1001, retires_at=1001), 1000)
    check_status(api_key(), 10**18)


def test_an_unmatched_request_is_401_without_a_key_and_403_with_one() -> None:
    assert refusal(None, None) is Reason.MISSING_CREDENTIAL
    assert refusal(None, None, foreign=True) is Reason.MISSING_CREDENTIAL
    assert refusal(None, principal("everything")) is Reason.NO_ROUTE


def test_a_route_that_denies_refuses_as_if_no_route_named_it() -> None:
    hole = replace(match().route, policy=DENIED)
    assert refusal(Match(hole), None) is Reason.MISSING_CREDENTIAL
    assert refusal(Match(hole), None, foreign=True) is Reason.MISSING_CREDENTIAL
    assert refusal(Match(hole), principal("everything", tenant=EVERY, environment=EVERY)) is Reason.NO_ROUTE


def test_a_public_route_requires_nothing() -> None:
    assert refusal(match(public=True), None) is None
    assert refusal(match(public=True), principal()) is None


def test_a_route_without_demands_still_asks_for_a_key() -> None:
    assert refusal(match(), None) is Reason.MISSING_CREDENTIAL
    assert refusal(match(), principal()) is None


def test_a_foreign_credential_passes_only_if_the_route_allows_it() -> None:
    assert refusal(match(all_scopes=frozenset({"a"})), None, foreign=True) is None
    assert refusal(match(pass_through=False), None, foreign=True) is Reason.INVALID_KEY
    assert refusal(match(respond=StaticResponse()), None, foreign=True) is Reason.INVALID_KEY


@pytest.mark.parametrize("public", [True, False])
def test_a_route_for_sessions_only_refuses_every_key(public: bool) -> None:
    sessions = match(public=public, refuses_keys=Reason.KEY_NOT_ACCEPTED)
    assert refusal(sessions, principal(EVERY, "everything")) is Reason.KEY_NOT_ACCEPTED
    assert refusal(sessions, None, foreign=True) is None
    assert refusal(sessions, None) is (None if public else Reason.MISSING_CREDENTIAL)
    unslashed = match(name="slashed", public=True)._replace(unslashed=sessions)
    assert refusal(unslashed, principal("everything")) is Reason.KEY_NOT_ACCEPTED


@pytest.mark.parametrize(
    ("held", "missing"),
    [
        ((), {"a", "b", "x", "y"}),
        (("x", "y"), {"a", "b"}),
        (("a", "x"), {"y"}),
        (("a", "b"), {"x", "y"}),
        (("b", "x", "y"), set()),
    ],
)
def test_scopes_are_any_of_the_one_kind_and_all_of_the_other(held: tuple[str, ...], missing: set[str]) -> None:
    demanded = match(any_scopes=frozenset("ab"), all_scopes=frozenset("xy"))
    assert missing_scopes(demanded.route.policy, frozenset(held)) == missing
    assert refusal(demanded, principal(*held)) is (Reason.INSUFFICIENT_SCOPE if missing else None)


@pytest.mark.parametrize(
    ("tenant", "bound", "reason"),
    [
        ("acme", "acme", None),
        ("*", "acme", None),
        ("acme", "Acme", Reason.WRONG_TENANT),
        ("acme", "other", Reason.WRONG_TENANT),
        ("acme", "*", Reason.WRONG_TENANT),
        (None, "acme", Reason.WRONG_TENANT),
        (None, "", Reason.WRONG_TENANT),
        ("", "acme", Reason.WRONG_TENANT),
    ],
)
def test_the_tenant_of_the_path_is_that_of_the_key(tenant: str | None, bound: str, reason: Reason | None) -> None:
    assert refusal(match(tenant=bound, tenant_param="org"), principal(tenant=tenant)) is reason


@pytest.mark.parametrize(
    ("environment", "reason"),
    [("live", None), ("*", None), ("test", Reason.WRONG_ENVIRONMENT), (None, Reason.WRONG_ENVIRONMENT)],
)
def test_the_environment_is_bound_by_the_path_or_by_the_route(environment: str | None, reason: Reason | None) -> None:
    caller = principal(environment=environment)
    assert refusal(match(environment="live", environment_param="env"), caller) is reason
    assert refusal(match(environments=frozenset({"live"})), caller) is reason


PUBLIC = match(name="public", public=True)
ADMIN = match(name="admin", all_scopes=frozenset({"admin"}))
READ = match(name="read", all_scopes=frozenset({"read"}))


def test_readings_that_lead_to_one_route_are_decided_by_it() -> None:
    assert authorize_all_readings([READ, READ], principal("read"), foreign=False) is READ
    assert disagreement([READ, READ], principal()) is Reason.INSUFFICIENT_SCOPE


@pytest.mark.parametrize("scopes", [(), ("read",), ("read", "admin")])
@pytest.mark.parametrize("others", [[ADMIN], [None], [PUBLIC, ADMIN], [READ]])
def test_readings_of_which_one_is_public_and_another_is_not_are_ambiguous(
    scopes: tuple[str, ...], others: list[Match | None]
) -> None:
    for caller in (None, principal(*scopes)):
        assert disagreement([PUBLIC, *others], caller) is Reason.AMBIGUOUS_TARGET
        assert disagreement([*others, PUBLIC], caller) is Reason.AMBIGUOUS_TARGET


def test_readings_that_are_all_allowed_but_by_other_routes_are_ambiguous() -> None:
    assert disagreement([READ, ADMIN], principal("read", "admin")) is Reason.AMBIGUOUS_TARGET


def test_readings_that_are_all_refused_with_one_status_are_refused_with_it() -> None:
    assert disagreement([None, ADMIN], principal("read")) is Reason.NO_ROUTE
    assert disagreement([ADMIN, None], principal("read")) is Reason.INSUFFICIENT_SCOPE
    assert disagreement([None, ADMIN, READ], None) is Reason.MISSING_CREDENTIAL


def test_one_route_gives_two_tenants_two_responses() -> None:
    mine, theirs = match(tenant="acme", tenant_param="org"), match(tenant="other", tenant_param="org")
    assert disagreement([mine, theirs], principal(tenant="acme")) is Reason.AMBIGUOUS_TARGET
    assert disagreement([mine, theirs], principal(tenant="*")) is Reason.AMBIGUOUS_TARGET
    assert disagreement([mine, theirs], principal(tenant="third")) is Reason.WRONG_TENANT
