"""Who may share responses: scripts of other origins (CORS), and caches in front."""

import pytest

from tests.harness.keys import IssuedKey
from tests.harness.recording import Upstream
from tests.harness.running import Sidecar, StartSidecar
from tests.harness.wire import Fields, Response

APP, EVIL = "https://app.test", "https://evil.test"
CONFIG = f"""\
listen: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:unused.db
ops: 127.0.0.1:0
access_log: {{format: json}}
keys:
  environments: {{live: hv_live_}}
  from: [{{header: Authorization, scheme: Bearer}}, {{query: key}}]
scopes: {{read: Read, write: Write}}
quotas: {{few: {{limit: 1, per: day}}}}
cors: {{origins: ["{APP}"], expose: [X-Total], max_age: 10m}}
routes:
  - GET /items/**: {{scopes: [read]}}
  - POST|DELETE /items/**: {{scopes: [write]}}
  - GET /few: {{quotas: [few]}}
  - "* /any/**": {{}}
  - OPTIONS /asked: {{public: true}}
  - GET /asked: {{cors: off}}
  - GET /me: {{respond: {{id: "{{key.id}}"}}}}
  - GET /all: {{public: true, cors: {{origins: ["*"]}}}}
  - GET /cookies: {{cors: {{origins: ["{APP}"], credentials: true}}}}
  - GET /same: {{cache: shared, cors: off}}
  - GET /open: {{public: true, cors: off}}
"""


@pytest.fixture(scope="module")
def sidecar(start_shared_sidecar: StartSidecar) -> Sidecar:
    return start_shared_sidecar(CONFIG)


@pytest.fixture(scope="module")
def key(sidecar: Sidecar) -> IssuedKey:
    return sidecar.keys.issue(scopes=("read",))


def asked(method: str, *, origin: str = APP) -> Fields:
    """The fields of a preflight, as Chromium sends them."""
    return [
        ("Origin", origin),
        ("Access-Control-Request-Method", method),
        ("Access-Control-Request-Headers", "authorization,content-type"),
    ]


def allowed(response: Response) -> list[str]:
    return response.all("Access-Control-Allow-Origin")


# Preflights.


def test_a_preflight_is_answered_without_requiring_a_key(sidecar: Sidecar, upstream: Upstream) -> None:
    response = sidecar.ask("OPTIONS", "/items/7?a=b", asked("DELETE"))
    assert (response.status, response.body) == (204, b"")
    assert allowed(response) == [APP]
    assert response.header("Access-Control-Allow-Methods") == "DELETE, POST"
    assert response.header("Access-Control-Allow-Headers") == "Authorization, Content-Type"
    assert response.header("Access-Control-Max-Age") == "600"
    assert response.header("Vary") == "Origin"
    assert response.all("Access-Control-Allow-Credentials") == []
    assert upstream.requests() == []


@pytest.mark.parametrize(
    ("target", "method"),
    [("/nowhere", "GET"), ("/items/7", "PUT"), ("/items/7", "delete"), ("/asked", "POST"), ("/items/%zz", "GET")],
)
def test_a_preflight_without_a_route_is_decided_like_any_request(
    sidecar: Sidecar, upstream: Upstream, target: str, method: str
) -> None:
    response = sidecar.ask("OPTIONS", target, asked(method))
    reached = [seen.target for seen in upstream.requests()]
    if target == "/asked":  # A public route for OPTIONS itself.
        assert (response.status, reached) == (200, ["/asked"])
    else:
        assert (response.status, reached) == (400 if "%zz" in target else 401, [])


def test_an_unlisted_origin_gets_no_headers(sidecar: Sidecar, upstream: Upstream) -> None:
    for origin in (EVIL, "null", APP.upper(), f"{APP}.evil.test", f"{APP}:8443"):
        response = sidecar.ask("OPTIONS", "/items/7", asked("GET", origin=origin))
        assert [name for name, _ in response.headers if name.lower().startswith("access-control-")] == []
        assert response.header("Vary") == "Origin"
    assert upstream.requests() == []


@pytest.mark.parametrize("fields", [[], [("Origin", APP)], [("Access-Control-Request-Method", "GET")]])
def test_an_ordinary_options_request_goes_through_the_gate(
    sidecar: Sidecar, upstream: Upstream, key: IssuedKey, fields: Fields
) -> None:
    assert sidecar.ask("OPTIONS", "/any/x", fields).status == 401
    assert sidecar.ask("OPTIONS", "/items/7", fields, key=key).status == 403
    assert upstream.requests() == []
    assert sidecar.ask("OPTIONS", "/any/x", fields, key=key).status == 200
    assert upstream.last().method == "OPTIONS"


def test_a_route_without_a_section_hands_preflights_to_its_own_options_route(
    sidecar: Sidecar, upstream: Upstream
) -> None:
    assert sidecar.ask("OPTIONS", "/asked", asked("GET")).status == 200
    assert upstream.last().method == "OPTIONS"


def test_a_preflight_counts_as_a_request_of_its_route(sidecar: Sidecar) -> None:
    sample = 'sidecar_requests_total{code="204",method="OPTIONS",route="POST|DELETE /items/**"}'
    before = sidecar.metric(sample)
    response = sidecar.ask("OPTIONS", "/items/7", asked("POST"))
    assert sidecar.metric(sample) == before + 1
    line = sidecar.logged(lambda line: line["request_id"] == response.header("X-Request-Id"))
    assert (line["route"], line["status"], line["reason"]) == ("POST|DELETE /items/**", 204, None)


