import pytest

from sidecar.core.model import StaticResponse
from tests.unit.config.conftest import MINIMAL, Complaining, Loading

WORDS = "scopes: {read: R, write: W}\nquotas: {general: {limit: 1, per: day}}\nroutes:\n"
"""Three lines: the first route of a test stands in line 7."""

WRONG = {
    "get /x: {}": "7:3: routes[0]: 'get' is not a method: the case counts (did you mean 'GET'?)",
    "POST|m-Search /x: {}": "routes[0]: 'm-Search' is not a method: the case counts (did you mean 'M-SEARCH'?)",
    "G* /x: {}": "7:3: routes[0]: 'G*' is not a method: a method is one word, as clients send it",
    "GET,PUT /x: {}": "7:3: routes[0]: 'GET,PUT' is not a method",
    "LIST|list /x: {}": "7:3: routes[0]: 'list' and 'LIST' (`LIST|list /x`, ",
    "GET|* /x: {}": "7:3: routes[0]: '*' is every method already",
    "/x: {}": "`METHOD|METHOD /pattern` or `* /pattern` (did you mean '* /x'?)",
    "GET: {}": "7:3: routes[0]: must be `METHOD /pattern`",
    "GET /a b: {}": "7:3: routes[0]: must be `METHOD /pattern`",
    "GET x: {}": "7:3: routes[0]: a pattern begins with '/'",
    "GET /a/**/b: {}": "7:3: routes[0]: '**' stands for the rest",
    "TRACE /x: {}": "7:3: routes[0]: `TRACE /x` is never reached",
    "GET /x:": "7:10: routes[0]: must be a mapping, not nothing (write {} for an empty mapping",
    "GET /x: {public: true, scopes: [read]}": "routes[0].scopes: a public route accepts requests without a key",
    "GET /x/{a}: {public: true, tenant: a}": "routes[0].tenant: a public route accepts requests without a key",
    "GET /x/{project}: {tenant: projct}": "routes[0].tenant: the pattern has no {projct} (did you mean 'project'?)",
    "GET /x/{env}: {environment: e}": "routes[0].environment: the pattern has no {e}",
    "GET /x: {environments: [lve]}": "routes[0].environments[0]: unknown environment 'lve' (did you mean 'live'?)",
    "GET /x: {scopes: [read, wrte]}": "7:27: routes[0].scopes[1]: unknown scope 'wrte' (did you mean 'write'?)",
    "GET /x: {all_scopes: ['x:*']}": "routes[0].all_scopes[0]: 'x:*' can be granted to a key",
    "GET /x: {scopes: []}": "routes[0].scopes: must not be empty",
    "GET /x: {scopes: }": "routes[0].scopes: must be a list, not nothing",
    "GET /x: {scope: [read]}": "7:12: routes[0].scope: unknown key (did you mean 'scopes'?)",
    "GET /x: {quotas: [genral]}": "routes[0].quotas[0]: unknown quota 'genral' (did you mean 'general'?)",
    "GET /x: {quotas: [general, general]}": "routes[0].quotas[1]: the quota 'general' is listed twice",
    "GET /x: {quotas: [{quota: general, cost: 0}]}": "routes[0].quotas[0].cost: must be at least 1",
    "GET /x: {respond: {a: '{key.idd}'}}": "routes[0].respond.a: unknown placeholder '{key.idd}'",
    "GET /x: {public: true, respond: {a: ['{key.id}']}}": "respond.a[0]: `{key.id}` needs a key, but a public",
    "GET /x: {public: true, response: {body: '{quotas}'}}": "response.body: `{quotas}` needs a key, but a public",
    "GET /x: {cache: shared, respond: {a: '{key.name}'}}": "respond.a: `{key.name}` differs by key, but `cache: sh",
    "GET /x: {respond: {a: 'left: {quotas}'}}": "routes[0].respond.a: `{quotas}` is a list: it must be the whole text",
    "GET /x: {respond: {a: '{quota}'}}": "unknown placeholder '{quota}' (did you mean 'quotas'?)",
    "GET /x: {respond: }": "routes[0].respond: is empty: leave it out",
    "GET /x: {respond: {a: b}, response: {body: c}}": "routes[0].respond: is the body of a response, and `response`",
    "GET /x: {response: {body: '{key.idd}'}}": "routes[0].response.body: unknown placeholder '{key.idd}'",
    "GET /x: {response: {status: 101}}": "routes[0].response.status: must be at least 200",
    "GET /x: {response: {status: 204, body: a}}": "routes[0].response.body: a 204 has no body",
    "GET /x: {response: {headers: {Date: now}}}": "response.headers.Date: is a header that the sidecar itself handles",
    "GET /x: {response: {headers: {Content_Length: 1}}}": "response.headers.Content_Length: is a header that the",
    "GET /x: {response: {headers: {Connection: close}}}": "response.headers.Connection: is a header that the sidecar",
    "GET /x: {response: {headers: {access_control_x: y}}}": "is a header that the sidecar itself handles",
    "GET /x: {response: {headers: {Location: '/{key.id}'}}}": "headers.Location: unknown placeholder '{key.id}'",
    "GET /x: {response: {headers: {Cache-Control: public}}}": "is no-store where a key is needed: leave it out",
    "GET /x: {response: {headers: {Content-Type: text/html}, body: [a]}}": "body: must be a text, because the",
}


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (
            "{status: 308, headers: {Location: /v2}}",
            StaticResponse(status=308, headers=((b"Cache-Control", b"no-store"), (b"Location", b"/v2")), body=b""),
        ),
        (
            "{headers: {content-type: text/plain}, body: 'Disallow: {x}'}",
            StaticResponse(
                headers=((b"Cache-Control", b"no-store"), (b"content-type", b"text/plain")), body=b"Disallow: {x}"
            ),
        ),
        ("{body: {id: '{key.id}'}}", StaticResponse(body={"id": "{key.id}"})),
    ],
)
def test_a_static_response_has_its_configured_content_type(
    loading: Loading, written: str, expected: StaticResponse
) -> None:
    (route,) = loading(f"{MINIMAL}routes:\n- GET /x: {{response: {written}}}\n").routes
    assert route.policy.respond == expected


