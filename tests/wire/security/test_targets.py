"""Target and path."""

import pytest

from tests.harness.targets import CLIMBS, DISGUISES, MALFORMED, PERCENT_NAMES, TWICE_DECODED
from tests.harness.wire import request_bytes
from tests.wire.security.site import Site


@pytest.mark.requirement("S1.1")
@pytest.mark.parametrize("target", CLIMBS)
def test_path_traversal_out_of_a_public_path_is_400(site: Site, target: str) -> None:
    site.refuses(400, "GET", target)


@pytest.mark.requirement("S1.1")
@pytest.mark.parametrize("target", CLIMBS)
def test_path_traversal_is_400_even_with_a_key_for_both_routes(site: Site, target: str) -> None:
    site.refuses(400, "GET", target, key="Ka")


@pytest.mark.requirement("S1.2")
@pytest.mark.parametrize("target", DISGUISES)
def test_a_disguised_path_opens_nothing(site: Site, target: str) -> None:
    site.refuses({400, 403}, "GET", target, key="Kr")


@pytest.mark.requirement("S1.3")
def test_an_escaped_letter_or_another_case_opens_nothing(site: Site) -> None:
    site.refuses(403, "GET", "/%61dmin/x", key="Kr")
    for target in ("/ADMIN/x", "/Admin/x"):
        for key in ("Kr", "Ka"):
            site.refuses(403, "GET", target, key=key)
        site.refuses(401, "GET", target)


@pytest.mark.requirement("S1.4")
@pytest.mark.parametrize("target", ["/publicX", "/public.", "/public%20", "/publi", "/xpublic/y", "/PUBLIC/x", "/"])
def test_patterns_match_whole_segments(site: Site, target: str) -> None:
    site.refuses(401, "GET", target)


@pytest.mark.requirement("S1.5")
def test_the_query_never_takes_part(site: Site) -> None:
    site.refuses(401, "GET", "/items/1?x=/public/")
    site.refuses(401, "GET", "/items/1?/../../public/x")
    for target in ("/public/x?../admin", "/public/x?/../../admin", "/public/x?%00%ff%zz%", "/public?/;\\//.."):
        site.passes("GET", target)


@pytest.mark.requirement("S1.6")
@pytest.mark.parametrize(
    "target",
    [
        "/public/x#y",
        "/public#",
        "/public?x#y",
        "http://evil.test/public/x",
        "http://api.test@evil.test/public/x",
        "http://api.test:81/public/x",
        "https://api.test.evil.test/public/x",
        "http://api.test//admin/x",
        "http:///public/x",
        "ftp://api.test/public/x",
        "api.test:80",
        "admin",
        "public/x",
        "*",
        "?x",
    ],
)
def test_other_forms_of_a_target_are_400(site: Site, target: str) -> None:
    # `GET *` is no form that any method but OPTIONS has; either refusal names what is wrong.
    site.refuses({400, 405} if target == "*" else 400, "GET", target)


@pytest.mark.requirement("S1.6")
def test_the_absolute_form_for_this_very_host_is_judged_by_its_path(site: Site) -> None:
    assert site.ask("GET", "http://api.test/public/x?y=1").status == 200
    assert site.upstream.last().target == "/public/x?y=1"
    site.refuses(401, "GET", "http://api.test/admin/x")
    site.refuses(400, "GET", "http://api.test/public/../admin/x")


@pytest.mark.requirement("S1.6")
def test_options_of_the_server_is_answered_by_us(site: Site) -> None:
    response = site.ask("OPTIONS", "*")
    assert (response.status, response.body) == (204, b"")
    assert site.upstream.requests() == []


@pytest.mark.requirement("S1.6")
@pytest.mark.parametrize("key", ["", "Ka"])
def test_connect_and_trace_are_405(site: Site, key: str) -> None:
    site.refuses(405, "CONNECT", "api.test:80", key=key)
    site.refuses(405, "CONNECT", "/public/x", key=key)
    site.refuses(405, "TRACE", "/public/x", key=key)
    site.refuses(405, "TRACE", "/admin/x", key=key)


@pytest.mark.requirement("S1.7")
@pytest.mark.parametrize("piece", MALFORMED)
@pytest.mark.parametrize("prefix", ["/public/", "/items/", "/nowhere/"])
def test_forbidden_bytes_in_a_path_are_400(site: Site, prefix: str, piece: str) -> None:
    site.refuses(400, "GET", prefix + piece)
    site.refuses(400, "GET", prefix + piece, key="Ka")
    site.refuses(400, "GET", f"{prefix}{piece}/x?y", key="Kr")


