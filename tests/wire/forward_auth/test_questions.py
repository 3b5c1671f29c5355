"""The required parts of a forward-auth request, who may send it, and the content of the response."""

import pytest

from tests.harness.headers import FORWARDING, SIGNED_IN, STRIPPED, STRIPPED_BY_PATTERN, disguises
from tests.harness.wire import Response, request_bytes
from tests.wire.forward_auth.asking import CARRIERS, DIALECTS, IDENTITY, Decider, question, status_of

UNNORMALISED = [
    "/public/./x",
    "/public/../public/x",
    "/public//x",
    "//public/x",
    "/public/x/..",
    "/public/x/.",
    "/public\\x",
    "/public/%2e/x",
    "/public/%2E%2e/public/x",
    "/public/%252e/x",
    "/public/%2fx",
    "/public/..;a=b/x",
    "/public/.;/x",
    "/public%5cx",
]
RELATIVE = ["public/x", "*", "?x", "http://api.test/public/x", "api.test:80", " "]
COUNTED = 'sidecar_requests_total{code="200",method="GET",route="GET /items/**"}'


def refused(decider: Decider, raw: bytes, statuses: tuple[int, ...] = (400, 403)) -> Response:
    response = decider.exchange(raw)
    assert response.status in statuses, response
    assert status_of(response) in (400, 403, 405)
    assert response.header("Cache-Control") == "no-store"
    return response


def asked(dialect: str, *fields: tuple[str, str]) -> bytes:
    return request_bytes("GET", f"/{dialect}", [("X-Forwarded-Host", "api.test"), *fields])


@pytest.mark.requirement("S5.2")
@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_allow_response_has_every_identity_header(decider: Decider, dialect: str) -> None:
    response = decider.ask(dialect, "GET", "/items/x", key="Kr")
    assert (response.status, response.body) == (200, b"")
    assert [response.header(name) for name in IDENTITY[:2]] == ["t-Kr", "read"]
    assert response.header("X-Auth-Key-Id") == decider.keys["Kr"].id
    response = decider.ask(dialect, "GET", "/public/x", [("X-Auth-Subject", "FORGED"), ("X-Request-Id", "r-1")])
    assert [response.header(name) for name in IDENTITY] == ["", "", "", "r-1"]
    assert response.header("Cache-Control") == "no-store"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_clients_quotas_are_reported_in_both_responses(decider: Decider, dialect: str) -> None:
    told = decider.sidecar.keys.told("issue", "--name", "few", "--scope", "read", "--quota", "general=1")
    bearer = [("Authorization", f"Bearer {told['key']}")]
    assert decider.ask(dialect, "GET", "/items/x", bearer).header("X-RateLimit-Remaining") == "0"
    response = decider.ask(dialect, "GET", "/items/x", bearer)
    assert (response.status, status_of(response)) == (403 if dialect == "nginx" else 429, 429)
    assert response.json()["code"] == "quota_exceeded"
    assert int(response.header("Retry-After")) > 0


@pytest.mark.parametrize("status", [400, 401, 403])
def test_nginx_gets_the_real_refusal_in_header_fields(decider: Decider, status: int) -> None:
    target = {400: "/public/../x", 401: "/items/x", 403: "/admin/x"}[status]
    response = decider.ask("nginx", "GET", target, key="" if status == 401 else "Kr")
    assert response.status == (401 if status == 401 else 403)
    assert response.header("X-Auth-Status") == str(status)
    assert response.header("X-Auth-Body").encode() == response.body
    assert response.json()["status"] == status


def test_envoy_is_told_to_remove_the_key_from_the_request(decider: Decider) -> None:
    removed = decider.ask("envoy", "GET", "/items/x", key="Kr").header("X-Envoy-Auth-Headers-To-Remove").split(",")
    assert {"authorization", "x-api-key", "x-http-method-override"} <= set(removed)