def test_what_everyone_may_have_a_cache_may_keep(loading: Loading) -> None:
    response = "response: {headers: {Cache-Control: max-age=60}, body: a}"
    routes = loading(
        f"{MINIMAL}routes:\n- GET /x: {{public: true, {response}}}\n- GET /y: {{cache: shared, {response}}}\n"
    ).routes
    for route in routes:
        assert route.policy.respond is not None
        assert [value for name, value in route.policy.respond.headers if name == b"Cache-Control"] == [b"max-age=60"]


@pytest.mark.parametrize(("route", "expected"), WRONG.items())
def test_an_invalid_route_is_reported(problems: Complaining, route: str, expected: str) -> None:
    (line,) = problems(f"{MINIMAL}{WORDS}- {route}\n")
    assert expected in line


def test_any_token_is_a_method_that_a_route_may_name(loading: Loading) -> None:
    (route,) = loading(MINIMAL + 'routes:\n- "LIST|list-2|Sync|x.y~z /x": {}\n').routes
    assert route.methods == {"LIST", "list-2", "Sync", "x.y~z"}


def test_methods_that_differ_only_in_case_are_reported_with_both_locations(problems: Complaining) -> None:
    (line,) = problems(MINIMAL + WORDS + "- LIST /x: {}\n- POST|list /y: {}\n")
    assert line.startswith("8:3: routes[1]: 'list' and 'LIST' (`LIST /x`, ")
    assert "sidecar.yaml:7) differ only in case: name one of them" in line


def test_policy_options_next_to_a_route_are_reported(problems: Complaining) -> None:
    (line,) = problems(MINIMAL + WORDS + "- GET /x:\n  scopes: [read]\n")
    assert line.startswith("7:3: routes[0]: must have one key, with its options indented below it")


def test_overlapping_routes_are_reported_with_both_locations(problems: Complaining) -> None:
    (line,) = problems(MINIMAL + WORDS + "- GET /{a}/x: {}\n- GET /y/{b}: {}\n")
    assert line.startswith("8:3: routes[1]: `GET /y/{b}` overlaps with `GET /{a}/x` (")
    assert "sidecar.yaml:7), and neither is more specific: add a route for what both match, `GET /y/x`" in line


def test_a_repeated_route_is_reported(problems: Complaining) -> None:
    (line,) = problems(MINIMAL + WORDS + "- GET /x: {}\n- POST /x: {}\n- GET /x: {public: true}\n")
    assert line.startswith("9:3: routes[2]: `GET /x` is defined twice (")
    assert line.endswith("sidecar.yaml:7)")


def test_routes_that_differ_in_case_overlap_where_case_does_not_count(problems: Complaining, loading: Loading) -> None:
    routes = MINIMAL + WORDS + "- GET /x: {}\n- GET /X: {}\n"
    assert len(loading(routes).routes) == 2
    (line,) = problems(routes + "paths: {case_sensitive: false}\n")
    assert "`GET /X` is defined twice, first as `GET /x` (" in line


def test_an_unreachable_route_is_reported(problems: Complaining) -> None:
    (line,) = problems(MINIMAL + WORDS + "- GET /x/**: {}\n- GET /x: {}\n- GET /x/: {}\n- GET /x/{a}/**: {}\n")
    assert line.startswith("7:3: routes[0]: `GET /x/**` is never reached")


def test_a_star_can_be_granted_but_not_required(problems: Complaining) -> None:
    (line,) = problems(MINIMAL + "routes:\n- GET /x: {scopes: ['*']}\n")
    assert "routes[0].scopes[0]: '*' can be granted to a key but not required by a route" in line


def test_a_route_s_name_is_its_key_with_the_white_space_in_order(loading: Loading) -> None:
    (route,) = loading(MINIMAL + 'routes:\n- "GET | POST   /x/{id}": {}\n').routes
    assert (route.name, route.pattern, route.methods) == ("GET|POST /x/{id}", "/x/{id}", {"GET", "HEAD", "POST"})
