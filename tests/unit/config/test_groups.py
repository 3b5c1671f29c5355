"""Quotas for every route, plans, and groups of routes that share a path and what they demand."""

import pytest

from sidecar.core.model import Policy, Route
from tests.unit.config.conftest import MINIMAL, Complaining, Loading

WORDS = (
    MINIMAL
    + """scopes: {read: R, write: W}
quotas: {general: {limit: 1, per: day}, other: {limit: 1, per: day}}
defaults: {quotas: [general]}
keys: {environments: {live: hv_live_, test: hv_test_}}
routes:
"""
)
"""Eight lines: the first route of a test stands in line 9."""

GROUP = """- path: /v1/{org}
  scopes: [read]
  tenant: org
  environments: [live]
  quotas: [{quota: other, cost: 2}]
  pass_through: false
  routes:
"""


def policy_of(routes: tuple[Route, ...], name: str) -> Policy:
    return next(route.policy for route in routes if route.name == name)


def charged(policy: Policy) -> list[tuple[str, int]]:
    return [(charge.quota.name, charge.cost) for charge in policy.charges]


def test_a_route_without_quotas_has_those_of_defaults(loading: Loading) -> None:
    routes = loading(WORDS + "- GET /a: {}\n- GET /b: {quotas: []}\n- GET /c: {quotas: [other]}\n").routes
    assert [charged(route.policy) for route in routes] == [[("general", 1)], [], [("other", 1)]]


def test_a_route_without_options_inherits_its_groups_requirements(loading: Loading) -> None:
    routes = loading(WORDS + GROUP + "  - GET: {}\n  - GET|POST /b/{id}: {}\n").routes
    assert [route.name for route in routes] == ["GET /v1/{org}", "GET|POST /v1/{org}/b/{id}"]
    assert [route.pattern for route in routes] == ["/v1/{org}", "/v1/{org}/b/{id}"]
    for route in routes:
        assert route.policy.any_scopes == {"read"}
        assert (route.policy.tenant_param, route.policy.environments) == ("org", {"live"})
        assert not route.policy.pass_through
        assert charged(route.policy) == [("other", 2)]


def test_what_a_route_says_replaces_scopes_and_quotas_and_adds_to_bindings(loading: Loading) -> None:
    routes = loading(
        WORDS
        + GROUP
        + "  - GET /a/{env}: {all_scopes: [write], environment: env, quotas: [], pass_through: true}\n"
        + "  - GET /b: {environments: [live, test]}\n"
    ).routes
    policy = routes[0].policy
    assert (policy.any_scopes, policy.all_scopes) == (set(), {"write"})
    assert (policy.tenant_param, policy.environment_param, policy.environments) == ("org", "env", {"live"})
    assert (policy.charges, policy.pass_through) == ((), True)
    assert routes[1].policy.environments == {"live"}


def test_a_group_without_quotas_has_those_of_defaults(loading: Loading) -> None:
    (one, other) = loading(
        WORDS + "- {path: /a, routes: [GET: {}]}\n- {path: /b, quotas: [], routes: [GET: {}]}\n"
    ).routes
    assert (charged(one.policy), charged(other.policy)) == ([("general", 1)], [])


def test_a_public_route_may_be_in_a_group_that_requires_nothing_of_a_key(loading: Loading) -> None:
    (route,) = loading(WORDS + "- {path: /a, quotas: [other], routes: [GET /b: {public: true}]}\n").routes
    assert route.policy.public
    assert charged(route.policy) == [("other", 1)]


WRONG = {
    "  - GET /a: {public: true}": "16:22: routes[0].routes[0].public: its group requires something of a key",
    "  - GET /a/{b}: {tenant: b}": "routes[0].routes[0].tenant: its group binds it to {org} already",
    "  - GET /a: {environments: [test]}": "routes[0].routes[0].environments: its group takes none of these",
    "  - GET /{org}: {}": "16:5: routes[0].routes[0]: a parameter stands twice in one pattern",
    "  - GET a: {}": "16:5: routes[0].routes[0]: a pattern begins with '/': write '/a'",
    "  - /a: {}": "routes[0].routes[0]: must be `METHOD /pattern`",
    "  - GET /a: {scope: [read]}": "16:14: routes[0].routes[0].scope: unknown key",
}


@pytest.mark.parametrize(("route", "expected"), WRONG.items())
def test_an_error_in_a_group_is_reported_at_its_location(problems: Complaining, route: str, expected: str) -> None:
    (line,) = problems(f"{WORDS}{GROUP}{route}\n")
    assert expected in line


