"""The route table: the most specific route wins; what conflicts or can never be reached is found."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecar.core.model import Policy
from sidecar.core.routing import RouteTable, overlaps, unreachable
from tests.unit.core.routing import UNIVERSE, conflict, most_specific, requests_of, route, routes, without_conflicts

SEGMENT = st.sampled_from(["a", "b", "{x}"])
PATTERN = st.builds(
    lambda segments, end: "/" + "/".join([*(f"{{x{i}}}" if s == "{x}" else s for i, s in enumerate(segments)), *end]),
    st.lists(SEGMENT, max_size=3),
    st.sampled_from([(), ("**",), ("",)]),
)
METHODS = st.sampled_from(["GET", "POST", "DELETE", "*"])
ROUTE = st.builds(lambda method, pattern: route(f"{method} {pattern}"), METHODS, PATTERN)
TABLE = st.lists(ROUTE, min_size=1, max_size=7)
SLOW_ORACLE = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@SLOW_ORACLE
@given(TABLE, st.randoms(use_true_random=False))
def test_the_most_specific_route_wins_whatever_the_order(table: list, shuffled: random.Random) -> None:  # type: ignore[type-arg]
    table = without_conflicts(table)
    shuffled.shuffle(table)
    compiled = RouteTable(table)
    for method, path in shuffled.sample(sorted(UNIVERSE), 150):
        match = compiled.match(method, path)
        assert (match.route if match else None) == most_specific(table, method, path), (method, path)


@SLOW_ORACLE
@given(st.lists(ROUTE, max_size=2))
def test_two_routes_overlap_exactly_where_neither_is_more_specific(table: list) -> None:  # type: ignore[type-arg]
    assert bool(overlaps(table)) == (len(table) == 2 and conflict(*table))


@SLOW_ORACLE
@given(TABLE)
def test_a_route_called_unreachable_never_answers(table: list) -> None:  # type: ignore[type-arg]
    table = without_conflicts(table)
    compiled = RouteTable(table)
    for lost, _ in unreachable(table):
        for method, path in requests_of(lost):
            match = compiled.match(method, path)
            assert match is not None
            # A path with an empty segment has another reading without it, which another route answers: that is refused.
            assert match.route != lost or "//" in path


def test_a_route_whose_requests_all_have_better_routes_is_unreachable() -> None:
    table = routes("GET /a/**", "GET /a", "GET /a/", "GET /a/{x}/**")
    assert [lost.name for lost, _ in unreachable(table)] == ["GET /a/**"]
    assert unreachable(table[:3]) == []


@pytest.mark.parametrize("method", ["CONNECT", "TRACE", "TRACE|GET"])
def test_methods_that_are_always_refused_make_a_route_unreachable(method: str) -> None:
    ((lost, why),) = unreachable(routes(f"{method} /a"))
    assert lost.pattern == "/a"
    assert "405" in why


def test_whole_segments_are_compared() -> None:
    table = RouteTable(routes("GET /public/**"))
    for path in ("/publicX", "/public.", "/public%20", "/publi", "/", "", "/PUBLIC", "/x/public", "//public"):
        assert table.match("GET", path) is None
    for path in ("/public", "/public/", "/public/x/y"):
        assert table.match("GET", path) is not None


def test_a_parameter_is_never_empty_and_never_more_than_one_segment() -> None:
    table = RouteTable(routes("GET /a/{x}"))
    assert table.match("GET", "/a/") is None
    assert table.match("GET", "/a/b/c") is None
    assert table.match("GET", "/a/b") is not None


def test_a_lookup_backtracks_from_a_literal_without_a_match() -> None:
    table = RouteTable(routes("GET /a/b/c", "GET /a/{x}/d", "GET /**"))
    for path, name in [("/a/b/d", "GET /a/{x}/d"), ("/a/b/e", "GET /**"), ("/a/b/c", "GET /a/b/c")]:
        match = table.match("GET", path)
        assert match is not None
        assert match.route.name == name


def test_get_answers_head_unless_head_has_a_route_of_its_own() -> None:
    table = routes("GET /a", "GET /b", "HEAD /b", "* /**")
    assert overlaps(table) == []
    for path, name in [("/a", "GET /a"), ("/b", "HEAD /b"), ("/c", "* /**")]:
        match = RouteTable(table).match("HEAD", path)
        assert match is not None
        assert match.route.name == name


def test_every_method_is_also_one_that_no_route_names() -> None:
    table = RouteTable(routes("* /a", "POST /a"))
    assert [match.route.name for m in ("POST", "BREW") if (match := table.match(m, "/a"))] == ["POST /a", "* /a"]


def test_a_narrower_path_under_another_method_takes_nothing_away() -> None:
    match = RouteTable(routes("GET /a/**", "DELETE /a/b")).match("GET", "/a/b")
    assert match is not None
    assert match.route.name == "GET /a/**"


def test_case_matters_only_if_configured() -> None:
    table = routes("GET /Admin/{id}")
    assert RouteTable(table).match("GET", "/admin/X") is None
    folded = RouteTable(table, case_sensitive=False)
    assert folded.match("GET", "/ADMIN/X") is not None
    assert folded.match("get", "/admin/X") is None
    assert overlaps(routes("GET /a", "GET /A"), case_sensitive=False)
    assert not overlaps(routes("GET /a", "GET /A"))


def test_very_many_overlaps_are_reported_only_in_part() -> None:
    assert 100 <= len(overlaps(routes(*["GET /a"] * 300))) < 400


def test_a_bound_value_is_reported_as_it_was_sent() -> None:
    policy = Policy(tenant_param="org", environment_param="env")
    table = RouteTable([route("GET /o/{org}/e/{env}/**", policy)], case_sensitive=False)
    match = table.match("GET", "/O/Acme/E/Live/x")
    assert match is not None
    assert (match.tenant, match.environment) == ("Acme", "Live")


def test_matches_that_bind_other_values_are_not_equal() -> None:
    table = RouteTable([route("GET /o/{org}/**", Policy(tenant_param="org"))])
    assert table.match("GET", "/o/a/x") != table.match("GET", "/o/b/x")
    assert table.match("GET", "/o/a/x") == table.match("GET", "/o/a/y")
