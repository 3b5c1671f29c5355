"""The target and fields that the upstream gets instead of the client's own."""

import re
from ipaddress import ip_network
from typing import Any

import pytest

from sidecar.core.client_address import TrustedProxies
from sidecar.core.credentials import Credential
from sidecar.core.headers import HeaderRules
from sidecar.core.model import Headers, RequestHead, Source
from sidecar.core.target import parse_target, readings
from sidecar.core.upstream_request import ADMIN_COOKIES, Injection, request_id

BEARER = Source(kind="header", name="Authorization", scheme="Bearer")
QUERY = Source(kind="query", name="api_key")
COOKIE = Source(kind="cookie", name="api_key")
OURS = Credential(text="hv_live_x", sources=frozenset({BEARER}))
FOREIGN = Credential(text="a.jwt", foreign=True)
IDENTITY: Headers = ((b"X-Request-Id", b"r1"), (b"X-Auth-Subject", b"key_1"))
HOST = b"api.test"


def injection(*, forwarded: bytes = b"x-forwarded-for", **changes: Any) -> Injection:
    rules = HeaderRules(
        identity=("X-Auth-Subject",), strip=(), keep=(), credential=("Authorization",), request_id="X-Request-Id"
    )
    proxies = TrustedProxies([ip_network("10.0.0.0/8")], forwarded)
    values = {"forward_credential": False, "strip_prefix": "", "add_prefix": "", **changes}
    return Injection(rules=rules, proxies=proxies, **values)


def sent(
    *headers: tuple[bytes, bytes],
    credential: Credential | None = None,
    peer: str = "203.0.113.5",
    by: Injection | None = None,
) -> list[tuple[bytes, bytes]]:
    by = by or injection()
    head = RequestHead(method="GET", target="/", headers=headers, peer=peer)
    return list(by.headers(head, by.rules.classify(headers), credential, None, host=HOST, identity=IDENTITY))