# Responses.


UPSTREAMS = (
    b"HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: *\r\naccess-control-allow-credentials: true\r\n"
    b"Access-Control-Expose-Headers: X-Secret\r\nVary: Accept\r\nContent-Length: 2\r\n\r\n{}"
)


@pytest.mark.parametrize("ways", ["shorter", "longer"])
def test_our_headers_for_browsers_replace_the_upstreams(
    sidecar: Sidecar, upstream: Upstream, key: IssuedKey, ways: str
) -> None:
    more = [("Connection", "close, X-A")] if ways == "longer" else []
    for origin, expected in ((APP, [APP]), (EVIL, []), ("null", [])):
        upstream.plan(UPSTREAMS)
        response = sidecar.ask("GET", "/items/7", [("Origin", origin), *more], key=key)
        assert response.status == 200
        assert allowed(response) == expected
        assert response.all("Access-Control-Allow-Credentials") == []
        assert response.header("Vary") == "Accept, Authorization, Origin"
        exposed = response.all("Access-Control-Expose-Headers")
        assert [("X-Total" in one, "X-Secret" in one) for one in exposed] == [(True, False)] * len(expected)


def test_a_streamed_response_has_the_same_headers(sidecar: Sidecar, upstream: Upstream, key: IssuedKey) -> None:
    upstream.plan(b"HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: *\r\n\r\nto the end", close=True)
    response = sidecar.ask("GET", "/items/7", [("Origin", APP)], key=key)
    assert (allowed(response), response.body) == ([APP], b"to the end")


def test_scripts_may_read_refusals_and_what_is_left_of_quotas(sidecar: Sidecar, key: IssuedKey) -> None:
    for status, target, with_key in [
        (401, "/items/7", None),
        (401, "/items/7", "hv_live_wrong"),
        (403, "/nowhere", key),
        (400, "/items/%zz", key),
        (200, "/me", key),
        (200, "/few", key),
        (429, "/few", key),
    ]:
        response = sidecar.ask("GET", target, [("Origin", APP)], key=with_key)
        assert (response.status, allowed(response)) == (status, [APP])
        exposed = {name.strip().lower() for name in response.header("Access-Control-Expose-Headers").split(",")}
        told = {name.lower() for name, _ in response.headers}
        assert told & {"x-ratelimit-remaining", "ratelimit", "retry-after", "x-request-id"} <= exposed
    assert "x-ratelimit-remaining" in told


def test_scripts_can_read_a_fault_too(sidecar: Sidecar, upstream: Upstream, key: IssuedKey) -> None:
    upstream.plan(b"nonsense\r\n\r\n", close=True)
    response = sidecar.ask("GET", "/items/7", [("Origin", APP)], key=key)
    assert (response.status, allowed(response)) == (502, [APP])


def test_a_route_may_be_for_every_origin_or_for_cookies(sidecar: Sidecar, key: IssuedKey) -> None:
    assert allowed(sidecar.ask("GET", "/all", [("Origin", EVIL)])) == ["*"]
    assert allowed(sidecar.ask("GET", "/all")) == ["*"]
    response = sidecar.ask("GET", "/cookies", [("Origin", APP)], key=key)
    assert response.header("Access-Control-Allow-Credentials") == "true"
    assert allowed(sidecar.ask("GET", "/cookies", [("Origin", EVIL)], key=key)) == []


# Caches.


SAYING = {
    "nothing": (b"", "private"),
    "public": (b"Cache-Control: public, max-age=60\r\n", "private, max-age=60"),
    "private": (b"Cache-Control: private, max-age=5\r\n", "private, max-age=5"),
    "no store": (b"Cache-Control: no-store\r\n", "no-store"),
}


@pytest.mark.parametrize("saying", SAYING)
def test_a_cache_in_front_does_not_serve_keyed_responses_to_everyone(
    sidecar: Sidecar, upstream: Upstream, key: IssuedKey, saying: str
) -> None:
    lines, expected = SAYING[saying]
    planned = b"HTTP/1.1 200 OK\r\n" + lines + b"Content-Length: 2\r\n\r\n{}"
    upstream.plan(planned)
    response = sidecar.ask("GET", "/any/x", key=key)
    assert response.header("Cache-Control") == expected
    assert response.header("Vary") == "Authorization, Origin"
    for target in ("/same", "/open"):
        upstream.plan(planned)
        response = sidecar.ask("GET", target, key=key)
        assert [f"Cache-Control: {said}\r\n".encode() for said in response.all("Cache-Control")] == [lines][
            : len(lines)
        ]
        assert response.all("Vary") == []


@pytest.mark.parametrize("target", ["/any/x", "/same", "/open"])
def test_no_cache_keeps_a_response_with_the_key_in_its_url(
    sidecar: Sidecar, upstream: Upstream, key: IssuedKey, target: str
) -> None:
    upstream.plan(b"HTTP/1.1 200 OK\r\nCache-Control: public, max-age=60\r\nContent-Length: 2\r\n\r\n{}")
    response = sidecar.ask("GET", f"{target}?key={key.text}")
    assert (response.status, response.header("Cache-Control")) == (200, "no-store")
