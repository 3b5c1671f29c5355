"""Headers for browsers and caches: pure rules, checked against Fetch and RFC 9111."""

import re
from typing import Any

import pytest

from sidecar.core.cors import (
    CorsFields,
    SharingRules,
    cache_control,
    credential_headers,
    parse_origin,
    requested_method,
    vary,
)
from sidecar.core.model import Cors, Headers, Policy, RequestHead, Response, Route, Source
from sidecar.core.policy import DENIED

APP, EVIL = b"https://app.test", b"https://evil.test"
BEARER, KEY = Source(kind="header", name="Authorization", scheme="Bearer"), Source(kind="header", name="X-Api-Key")
COOKIE, QUERY = Source(kind="cookie", name="session"), Source(kind="query", name="key")


def cors(*origins: str, **options: Any) -> Cors:
    return Cors(origins=frozenset(origins or [APP.decode()]), **options)


def from_(*origins: bytes) -> Headers:
    return ((b"Host", b"api.test"), *((b"Origin", origin) for origin in origins))


def route(name: str = "GET|DELETE /a", methods: str = "GET HEAD DELETE", **policy: Any) -> Route:
    return Route(name=name, methods=frozenset(methods.split()), pattern="/a", policy=Policy(**policy))


def told(fields: Headers) -> dict[str, str]:
    found = {name.decode().lower(): value.decode() for name, value in fields}
    assert len(found) == len(fields), "a field stands twice"
    return found


def names(headers: Headers) -> set[bytes]:
    return {name.lower() for name, _ in headers}


# Origins.


