"""Segments with fixed text around a parameter, and overlaps that a third route resolves."""

import random
import sys
from collections import Counter

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from sidecar.core.model import Policy, Route
from sidecar.core.routing import RouteTable, overlaps, unreachable
from tests.unit.core.routing import PATHS, conflict, most_specific, paths_of, route, routes

SEGMENT = st.sampled_from(["{}", "a{}", "{}b", "a{}b", "{}:b", "a", "ab"])
PATTERN = st.builds(
    lambda segments, end: "/" + "/".join([*(s.replace("{}", f"{{x{i}}}") for i, s in enumerate(segments)), *end]),
    st.lists(SEGMENT, max_size=2),
    st.sampled_from([(), ("**",), ("",)]),
)
ROUTE = st.builds(
    lambda method, pattern: route(f"{method} {pattern}"),
    st.sampled_from(["GET", "*", "GET|POST", "HEAD"]),
    PATTERN,
)
SLOW_ORACLE = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
COLONS = [path for path in PATHS if ":" in path]
MOST_ROUTES = 30


def resolved(table: list[Route]) -> list[Route]:
    """The table with each route once, and with the routes that resolve its overlaps."""
    while found := overlaps(table):
        lost = [overlap.other for overlap in found if not overlap.missing]
        added = [route(name) for overlap in found for name in overlap.missing]
        table = [one for one in table if not any(one is other for other in lost)] + added
        assume(len(table) <= MOST_ROUTES)
    return table


def answer(table: RouteTable, method: str, path: str) -> str | None:
    match = table.match(method, path)
    return match.route.name if match else None


@SLOW_ORACLE
@given(st.lists(ROUTE, min_size=2, max_size=8), st.randoms(use_true_random=False))
def test_the_match_is_that_of_trying_every_route_most_specific_first(
    table: list[Route], shuffled: random.Random
) -> None:
    table = resolved(table)
    shuffled.shuffle(table)
    compiled = RouteTable(table)
    matched = Counter(path for one in table for path in paths_of(one.pattern))
    disputed = sorted(path for path, number in matched.items() if number > 1)
    paths = [*shuffled.sample(PATHS, 40), *shuffled.sample(COLONS, 30), *disputed[:: len(disputed) // 60 + 1]]
    for method, path in ((shuffled.choice(("GET", "HEAD", "POST", "PURGE")), path) for path in paths):
        match = compiled.match(method, path)
        assert (match.route if match else None) == most_specific(table, method, path), (method, path)


@SLOW_ORACLE
@given(st.lists(ROUTE, min_size=2, max_size=2))
def test_two_routes_overlap_exactly_where_neither_is_more_specific(table: list[Route]) -> None:
    assert bool(overlaps(table)) == conflict(*table)


VERBS = RouteTable(
    routes("POST /jobs/{id}", "POST /jobs/{id}:cancel", "GET /{kind}/{id}/logs", "GET /jobs/{id}/**", "* /files/{id}")
)


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("POST", "/jobs/5", "POST /jobs/{id}"),
        ("POST", "/jobs/5:cancel", "POST /jobs/{id}:cancel"),
        ("POST", "/jobs/5:purge", None),
        ("POST", "/jobs/5:", None),
        ("POST", "/jobs/:cancel", None),
        ("POST", "/jobs/5:purge:cancel", None),
        ("GET", "/jobs/5:cancel/logs", None),
        ("GET", "/jobs/5/logs", "GET /jobs/{id}/**"),
        ("GET", "/films/5:b/logs", "GET /{kind}/{id}/logs"),
        ("GET", "/files/urn:isbn:5", "* /files/{id}"),
    ],
)
def test_a_parameter_cannot_have_a_verb_if_a_sibling_has_one(method: str, path: str, expected: str | None) -> None:
    assert answer(VERBS, method, path) == expected


