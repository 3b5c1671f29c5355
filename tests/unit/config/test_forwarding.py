"""What a route says of how its requests are forwarded."""

from math import inf

import pytest

from sidecar.core.model import ForwardRules
from tests.unit.config.conftest import MINIMAL, Complaining, Loading

GROUP = """routes:
- GET /a: {answer_timeout: 5m, body: 1MiB}
- path: /b
  answer_timeout: 10s
  body: 'off'
  routes:
    - GET: {}
    - POST: {answer_timeout: 1s}
    - PUT: {body: 1KiB, public: true}
- GET /c: {}
"""


def test_a_route_has_its_own_time_and_limit_and_otherwise_those_of_its_group(loading: Loading) -> None:
    rules = {route.name: route.policy.forward for route in loading(MINIMAL + GROUP).routes}
    assert rules == {
        "GET /a": ForwardRules(answer_timeout_seconds=300.0, body_bytes=1 << 20),
        "GET /b": ForwardRules(answer_timeout_seconds=10.0, body_bytes=inf),
        "POST /b": ForwardRules(answer_timeout_seconds=1.0, body_bytes=inf),
        "PUT /b": ForwardRules(answer_timeout_seconds=10.0, body_bytes=1024),
        "GET /c": ForwardRules(),
    }


PREFIXED = """routes:
- GET /api: {strip_prefix: /api}
- path: /api/v1
  strip_prefix: /api/v1
  routes:
    - "* /{id}/**": {}
    - GET /own: {strip_prefix: /api}
    - GET /whole: {strip_prefix: ""}
- GET /{other}: {}
"""


def test_a_route_is_forwarded_without_its_own_prefix_or_that_of_its_group(loading: Loading) -> None:
    routes = loading(MINIMAL + PREFIXED).routes
    assert [route.policy.forward.strip_prefix for route in routes] == ["/api", "/api/v1", "/api", "", None]


TWO = """upstreams:
  billing: {url: https://billing.test, answer_timeout: 5m, strip_prefix: /billing, tls: {server_name: b.test}}
  files: unix:/run/files.sock
"""
ROUTES = """routes:
- GET /a: {}
- path: /billing
  upstream: billing
  routes: [GET: {}, POST /x: {strip_prefix: ""}, PUT: {public: true, upstream: files}]
"""


def test_a_named_upstream_has_all_options_and_is_chosen_by_route(loading: Loading) -> None:
    config = loading(MINIMAL + TWO + ROUTES)
    billing, files = config.upstreams["billing"], config.upstreams["files"]
    assert (billing.address.host, billing.answer_timeout, billing.strip_prefix) == ("billing.test", 300.0, "/billing")
    assert billing.tls is not None
    assert billing.tls.server_name == "b.test"
    assert (files.address.path, files.tls, files.answer_timeout) == ("/run/files.sock", None, 60.0)
    assert [route.policy.forward.upstream for route in config.routes] == [None, "billing", "billing", "files"]
    assert config.warnings == ()
    assert config.upstream_connections == 3 * 256


def test_an_unused_upstream_is_a_warning(loading: Loading) -> None:
    warnings = [str(warning) for warning in loading(f"{MINIMAL}{TWO}routes: [GET /a: {{upstream: files}}]\n").warnings]
    assert len(warnings) == 1
    assert "5:3: upstreams.billing: warning: no route is forwarded to this upstream" in warnings[0]


def test_a_named_upstream_that_is_the_sidecar_itself_is_an_error(problems: Complaining) -> None:
    text = MINIMAL.replace("listen: 127.0.0.1:0", "listen: 127.0.0.1:8080")
    assert text != MINIMAL
    (line,) = problems(f"{text}upstreams: {{b: 'http://localhost:8080'}}\nroutes: [GET /a: {{upstream: b}}]\n")
    assert "upstreams.b: is the sidecar itself, at the address of listen: name the service's own" in line


WRONG_UPSTREAM = {
    "GET /a: {upstream: biling}": "7:29: routes[0].upstream: unknown upstream 'biling' (did you mean 'billing'?)",
    "{path: /a, upstream: x, routes: [GET: {}]}": "routes[0].upstream: unknown upstream 'x'",
    "GET /a: {upstream: billing}": "7:18: routes[0]: `/a` does not begin with /billing: there is nothing to strip",
    "GET /a: {upstream: files, respond: x}": "routes[0].upstream: the sidecar itself responds",
}


@pytest.mark.parametrize(("route", "expected"), WRONG_UPSTREAM.items())
def test_an_invalid_upstream_of_a_route_is_reported(problems: Complaining, route: str, expected: str) -> None:
    (line,) = problems(f"{MINIMAL}{TWO}routes: [{route}]\n")
    assert expected in line


def test_an_error_in_a_named_upstream_is_reported_once(problems: Complaining) -> None:
    (line,) = problems(MINIMAL + "upstreams: {b: {url: 'http://b', tls: {}}}\nroutes: [GET /a: {upstream: b}]\n")
    assert "upstreams.b.tls: needs an https:// URL" in line


NOT_BELOW = "does not begin with /api: there is nothing to strip"
WRONG = {
    "GET /apis/**: {strip_prefix: /api}": f"4:39: routes[0].strip_prefix: `/apis/**` {NOT_BELOW}",
    "GET /**: {strip_prefix: /api}": f"routes[0].strip_prefix: `/**` {NOT_BELOW}",
    "'GET /{api}/x': {strip_prefix: /api}": f"routes[0].strip_prefix: `/{{api}}/x` {NOT_BELOW}",
    "{path: /v1, strip_prefix: /api, routes: [GET: {}]}": f"routes[0].routes[0]: `/v1` {NOT_BELOW}",
    "GET /API/x: {strip_prefix: /api}": f"routes[0].strip_prefix: `/API/x` {NOT_BELOW}",
    "GET /api/x: {strip_prefix: /api/}": "routes[0].strip_prefix: must be empty or a path such as /api",
    "GET /a: {answer_timeout: 0s}": "4:35: routes[0].answer_timeout: must be more than 0",
    "GET /a: {body: none}": "4:25: routes[0].body: must be a number with its unit",
    "GET /a: {respond: x, body: 1KiB}": "4:37: routes[0].body: the sidecar itself responds (`respond`): nothing is",
    "GET /a: {response: {}, answer_timeout: 1s}": "routes[0].answer_timeout: the sidecar itself responds (`response`)",
    "GET /a: {deny: true, body: 1KiB}": "routes[0].body: a route that denies refuses every request",
}


@pytest.mark.parametrize(("route", "expected"), WRONG.items())
def test_requests_that_cannot_be_forwarded_are_reported(problems: Complaining, route: str, expected: str) -> None:
    (line,) = problems(f"{MINIMAL}routes: [{route}]\n")
    assert expected in line