@pytest.mark.requirement("S5.3")
@pytest.mark.parametrize("dialect", CARRIERS)
def test_a_forward_auth_request_without_a_required_part_is_refused(decider: Decider, dialect: str) -> None:
    method, target = CARRIERS[dialect]
    assert decider.exchange(asked(dialect, (method, "GET"), (target, "/public/x"))).status == 200
    refused(decider, asked(dialect))
    refused(decider, asked(dialect, (method, "GET")))
    refused(decider, asked(dialect, (target, "/public/x")))
    refused(decider, asked(dialect, (method, ""), (target, "/public/x")))
    refused(decider, asked(dialect, (method, "GET"), (target, "")))


@pytest.mark.requirement("S5.3")
@pytest.mark.parametrize("dialect", CARRIERS)
def test_a_forward_auth_request_with_a_repeated_part_is_refused(decider: Decider, dialect: str) -> None:
    method, target = ((name, value) for name, value in zip(CARRIERS[dialect], ("GET", "/public/x"), strict=True))
    refused(decider, asked(dialect, method, target, target))
    refused(decider, asked(dialect, method, method, target))
    refused(decider, asked(dialect, method, (target[0].upper(), "/public/y"), target))
    refused(decider, asked(dialect, (method[0], "GET, GET"), target))
    response = decider.exchange(asked(dialect, method, target, ("X-Forwarded-Host", "b"), ("Host", "b")))
    assert response.status in (400, 403)


@pytest.mark.requirement("S5.3")
def test_the_clients_host_must_be_passed_on(decider: Decider) -> None:
    for dialect in ("caddy", "traefik"):
        fields = list(zip(CARRIERS[dialect], ("GET", "/public/x"), strict=True))
        refused(decider, request_bytes("GET", f"/{dialect}", fields))
        refused(decider, asked(dialect, *fields, ("X-Forwarded-Host", "api.test")))
        refused(decider, request_bytes("GET", f"/{dialect}", [*fields, ("X-Forwarded-Host", "u@h")]))


@pytest.mark.requirement("S5.3")
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("target", [*UNNORMALISED, *RELATIVE])
def test_a_relative_or_unnormalised_target_is_refused(decider: Decider, dialect: str, target: str) -> None:
    for key in ("", "Kr", "Ka"):
        refused(decider, question(dialect, "GET", target, decider.credential(key)))


@pytest.mark.requirement("S5.3")
@pytest.mark.parametrize("dialect", CARRIERS)
@pytest.mark.parametrize("method", ["get", "pRoPfInD", "G ET", "GET /public/x", "CONNECT", "TRACE", "trace", "\xc9"])
def test_a_method_that_no_route_can_name_is_refused(decider: Decider, dialect: str, method: str) -> None:
    refused(decider, question(dialect, method, "/public/x"), (400, 403, 405))


@pytest.mark.requirement("S5.3")
@pytest.mark.parametrize("dialect", DIALECTS)
def test_only_a_trusted_proxy_is_answered(decider: Decider, dialect: str) -> None:
    raw = question(dialect, "GET", "/public/x", decider.credential("Ka"))
    response = decider.exchange(raw, source="127.0.0.2")
    assert response.status == 403
    assert not set(response.headers) & {("X-Auth-Subject", "t-Ka")}
    line = decider.sidecar.process.stderr.wait_for(lambda line: "refused 127.0.0.2" in line)
    assert line is not None and "trusted_proxies" in line


@pytest.mark.parametrize(
    "path", ["/", "/other", "/public/x", "/nginx/", "/nginx/public/x", "/envoy", "/envoyx/public/x", "*"]
)
def test_a_forward_auth_request_in_no_dialect_is_refused(decider: Decider, path: str) -> None:
    carriers = [pair for name in ("nginx", "caddy") for pair in zip(CARRIERS[name], ("GET", "/public/x"), strict=True)]
    refused(decider, request_bytes("GET", path, [("X-Forwarded-Host", "api.test"), *carriers]), (400, 405))