WRONG_GROUP = {
    "GET /a": "9:3: routes[0]: must be a mapping, not a single value",
    "{path: a, routes: [GET: {}]}": "9:10: routes[0].path: a pattern begins with '/': write '/a'",
    "{path: '', routes: [GET /x: {}]}": "9:10: routes[0].path: is empty",
    "{path: /a/, routes: [GET: {}]}": "routes[0].path: is what the patterns of its routes begin with",
    "{path: /a/**, routes: [GET: {}]}": "routes[0].path: is what the patterns of its routes begin with",
    "{path: /a, tenant: x, routes: [GET: {}]}": "routes[0].tenant: the pattern has no {x}",
    "{path: /a, scopes: [reed], routes: [GET: {}, POST: {}]}": "routes[0].scopes[0]: unknown scope 'reed'",
    "{path: /a}": "9:3: routes[0].routes: missing: write the routes below its path, as `routes: [{GET /invoices: {}}]`",
    "{scopes: [read], routes: [GET /x: {}]}": "9:3: routes[0].path: missing: write what the paths of its",
    "{path: /a, routes: []}": "routes[0].routes: must not be empty",
    "{path: /a, public: true, routes: [GET: {}]}": "routes[0].public: unknown key",
}


@pytest.mark.parametrize(("group", "expected"), WRONG_GROUP.items())
def test_an_invalid_group_is_reported(problems: Complaining, group: str, expected: str) -> None:
    (line,) = problems(f"{WORDS}- {group}\n")
    assert expected in line


def test_a_route_of_a_group_overlaps_with_one_outside(problems: Complaining) -> None:
    (line,) = problems(WORDS + "- GET /a/b: {}\n- {path: /a, routes: [GET /b: {}]}\n")
    assert line.startswith("10:23: routes[1].routes[0]: `GET /a/b` is defined twice (")


def test_quotas_of_defaults_must_exist(problems: Complaining) -> None:
    (line,) = problems(
        MINIMAL + "quotas: {general: {limit: 1, per: day}}\ndefaults: {quotas: [genral]}\nroutes: [GET /: {}]\n"
    )
    assert "defaults.quotas[0]: unknown quota 'genral' (did you mean 'general'?)" in line


def test_a_plan_may_be_unlimited_and_the_one_of_keys_without_a_plan(loading: Loading) -> None:
    config = loading(WORDS.replace("keys: {", "keys: {default_plan: free, ").replace("routes:\n", PLANS))
    assert config.plans == {"free": {"general": 5, "other": None}}
    assert config.keys.default_plan == "free"


PLANS = "plans: {free: {general: 5, other: unlimited}}\n"


def test_a_week_is_a_period_and_an_environment_a_subject(loading: Loading) -> None:
    quota = "quotas: {weekly: {limit: 5, per: week, by: [tenant, environment]}}\n"
    found = loading(MINIMAL + quota).quotas["weekly"]
    assert (found.period, found.by) == ("week", ("tenant", "environment"))


WRONG_PLAN = {
    "keys: {default_plan: pro}": "keys.default_plan: unknown plan 'pro'",
    "quotas: {g: {limit: 5, per: day}}\nplans: {p: {g: unlimitd}}": "plans.p.g: must be a whole number",
    "quotas: {g: {limit: 5, per: day, by: environment, only: anonymous}}": "has no key, tenant or environment",
    "routes: [GET /x: {rate: 5}]": "4:19: routes[0].rate: unknown key (known are all_scopes, answer_timeout, ",
}


@pytest.mark.parametrize(("text", "expected"), WRONG_PLAN.items())
def test_an_invalid_plan_quota_or_key_is_reported(problems: Complaining, text: str, expected: str) -> None:
    (line,) = problems(f"{MINIMAL}{text}\n")
    assert expected in line


def test_a_route_may_deny_within_what_another_opens(loading: Loading) -> None:
    (group, hole) = loading(WORDS + GROUP + "  - GET /**: {}\n  - GET /x: {deny: true}\n").routes
    assert hole.policy.deny
    assert not group.policy.deny
    assert hole.policy.charges == ()


def test_a_route_that_denies_has_no_other_option(problems: Complaining) -> None:
    (line,) = problems(MINIMAL + "routes: [GET /a: {deny: true, public: true}]\n")
    assert "routes[0].public: a route that denies refuses every request" in line