def test_a_colon_is_an_ordinary_character_if_so_configured() -> None:
    table = RouteTable(routes("POST /jobs/{id}", "POST /jobs/{id}:cancel"), colon_verbs=False)
    assert answer(table, "POST", "/jobs/5:purge") == "POST /jobs/{id}"
    assert answer(table, "POST", "/jobs/5:purge:cancel") == "POST /jobs/{id}:cancel"


def test_a_rest_takes_what_a_parameter_leaves() -> None:
    table = RouteTable(routes("POST /jobs/{id}", "POST /jobs/{id}:cancel", "* /**"))
    assert answer(table, "POST", "/jobs/5:purge") == "* /**"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/x/y.json", "GET /x/{n}.json"),
        ("/x/.json", "GET /x/{n}"),
        ("/x/a-b-1", "GET /x/a-b-{n}"),
        ("/x/a-1", "GET /x/a-{n}"),
        ("/x/a-1.json", "GET /x/a-{n}.json"),
        ("/x/y", "GET /x/{n}"),
        ("/x/", None),
    ],
)
def test_the_most_fixed_text_wins(path: str, expected: str | None) -> None:
    table = routes(
        "GET /x/{n}", "GET /x/{n}.json", "GET /x/a-{n}", "GET /x/a-b-{n}", "GET /x/a-{n}.json", "GET /x/a-.json",
        "GET /x/a-b-{n}.json", "GET /x/a-b-.json",
    )  # fmt: skip
    assert overlaps(table) == []
    assert answer(RouteTable(table), "GET", path) == expected


def test_what_a_policy_binds_is_the_parameter_without_its_fixed_text() -> None:
    table = RouteTable([route("GET /org-{org}.json", Policy(tenant_param="org"))], case_sensitive=False)
    match = table.match("GET", "/ORG-Acme.json")
    assert match is not None
    assert match.tenant == "Acme"


def test_a_third_route_for_just_what_two_share_resolves_them() -> None:
    table = routes("GET /v1/{n}", "GET /v1/p/**")
    ((one, other, missing),) = overlaps(table)
    assert (one.name, other.name, missing) == ("GET /v1/{n}", "GET /v1/p/**", ("GET /v1/p",))
    table += routes("GET /v1/p")
    assert overlaps(table) == []
    assert unreachable(table) == []
    assert answer(RouteTable(table), "GET", "/v1/p") == "GET /v1/p"


def test_a_third_route_resolves_for_its_own_methods_only() -> None:
    table = routes("* /{a}/x", "* /y/{b}", "GET /y/x")
    assert [overlap.missing for overlap in overlaps(table)] == [("* /y/x",)]
    table = routes("GET|POST /{a}/x", "* /y/{b}", "GET /y/x")
    assert [overlap.missing for overlap in overlaps(table)] == [("POST /y/x",)]


def test_a_named_method_on_a_wider_pattern_leaves_the_narrower_path_to_every_method() -> None:
    table = routes("GET /v1/**", "* /v1/x/**", "HEAD /**")
    assert overlaps(table) == []
    compiled = RouteTable(table)
    assert answer(compiled, "GET", "/v1/x/1") == "* /v1/x/**"
    assert answer(compiled, "GET", "/v1/y") == "GET /v1/**"
    assert answer(compiled, "HEAD", "/v1/y") == "GET /v1/**"


def calls_of_a_lookup(count: int) -> int:
    table = RouteTable(
        routes(*[f"GET /x/p{i:05}-{{n}}.json" for i in range(count)], "POST /x/{id}:stop", "GET /{y}/**")
    )
    calls = 0

    def called(*_: object) -> None:
        nonlocal calls
        calls += 1

    sys.setprofile(called)
    table.match("GET", "/x/p00001-7.json")
    table.match("GET", "/x/7:stop")
    sys.setprofile(None)
    return calls


def test_a_lookup_takes_as_many_steps_however_many_routes_there_are() -> None:
    assert calls_of_a_lookup(2) == calls_of_a_lookup(2000)