@pytest.mark.parametrize(
    "text",
    [
        "https://a.test",
        "https://a.test.",
        "http://localhost:3000",
        "http://a_b.test:65535",
        "http://10.0.0.1:1",
        "http://a:443",
        "http://[::1]:8080",
        "http://[::ffff:102:304]",
        "https://xn--bcher-kva.test",
        "https://xn--strae-oqa.test",
        "capacitor://localhost",
        "chrome-extension://aapbdbdomjkkjkaonfhkkikfgjllcleb",
        "*",
    ],
)
def test_an_origin_is_written_as_browsers_write_it(text: str) -> None:
    assert parse_origin(text) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("null", "sandboxed"),
        ("NULL", "sandboxed"),
        ("https://*.a.test", "list each origin"),
        ("https://a.test/", "did you mean 'https://a.test'"),
        ("HTTPS://A.test", "did you mean 'https://a.test'"),
        ("a.test", "scheme://host"),
        ("https://a.test/page", "without a path"),
        ("https://user@a.test", "scheme://host"),
        ("https://a.test:443", "write 'https://a.test'"),
        ("http://a.test:80", "write 'http://a.test'"),
        ("https://a.test,https://b.test", "scheme://host"),
        ("https://user:hunter2@A.test:8443/x?y#z", "did you mean 'https://a.test:8443'"),
        ("https://a.test:", "did you mean 'https://a.test'"),
        ("https://a.test?x", "did you mean 'https://a.test'"),
        ("https://a.test:0443", "did you mean 'https://a.test'"),
        ("https://a.test:08443", "did you mean 'https://a.test:8443'"),
        ("http://a:99999", "a port from 1 to 65535"),
        ("http://a:65536", "a port from 1 to 65535"),
        ("http://a:0", "a port from 1 to 65535"),
        ("http://a:" + "9" * 5000, "a port from 1 to 65535"),
        ("http://a:b", "scheme://host"),
        ("http://a:-1", "scheme://host"),
        ("http://:80", "scheme://host"),
        ("http://", "scheme://host"),
        ("https://b\u00fccher.test", "as punycode: write 'https://xn--bcher-kva.test'"),
        ("https://B\u00dcCHER.test:8443", "write 'https://xn--bcher-kva.test:8443'"),
        ("https://xn--a.test", "is not punycode"),
        ("https://xn--.test", "is not punycode"),
        ("https://a..test", "between its dots"),
        ("https://a%2e.test", "between its dots"),
        (f"https://{'a' * 64}.test", "between its dots"),
        ("http://127.1", "is an IPv4 address"),
        ("http://127.0.0.01", "is an IPv4 address"),
        ("http://0x7f000001", "is an IPv4 address"),
        ("http://10.0.0.1.", "is an IPv4 address"),
        ("http://256.0.0.1", "is an IPv4 address"),
        ("http://[::zz]", "scheme://host"),
        ("http://[1:2]", "is not an IPv6 address"),
        ("http://[0:0::1]:80", "did you mean 'http://[::1]'"),
        ("http://[::FFFF:1.2.3.4]", "did you mean 'http://[::ffff:102:304]'"),
        ("wss://a.test", "write https://"),
        ("file://a", "file: has none"),
        (" https://a.test", "scheme://host"),
        ("https://a.test\n", "scheme://host"),
        ("", "scheme://host"),
    ],
)
def test_an_origin_that_no_browser_sends_is_invalid(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        parse_origin(text)


# Preflights.


@pytest.mark.parametrize(
    ("method", "headers", "asked"),
    [
        ("OPTIONS", (*from_(APP), (b"Access-Control-Request-Method", b"PUT")), "PUT"),
        ("OPTIONS", (*from_(APP), (b"access-control-request-method", b"PUT")), "PUT"),
        ("OPTIONS", from_(APP), None),
        ("OPTIONS", ((b"Access-Control-Request-Method", b"PUT"),), None),
        ("OPTIONS", (*from_(APP, APP), (b"Access-Control-Request-Method", b"PUT")), None),
        ("OPTIONS", (*from_(APP), *[(b"Access-Control-Request-Method", b"PUT")] * 2), None),
        ("GET", (*from_(APP), (b"Access-Control-Request-Method", b"PUT")), None),
    ],
)
def test_a_preflight_is_options_with_one_origin_and_one_method(
    method: str, headers: Headers, asked: str | None
) -> None:
    assert requested_method(RequestHead(method=method, target="/", headers=headers, peer="")) == asked


def preflight(rules: SharingRules, origin: bytes, at: Route, method: bytes = b"DELETE") -> dict[str, str]:
    headers = (*from_(origin), (b"Access-Control-Request-Method", method))
    response = rules.preflight(RequestHead(method="OPTIONS", target="/a", headers=headers, peer=""), at)
    assert (response.status, response.body) == (204, b"")
    return told(response.headers)


def test_a_preflight_gets_the_methods_of_the_route_and_the_headers_of_keys() -> None:
    at = route(cors=cors(headers=("Content-Type", "x-api-key"), max_age_seconds=60))
    rules = SharingRules([at], sources=[BEARER, KEY, QUERY])
    assert preflight(rules, APP, at) == {
        "vary": "Origin",
        "access-control-allow-origin": APP.decode(),
        "access-control-allow-methods": "DELETE, GET, HEAD",
        "access-control-allow-headers": "Authorization, x-api-key, Content-Type",
        "access-control-max-age": "60",
    }
    assert preflight(rules, EVIL, at) == {"vary": "Origin"}


def test_a_route_of_every_method_names_the_one_that_is_asked_for() -> None:
    at = route("* /a", "*", cors=cors("*"))
    fields = preflight(SharingRules([at], sources=[BEARER]), EVIL, at, b"PURGE")
    assert fields["access-control-allow-methods"] == "PURGE"
    assert fields["access-control-allow-origin"] == "*"
    assert "vary" not in fields


# Responses.


def test_only_a_listed_origin_gets_cors_headers() -> None:
    fields = CorsFields(cors(expose=("X-Total",), credentials=True), sent=(), added=("Retry-After",))
    assert told(fields.of_response(from_(APP))) == {
        "access-control-allow-origin": APP.decode(),
        "access-control-allow-credentials": "true",
        "access-control-expose-headers": "Retry-After, X-Total",
    }
    for others in (from_(), from_(EVIL), from_(APP, EVIL), from_(b"null"), from_(APP.upper()), from_(APP + b".evil")):
        assert fields.of_response(others) == ()


def test_if_every_origin_may_read_none_is_named() -> None:
    fields = CorsFields(cors("*"), sent=(), added=("Retry-After",))
    assert fields.of_response(from_(EVIL)) == fields.of_response(from_())
    assert told(fields.of_response(from_()))["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in told(fields.of_response(from_()))


def test_the_sidecars_own_responses_are_decorated_by_route_and_without_one_by_the_files_section() -> None:
    open_, closed, other = route(cors=cors()), route("GET /b"), route("GET /c", cors=cors("https://c.test"))
    rules = SharingRules([open_, closed, other], cors())
    refusal = Response(status=429, headers=((b"Retry-After", b"1"), (b"Access-Control-Allow-Origin", b"*")), body=b"")
    for at in (open_, None):
        fields = told(rules.decorated(refusal, at, from_(APP)).headers)
        assert fields["access-control-allow-origin"] == APP.decode()
        assert fields["vary"] == "Origin"
        assert fields["retry-after"] == "1"
        assert "access-control-allow-origin" not in told(rules.decorated(refusal, at, from_(EVIL)).headers)
    assert rules.decorated(refusal, closed, from_(APP)) is refusal
    assert "access-control-allow-origin" not in told(rules.decorated(refusal, other, from_(APP)).headers)


def test_a_refusal_in_a_hole_is_decorated_as_one_without_a_route() -> None:
    refusal = Response(status=403, headers=(), body=b"")
    hole = Route(name="* /a/**", methods=frozenset({"*"}), pattern="/a/**", policy=DENIED)
    for section in (cors(), None):
        rules = SharingRules([route(cors=cors("https://c.test")), hole], section)
        for request in (from_(APP), from_(EVIL), from_()):
            assert rules.decorated(refusal, hole, request) == rules.decorated(refusal, None, request)


def test_without_a_section_nothing_is_decorated() -> None:
    rules = SharingRules([route()])
    assert not rules.tells_browsers
    refusal = Response(status=401, headers=(), body=b"")
    assert rules.decorated(refusal, None, from_(APP)) is refusal


# Caches.


@pytest.mark.parametrize(
    ("said", "instead"),
    [
        ([], "private"),
        (["public"], "private"),
        (["Public, max-age=60"], "private, max-age=60"),
        (["max-age=60", "public"], "private, max-age=60"),
        (["max-age=60"], "private, max-age=60"),
        (["s-maxage=60, max-age=5"], "private, max-age=5"),
        (["no-cache, public"], "private, no-cache"),
        (['private="Set-Cookie, public", max-age=60'], 'private, private="Set-Cookie, public", max-age=60'),
        (['no-cache="a, private, b"'], 'private, no-cache="a, private, b"'),
        (["immutable,, max-age=1"], "private, immutable, max-age=1"),
        (["private"], None),
        (["PRIVATE, max-age=60"], None),
        (["no-store"], None),
        (["public", "no-store"], None),
        (["no-cache"], None),
    ],
)
def test_no_shared_cache_keeps_a_keyed_response_by_itself(said: list[str], instead: str | None) -> None:
    found = cache_control(tuple(value.encode() for value in said))
    assert (found and found.decode()) == instead


@pytest.mark.parametrize(
    ("theirs", "whole"),
    [
        ([], "Authorization, Origin"),
        (["Accept-Encoding"], "Accept-Encoding, Authorization, Origin"),
        (["origin", "Accept"], "origin, Accept, Authorization"),
        (["authorization, Origin"], "authorization, Origin"),
        (["*"], "*"),
        (["Accept, *"], "*"),
        ([""], "Authorization, Origin"),
    ],
)
def test_our_names_join_those_that_the_upstream_varies_by(theirs: list[str], whole: str) -> None:
    assert vary((b"Authorization", b"Origin"), tuple(value.encode() for value in theirs)).decode() == whole


def test_vary_lists_the_headers_that_contain_credentials() -> None:
    assert credential_headers([BEARER, KEY, COOKIE, QUERY]) == ("Authorization", "X-Api-Key", "Cookie")
    again = Source(kind="header", name="authorization", scheme="Basic")
    assert len(credential_headers([BEARER, again])) == 1


PLAIN, CACHED = (), ((b"Cache-Control", b"public, max-age=60"), (b"Vary", b"Accept"))


@pytest.mark.parametrize(
    ("policy", "upstream", "in_query", "expected"),
    [
        ({}, PLAIN, False, {"vary": "X-Api-Key, Cookie", "cache-control": "private"}),
        ({}, CACHED, False, {"vary": "Accept, X-Api-Key, Cookie", "cache-control": "private, max-age=60"}),
        ({}, ((b"Cache-Control", b"no-store"),), False, {"vary": "X-Api-Key, Cookie"}),
        ({}, CACHED, True, {"vary": "Accept, X-Api-Key, Cookie", "cache-control": "no-store"}),
        ({"pass_through": False}, PLAIN, False, {"vary": "X-Api-Key", "cache-control": "private"}),
        ({"public": True}, PLAIN, False, {}),
        ({"public": True}, CACHED, False, {}),
        ({"public": True}, CACHED, True, {"cache-control": "no-store"}),
        ({"shared_cache": True}, CACHED, False, {}),
        ({"shared_cache": True}, CACHED, True, {"cache-control": "no-store"}),
        ({"public": True, "cors": cors()}, CACHED, False, {"vary": "Accept, Origin"}),
        ({"public": True, "cors": cors()}, PLAIN, False, {"vary": "Origin"}),
        ({"cors": cors()}, PLAIN, False, {"vary": "X-Api-Key, Cookie, Origin", "cache-control": "private"}),
    ],
)
def test_cache_headers_follow_the_route_and_the_upstream(
    policy: dict[str, Any], upstream: Headers, in_query: bool, expected: dict[str, str]
) -> None:
    at = route(**policy)
    sharing = SharingRules([at], sources=[KEY, QUERY], passing=[COOKIE]).of(at)
    assert sharing is not None
    assert told(sharing.fields(from_(), names(upstream), upstream, key_in_query=in_query)) == expected
