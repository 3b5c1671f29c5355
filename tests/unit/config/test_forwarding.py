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
def test_what_cannot_be_forwarded_so_is_told(problems: Complaining, route: str, expected: str) -> None:
    (line,) = problems(f"{MINIMAL}routes: [{route}]\n")
    assert expected in line