@pytest.mark.requirement("S5.2")
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", [*IDENTITY, *(name for name, _ in [*STRIPPED, *STRIPPED_BY_PATTERN, *FORWARDING])])
def test_a_lookalike_of_a_stripped_header_is_refused(decider: Decider, dialect: str, name: str) -> None:
    for form in disguises(name):
        if form.lower() != name.lower():
            response = decider.ask(dialect, "GET", "/public/x", [(form, "t-Ka")])
            assert status_of(response) == 400, form
            assert response.json()["code"] == "bad_header"


@pytest.mark.requirement("S5.2")
@pytest.mark.parametrize("dialect", CARRIERS)
@pytest.mark.parametrize("name", [name for name, _ in [*STRIPPED_BY_PATTERN, *SIGNED_IN]])
def test_what_a_proxy_cannot_name_in_advance_is_refused(decider: Decider, dialect: str, name: str) -> None:
    for form in (name, name.lower()):
        response = decider.ask(dialect, "GET", "/public/x", [(form, "evil")])
        assert (status_of(response), response.json()["code"]) == (400, "bad_header")


@pytest.mark.requirement("S5.2")
@pytest.mark.parametrize("name", [name for name, _ in [*STRIPPED, *STRIPPED_BY_PATTERN, *SIGNED_IN]])
def test_envoy_is_configured_to_remove_headers_that_services_trust(decider: Decider, name: str) -> None:
    response = decider.ask("envoy", "GET", "/public/x", [(name.upper(), "evil"), ("X-Stay", "1")])
    removed = response.header("X-Envoy-Auth-Headers-To-Remove").split(",")
    assert response.status == 200
    assert name.lower() in removed
    assert "x-stay" not in removed


@pytest.mark.requirement("S5.2")
@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_a_proxy_removes_by_name_is_not_refused(decider: Decider, dialect: str) -> None:
    carried = {name.lower() for pair in CARRIERS.values() for name in pair} | {"x-forwarded-host"}
    sent = [(name, value) for name, value in [*STRIPPED, *FORWARDING] if name.lower() not in carried]
    assert decider.ask(dialect, "GET", "/public/x", sent).status == 200


def test_bytes_that_are_not_a_request_are_refused_without_echoing_them(decider: Decider) -> None:
    for raw in (
        b"canary\r\n\r\n",
        b"BREW /canary HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\ncanary\x01: b\r\n\r\n",
    ):
        response = decider.exchange(raw)
        assert response.status in (400, 405)
        assert response.header("Cache-Control") == "no-store"
        assert "canary" not in str(response)
    assert not any("canary" in line for line in decider.sidecar.process.stderr.all())
    with decider.connect() as connection:
        response = connection.exchange(request_bytes("GET", "/caddy", [("X-Long", "x" * 9_000)]))
    assert (response.status, response.json()["code"]) == (431, "headers_too_large")


def test_a_proxy_may_ask_again_and_again_on_one_connection(decider: Decider) -> None:
    with decider.connect() as connection:
        for number in range(20):
            key = "Kr" if number % 2 else ""
            asked = question("caddy", "GET", "/items/x", decider.credential(key))
            assert connection.exchange(asked).status == (200 if key else 401)


def test_decisions_are_counted_and_logged_like_requests(decider: Decider) -> None:
    before = decider.sidecar.metric(COUNTED)
    headers = [("X-Request-Id", "r-counted"), ("X-Forwarded-For", "6.6.6.6, 198.51.100.7")]
    assert decider.ask("nginx", "GET", "/items/x", headers, key="Kr").status == 200
    line = decider.sidecar.logged(lambda line: line["request_id"] == "r-counted")
    assert (line["client_address"], line["path"], line["status"]) == ("198.51.100.7", "/items/x", 200)
    assert line["key_id"] == decider.keys["Kr"].id
    decider.ask("nginx", "POST", "/items/x", [("X-Request-Id", "r-refused")], key="Kr")
    line = decider.sidecar.logged(lambda line: line["request_id"] == "r-refused")
    assert (line["status"], line["reason"]) == (403, "insufficient_scope")
    assert decider.sidecar.metric(COUNTED) == before + 1
