"""What the upstream learns about the key."""

from sidecar.core.upstream_request import IdentityHeaders, appended, forwarded_header, forwarding_headers
from tests.unit.core.samples import api_key

KEY = api_key(
    name="Zoë\r\nX-Admin: 1",
    tenant="acme",
    scopes=("streams:read", "vod:*"),
    metadata={"user_id": "u1"},
    expires_at=1_800_000_000_000_000,
)


def test_headers_contain_what_is_stored_about_the_key() -> None:
    identity = IdentityHeaders(
        {
            "X-Id": "{key.id}",
            "X-Scopes": "{key.scopes}",
            "X-User": "u:{key.metadata.user_id}",
            "X-Exp": "{key.expires_at}",
        }
    )
    assert identity.of_key(KEY) == (
        (b"X-Id", b"key_1"),
        (b"X-Scopes", b"streams:read vod:*"),
        (b"X-User", b"u:u1"),
        (b"X-Exp", b"2027-01-15T08:00:00Z"),
    )


def test_unknown_values_are_shown_as_empty() -> None:
    assert IdentityHeaders({"X-Plan": "{key.plan}", "X-M": "{key.metadata.none}"}).of_key(KEY) == (
        (b"X-Plan", b""),
        (b"X-M", b""),
    )


def test_a_name_with_a_line_break_stays_one_line() -> None:
    assert IdentityHeaders({"X-Name": "{key.name}"}).of_key(KEY) == ((b"X-Name", b"Zo%C3%AB%0D%0AX-Admin: 1"),)


def test_the_request_id_is_injected_into_each_request() -> None:
    identity = IdentityHeaders({"X-Id": "{key.id}", "X-Trace": "{request.id}/{key.id}"})
    assert identity.of_key(KEY) == ((b"X-Id", b"key_1"),)
    assert identity.of_request(KEY, "r1") == ((b"X-Trace", b"r1/key_1"),)
    assert identity.of_request(KEY, "r2") == ((b"X-Trace", b"r2/key_1"),)


def test_forwarding_headers_describe_the_socket() -> None:
    told = forwarding_headers("198.51.100.7", "https", b"h")
    assert (b"X-Forwarded-For", b"198.51.100.7") in told
    assert b"X-Forwarded-For" not in dict(forwarding_headers("", "http", b"h"))
    assert forwarded_header("", "http", b"h") == b'for=unknown;proto=http;host="h"'


def test_appending_makes_one_line_of_them_all() -> None:
    before = [(b"x-f", b"1"), (b"A", b"a"), (b"X-F", b"2")]
    assert appended(before, b"X-F", b"3") == [(b"A", b"a"), (b"X-F", b"1, 2, 3")]
    assert appended([], b"X-F", b"3") == [(b"X-F", b"3")]