@pytest.mark.requirement("S1.7")
def test_a_raw_control_in_the_target_is_400(site: Site) -> None:
    for byte in (b"\x00", b"\x01", b"\x0b", b"\x1f", b"\x7f", b"\t"):
        site.refuses_bytes(400, b"GET /public/a" + byte + b"b HTTP/1.1\r\nHost: api.test\r\n\r\n")
        site.refuses_bytes(400, b"GET /public/a?b" + byte + b" HTTP/1.1\r\nHost: api.test\r\n\r\n")


@pytest.mark.requirement("S1.8")
@pytest.mark.parametrize(
    "target",
    [
        "/items/a%20b+c;d=1?x=%2F+%2b&y=a%26b&&z=%7E~",
        "/items/x?",
        "/items/",
        "/items",
        "/items/%E2%82%AC",
        "/items/%e2%82%ac?%E2",
        "/items/a%2fb",
        "/items/a//b/./c",
        "/items/~!$&'()*+,=:@-._",
        '/items/[1]{2}|^`"<>?[]{}|^`"<>\'\\',
        "/items/x?a=http://u:p@h/?b=c??d",
    ],
)
def test_the_target_is_forwarded_byte_for_byte(site: Site, target: str) -> None:
    site.passes("GET", target, key="Kr")


@pytest.mark.requirement("S1.8")
@pytest.mark.parametrize("name", PERCENT_NAMES)
def test_a_name_with_a_percent_sign_is_forwarded_where_one_route_takes_all_its_readings(site: Site, name: str) -> None:
    site.passes("GET", f"/items/{name}", key="Kr")
    site.passes("GET", f"/items/{name}/x?y", key="Kr")
    site.refuses(401, "GET", f"/items/{name}")
    site.refuses(403, "GET", f"/admin/{name}", key="Kr")


@pytest.mark.requirement("S1.2")
@pytest.mark.parametrize(
    "target", [*TWICE_DECODED, "/admin%2500/x", "/admin%25ff/x", "/items%2500/1", "/%25ffitems/x", "/%2500admin"]
)
def test_a_second_decoding_opens_nothing(site: Site, target: str) -> None:
    site.refuses({400, 401}, "GET", target)
    for key in ("Kr", "Ka"):
        site.refuses({400, 403}, "GET", target, key=key)


@pytest.mark.requirement("S1.9")
@pytest.mark.parametrize("method", ["get", "GeT", "Get", "pOST"])
def test_methods_are_case_sensitive(site: Site, method: str) -> None:
    for key in ("", "Ka", "Kr"):
        site.refuses({400, 405}, method, "/items/x", key=key)
        site.refuses({400, 405}, method, "/public/x", key=key)


@pytest.mark.requirement("S1.9")
@pytest.mark.parametrize("method", ["BREW", "PROPFIND", "M-SEARCH", "X", "DELETE", "PATCH"])
def test_a_method_without_a_route_is_refused(site: Site, method: str) -> None:
    site.refuses({403, 405}, method, "/items/x", key="Ka")
    site.refuses({401, 405}, method, "/items/x")


@pytest.mark.requirement("S1.10")
@pytest.mark.parametrize("name", ["X-HTTP-Method-Override", "X-Method-Override", "X-HTTP-Method", "x_http_method"])
def test_the_decision_is_on_the_method_line(site: Site, name: str) -> None:
    seen = site.passes("GET", "/items/x", [(name, "DELETE")], key="Kr")
    assert name.lower() not in seen.names
    site.refuses(403, "POST", "/items/x", [(name, "GET")], key="Kr")


@pytest.mark.requirement("S1.10")
def test_head_is_judged_as_get(site: Site) -> None:
    site.passes("HEAD", "/items/x", key="Kr")
    assert site.ask("HEAD", "/items/x").status == 401
    assert site.ask("HEAD", "/items/x", key="Kw").status == 403
    assert site.upstream.requests() == []


def test_the_wrong_scope_and_the_right_one(site: Site) -> None:
    site.passes("GET", "/items/1", key="Kr")
    site.passes("POST", "/items/1", key="Kw", body=b"x")
    site.passes("GET", "/admin/x", key="Ka")
    site.refuses(403, "POST", "/items/1", key="Kr")
    site.refuses(403, "GET", "/items/1", key="Kw")
    site.refuses(403, "GET", "/admin/x", key="Kw")


def test_a_refused_request_does_not_spoil_the_next_one_on_its_connection(site: Site) -> None:
    with site.sidecar.connect() as connection:
        assert connection.exchange(request_bytes("GET", "/public/../admin/x")).status == 400
        assert connection.exchange(request_bytes("GET", "/public/x")).status == 200
    assert [seen.target for seen in site.upstream.requests()] == ["/public/x"]