def values(headers: list[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    return [value for field, value in headers if field.lower() == name]


def target_of(raw: str, credential: Credential | None, **changes: Any) -> str:
    target = parse_target(raw, "api.test")
    return injection(**changes).target(target, readings(target.path), credential)


def test_identity_headers_are_added_last_and_only_by_us() -> None:
    headers = sent((b"x_auth_subject", b"me"), (b"Accept", b"*/*"), (b"X-Request-Id", b"theirs"))
    assert headers[-2:] == list(IDENTITY)
    assert values(headers, b"x-auth-subject") == [b"key_1"]
    assert values(headers, b"x-request-id") == [b"r1"]
    assert values(headers, b"x_auth_subject") == []


@pytest.mark.parametrize(
    "connection", [b"X-Auth-Subject", b"x-auth-SUBJECT, X-Request-Id", b"X-Forwarded-For, X-Forwarded-Host"]
)
def test_a_connection_field_cannot_remove_what_we_add(connection: bytes) -> None:
    assert sent((b"Connection", connection)) == sent()


def test_a_connection_field_removes_the_other_fields_that_it_names() -> None:
    headers = sent((b"X-Hop", b"1"), (b"Connection", b"close"), (b"connection", b"x-hop, Cookie"), (b"Cookie", b"a=1"))
    assert values(headers, b"x-hop") == []
    assert values(headers, b"cookie") == []
    assert values(headers, b"connection") == []


def test_an_untrusted_peer_is_identified_by_its_socket() -> None:
    headers = sent((b"X-Forwarded-For", b"6.6.6.6"), (b"Forwarded", b"for=6.6.6.6"), (b"X-Real-IP", b"6.6.6.6"))
    assert values(headers, b"x-forwarded-for") == [b"203.0.113.5"]
    assert values(headers, b"x-forwarded-proto") == [b"http"]
    assert values(headers, b"x-forwarded-host") == [HOST]
    assert values(headers, b"forwarded") == values(headers, b"x-real-ip") == []


def test_a_trusted_proxys_forwarding_field_is_kept_and_extended() -> None:
    headers = sent(
        (b"X-Forwarded-For", b"6.6.6.6"),
        (b"X-Forwarded-Proto", b"https"),
        (b"X-Forwarded-For", b"198.51.100.7"),
        (b"Forwarded", b"for=5.5.5.5"),
        peer="10.0.0.1",
    )
    assert values(headers, b"x-forwarded-for") == [b"6.6.6.6, 198.51.100.7, 10.0.0.1"]
    assert values(headers, b"x-forwarded-proto") == [b"https"]
    assert values(headers, b"x-forwarded-host") == [HOST]
    assert values(headers, b"forwarded") == []


def test_forwarded_is_written_if_proxies_use_it() -> None:
    speaking = injection(forwarded=b"forwarded")
    alone = sent((b"Forwarded", b"for=6.6.6.6"), by=speaking, peer="2001:db8::1")
    assert values(alone, b"forwarded") == [b'for="[2001:db8::1]";proto=http;host="api.test"']
    behind = sent((b"Forwarded", b"for=6.6.6.6"), (b"X-Forwarded-For", b"5.5.5.5"), by=speaking, peer="10.0.0.1")
    assert values(behind, b"forwarded") == [b'for=6.6.6.6, for=10.0.0.1;proto=http;host="api.test"']
    assert values(behind, b"x-forwarded-for") == []


def test_a_key_of_ours_stays_with_us_unless_configured() -> None:
    authorization = (b"Authorization", b"Bearer hv_live_x")
    assert values(sent(authorization, credential=OURS), b"authorization") == []
    assert values(sent(authorization, credential=None), b"authorization") == []
    configured = injection(forward_credential=True)
    assert values(sent(authorization, credential=OURS, by=configured), b"authorization") == [b"Bearer hv_live_x"]


def test_a_foreign_credential_reaches_the_upstream_unchanged() -> None:
    headers = sent((b"AUTHORIZATION", b"Bearer a.jwt"), (b"x_auth_subject", b"me"), credential=FOREIGN)
    assert (b"AUTHORIZATION", b"Bearer a.jwt") in headers
    assert values(headers, b"x_auth_subject") == []


@pytest.mark.parametrize(
    ("line", "left"),
    [
        (b"api_key=hv_live_x", []),
        (b"a=1; api_key=hv_live_x; b=2", [b"a=1; b=2"]),
        (b"a=1;api_key=hv_live_x", [b"a=1"]),
        (b"api_keys=1; api_key=hv_live_x", [b"api_keys=1"]),
    ],
)
def test_a_key_is_removed_from_the_cookies_and_the_others_stay(line: bytes, left: list[bytes]) -> None:
    credential = Credential(text="hv_live_x", sources=frozenset({COOKIE}))
    headers = sent((b"Cookie", line), (b"cookie", b"c=3"), credential=credential)
    assert values(headers, b"cookie") == [*left, b"c=3"]


def test_a_key_is_removed_from_the_query_and_the_rest_is_unchanged() -> None:
    credential = Credential(text="hv_live_x", sources=frozenset({QUERY}))
    assert target_of("/a?api_key=hv_live_x", credential) == "/a"
    assert target_of("/a%20b?x=%2F+&api_key=hv_live_x&&y", credential) == "/a%20b?x=%2F+&&y"
    assert target_of("/a?api_key=hv_live_x", credential, forward_credential=True) == "/a?api_key=hv_live_x"


def test_a_parameter_that_was_not_the_key_stays() -> None:
    assert target_of("/a?api_key=1", OURS) == "/a?api_key=1"
    assert target_of("/a?", None) == "/a?"


def test_prefixes_are_added_and_removed() -> None:
    assert target_of("/v1/x?y", None, strip_prefix="/v1", add_prefix="/internal") == "/internal/x?y"


KEYS = re.compile(b"key_[a-z]+")


@pytest.mark.parametrize("value", [b"a", b"0af7651916cd43dd", b"a-b.c_d~e+f/g=h:i", b"x" * 128])
def test_a_request_id_of_the_clients_is_kept_where_it_is_safe(value: bytes) -> None:
    assert request_id({b"x-request-id": [value]}, b"x-request-id", KEYS) == value.decode()


@pytest.mark.parametrize(
    "value",
    [
        *(b"", b" ", b"a b", b"x" * 129, b"a\r\nX: y", b"a\x00", b"\xe9", b'a"', b"<b>", b"a,b", b"{key.id}", b"a%0a"),
        b"a.key_abc",
    ],
)
def test_any_other_request_id_is_replaced(value: bytes) -> None:
    assert request_id({b"x-request-id": [value]}, b"x-request-id", KEYS) is None


def test_two_request_ids_count_as_none() -> None:
    assert request_id({b"x-request-id": [b"a", b"a"]}, b"x-request-id", KEYS) is None
    assert request_id({}, b"x-request-id", KEYS) is None


def test_the_cookie_of_the_admin_page_does_not_reach_the_upstream_and_the_others_do() -> None:
    """Browsers send it to every port of a host."""
    by = injection(withheld_cookies=ADMIN_COOKIES)
    lines = [(b"Cookie", b"a=1; sidecar_session=s3cret; b=2"), (b"cookie", b"__Host-sidecar_session=s3cret")]
    foreign = Credential(text="a.jwt", foreign=True, sources=frozenset({BEARER}))
    for credential in (None, OURS, foreign):
        assert values(sent(*lines, credential=credential, by=by), b"cookie") == [b"a=1; b=2"]
    assert values(sent((b"Cookie", b"xsidecar_session=1"), by=by), b"cookie") == [b"xsidecar_session=1"]
    assert len(values(sent(*lines), b"cookie")) == 2
