"""Attacks on the path where routes bind tenants, prefixes are changed and case does not count."""

import pytest

from tests.harness.running import Sidecar, StartSidecar
from tests.harness.targets import OTHER_CLIMBS, OVERLONG
from tests.harness.wire import request_bytes
from tests.wire.security.site import KEYS, Site


@pytest.mark.parametrize("target", OTHER_CLIMBS)
def test_path_traversal_in_any_spelling_opens_nothing(site: Site, target: str) -> None:
    site.refuses({400, 401}, "GET", target)
    site.refuses({400, 403}, "GET", target, key="Kr")
    site.refuses({400, 403}, "GET", target, key="Ka")


@pytest.mark.parametrize("piece", OVERLONG)
def test_bytes_that_are_not_utf_8_are_400(site: Site, piece: str) -> None:
    site.refuses(400, "GET", f"/public/{piece}/admin")
    site.refuses(400, "GET", f"/items/{piece}", key="Kr")


@pytest.mark.parametrize(
    "target",
    ["/items/..%5c..", "/items/..%5c..%5cadmin", "/items/%2e%2e%2f%2e%2e", "/items/../..", "/items/../../items/x"],
)
def test_nothing_climbs_above_the_root(site: Site, target: str) -> None:
    site.refuses(400, "GET", target, key="Kr")


@pytest.mark.parametrize(
    "target",
    [
        "http://api.test/public/../admin/x",
        "http://api.test/public/%2e%2e/admin",
        "http://api.test\\@evil.test/public/x",
        "http://evil.test\\.api.test/public/x",
        "http://api.test:80/public/x",
        "http://api.test./public/x",
        "http://@api.test/public/x",
        "http://api.test/public/x#",
        "http:////api.test/public/x",
        "http:/public/x",
        "http:public/x",
        "file:///public/x",
        "javascript:/public/x",
        "http://api.test?/public/x",
        "//api.test/public/x",
        "/\\api.test/public/x",
        "http://api.test/\\evil.test/x",
        "http://[::1]/public/x",
    ],
)
def test_absolute_form_targets_are_handled_safely(site: Site, target: str) -> None:
    site.refuses(400, "GET", target)


def test_the_scheme_of_an_absolute_form_does_not_open_what_its_path_does_not(site: Site) -> None:
    for target in ("HTTP://API.TEST/admin/x", "https://api.test/admin/x", "http://api.test"):
        site.refuses(403, "GET", target, key="Kr")
        site.refuses(401, "GET", target)


@pytest.mark.parametrize("unit", ["/..%2f", "%252e;\\", "/;/%2f//", "/a;b/../", "%2e/\\./;x//", "%25%32%66", "//", ";"])
def test_long_tangles_are_refused_or_decided_and_the_next_request_is_answered(site: Site, unit: str) -> None:
    target = "/public/" + unit * (7900 // len(unit))
    with site.sidecar.connect() as connection:
        assert connection.ask("GET", target).status in {200, 400}
        assert connection.ask("GET", "/public/x").status == 200


def test_requests_in_one_segment_are_each_judged_for_themselves(site: Site) -> None:
    credential = [("Authorization", f"Bearer {site.keys['Ka']}")]
    raw = [
        request_bytes("GET", "/admin/1", credential),
        request_bytes("GET", "/admin/2"),
        request_bytes("POST", "/public/3", body=b"GET /admin/4 HTTP/1.1\r\nHost: api.test\r\n\r\n"),
        request_bytes("GET", "/items/5"),
        request_bytes("GET", "/public/6"),
    ]
    with site.sidecar.connect() as connection:
        connection.send(b"".join(raw))
        statuses = [connection.receive().status for _ in raw]
    assert statuses == [200, 401, 200, 401, 200]
    seen = site.upstream.requests()
    assert [one.target for one in seen] == ["/admin/1", "/public/3", "/public/6"]
    assert [one.all("X-Auth-Subject") for one in seen] == [["t-Ka"], [], []]


TENANTS = (
    """\
listen: 127.0.0.1:0
upstream: {url: "http://127.0.0.1:1", strip_prefix: /api, add_prefix: /internal}
store: sqlite:///nowhere
paths: {case_sensitive: false}
scopes: {read: Read, admin: Administer}
routes:
  - "* /api/files/**": {scopes: [read]}
  - "* /api/files/{id}/secret": {scopes: [admin]}
  - "* /api/projects/{project}/**": {tenant: project}
"""
    + KEYS
)


@pytest.fixture(scope="module")
def tenants(start_shared_sidecar: StartSidecar) -> Sidecar:
    return start_shared_sidecar(TENANTS)


@pytest.fixture(scope="module")
def acme(tenants: Sidecar) -> str:
    return tenants.keys.issue(tenant="acme", scopes=("read",)).text


@pytest.mark.parametrize(
    "path",
    [
        "/api/projects/acme/../other/x",
        "/api/projects/acme%2f..%2fother/x",
        "/api/projects/acme/%2e%2e/other/x",
        "/api/projects/acme;/../other/x",
        "/api/projects/other;/../acme/x",
        "/api/projects/acme%2fx",
        "/api/projects/acme%00/x",
        "/api/projects/acme%2500/x",
        "/api/projects/acme%2500.png",
        "/api/projects/acme%25ff/x",
        "/api/projects/%25ffacme/x",
        "/api/files/1/secret%2500.png",
        "/api/files/1/secret%25ff",
        "/api/files/1/s%2501ecret",
        "/api/files/1%2500x/secret",
        "/api/files/1/%25ffsecret",
        "/api%2500/files/1",
        "/api%25ff/files/1",
        "/api/projects/%61cme/x",
        "/api/projects/acme;x/y",
        "/api/projects/acme%20/x",
        "/api/projects//acme/x",
        "/api/projects/ACME/x",
        "/api/projects/*/x",
        "/api/projects/%2a/x",
        "/api/projects/x",
        "/api/projects/",
        "/api/files/1/SECRET",
        "/api/FILES/1/secret",
        "/api/files/1/%73ecret",
        "/api/files/1/secret;x",
        "/api/files/a%2fb/%73ecret",
        "/api/files/1%2fsecret",
        "/api/../internal/x",
        "/api",
        "/apifiles/x",
    ],
)
def test_bindings_and_specific_routes_hold_in_every_spelling(
    tenants: Sidecar, acme: str, site: Site, path: str
) -> None:
    assert tenants.ask("GET", path, key=acme).status in {400, 403}
    assert site.upstream.requests() == []


@pytest.mark.parametrize(
    ("path", "forwarded"),
    [
        ("/api/projects/acme/x?y", "/internal/projects/acme/x?y"),
        ("/api/Projects/acme", "/internal/Projects/acme"),
        ("/api/files/1/secrets", "/internal/files/1/secrets"),
        ("/api/files/a%20b//c", "/internal/files/a%20b//c"),
        ("/api/files/50%25cashback", "/internal/files/50%25cashback"),
        ("/api/files/50%2500ml/secrets", "/internal/files/50%2500ml/secrets"),
    ],
)
def test_allowed_requests_keep_their_path_below_the_prefix(
    tenants: Sidecar, acme: str, site: Site, path: str, forwarded: str
) -> None:
    assert tenants.ask("GET", path, key=acme).status == 200
    assert site.upstream.last().target == forwarded


def test_a_prefix_in_another_case_is_not_cut_off_blindly(tenants: Sidecar, acme: str, site: Site) -> None:
    assert tenants.ask("GET", "/API/files/1", key=acme).status in {400, 403}
    assert site.upstream.requests() == []
