"""The places of a key, and what happens to it."""

import json
import sqlite3

import pytest

from tests.harness.running import Sidecar, StartSidecar
from tests.wire.security.site import BASE, KEYS, Site

QUERY_AND_COOKIE = BASE + KEYS.replace(
    "{header: X-Api-Key}]", "{header: X-Api-Key}, {query: api_key}, {cookie: api_key}]"
)
PRESENTED = [
    ("Authorization", "Bearer {}"),
    ("Authorization", "Bearer   {}"),
    ("authorization", "bearer {}"),
    ("X-Api-Key", "{}"),
    ("X-API-KEY", "{}"),
]


@pytest.fixture(scope="module")
def lenient(start_shared_sidecar: StartSidecar) -> Sidecar:
    """A sidecar that also accepts keys in the query and a cookie."""
    return start_shared_sidecar(QUERY_AND_COOKIE)


@pytest.fixture(scope="module")
def lenient_key(lenient: Sidecar) -> str:
    return lenient.keys.issue(scopes=("read",)).text


@pytest.mark.requirement("S2.4")
@pytest.mark.parametrize(("name", "form"), PRESENTED)
@pytest.mark.parametrize("target", ["/items/x", "/public/x"])
def test_the_credential_never_reaches_the_upstream(site: Site, name: str, form: str, target: str) -> None:
    key = site.keys["Kr"]
    seen = site.passes("GET", target, [(name, form.format(key))])
    assert key.encode() not in seen.head
    assert name.lower() not in seen.names


@pytest.mark.requirement("S2.4")
@pytest.mark.parametrize("name", ["X_Api_Key", "X.Api.Key", "x--api-key", "X~Api~Key"])
def test_a_key_in_a_lookalike_header_is_not_forwarded(site: Site, name: str) -> None:
    key = site.keys["Kr"]
    site.refuses(401, "GET", "/items/x", [(name, key)])
    assert key.encode() not in site.passes("GET", "/public/x", [(name, key)]).head


@pytest.mark.requirement("S2.4")
def test_both_headers_are_removed_if_both_contain_the_key(site: Site) -> None:
    key = site.keys["Kr"]
    seen = site.passes("GET", "/items/x", [("X-Api-Key", key), ("Authorization", f"Bearer {key}")])
    assert key.encode() not in seen.head


@pytest.mark.requirement("S2.4")
def test_the_credential_reaches_the_upstream_if_configured(start_sidecar: StartSidecar, site: Site) -> None:
    sidecar = start_sidecar(f"{BASE}{KEYS}  forward_credential: true\n")
    key = sidecar.keys.issue(scopes=("read",)).text
    assert sidecar.ask("GET", "/items/x", key=key).status == 200
    assert site.upstream.last().header("Authorization") == f"Bearer {key}"


@pytest.mark.requirement("S2.4")
@pytest.mark.parametrize("query", ["api_key={}", "a=b&token={}", "key={}&x", "%61pi_key={}"])
@pytest.mark.parametrize("target", ["/items/x", "/public/x"])
def test_a_key_in_the_query_is_refused_unless_enabled(site: Site, query: str, target: str) -> None:
    key = site.keys["Kr"]
    for text in (key, "%68" + key[1:]):
        response = site.refuses(401, "GET", f"{target}?{query.format(text)}")
        assert key not in str(response)
    site.refuses(401, "GET", f"{target}?{query.format(key)}", key="Kr")


@pytest.mark.requirement("S2.4")
@pytest.mark.parametrize(
    ("query", "left"),
    [
        ("api_key={}", "/items/x"),
        ("a=%2F+&api_key={}&&b=~", "/items/x?a=%2F+&&b=~"),
        ("api%5Fkey={}&a", "/items/x?a"),
        ("a&api_key={}", "/items/x?a"),
    ],
)
def test_an_enabled_query_key_leaves_the_query_and_every_log(
    lenient: Sidecar, lenient_key: str, site: Site, query: str, left: str
) -> None:
    response = lenient.ask("GET", f"/items/x?{query.format(lenient_key)}", [("X-Request-Id", f"q{hash(query)}")])
    assert response.status == 200
    seen = site.upstream.last()
    assert seen.target == left
    assert lenient_key.encode() not in seen.head
    line = lenient.logged(lambda line: line["request_id"] == f"q{hash(query)}")
    assert lenient_key not in json.dumps(line)
    assert line["path"] == "/items/x"


@pytest.mark.requirement("S2.4")
@pytest.mark.parametrize(
    ("line", "left"),
    [
        ("api_key={}", []),
        ("a=1; api_key={}; b=2", ["a=1; b=2"]),
        ("a=1;api_key={}", ["a=1"]),
        ("\tapi_key={};b=2", ["b=2"]),
    ],
)
def test_an_enabled_cookie_key_leaves_the_cookies(
    lenient: Sidecar, lenient_key: str, site: Site, line: str, left: list[str]
) -> None:
    assert lenient.ask("GET", "/items/x", [("Cookie", line.format(lenient_key))]).status == 200
    seen = site.upstream.last()
    assert seen.all("cookie") == left
    assert lenient_key.encode() not in seen.head


@pytest.mark.requirement("S2.4")
@pytest.mark.parametrize("line", ["\xa0api_key={}", "a=1; \x85api_key={}"])
def test_a_cookie_that_only_python_would_strip_is_not_a_key(
    lenient: Sidecar, lenient_key: str, site: Site, line: str
) -> None:
    response = lenient.ask("GET", "/items/x", [("Cookie", line.format(lenient_key))])
    assert response.status in {400, 401}
    assert site.upstream.requests() == []


@pytest.mark.requirement("S2.5")
def test_two_key_headers_or_one_with_a_comma_are_401(site: Site) -> None:
    key, other = site.keys["Kr"], site.keys["Kw"]
    for name, form in (("X-Api-Key", "{}"), ("Authorization", "Bearer {}")):
        one, two = form.format(key), form.format(other)
        for lines in ([one, two], [one, one], [two, one], ["", one], [one, ""], ["x", one]):
            site.refuses(401, "GET", "/items/x", [(name, line) for line in lines])
            site.refuses(401, "GET", "/public/x", [(name, line) for line in lines])
        for value in (f"{one},{two}", f"{one}, {two}", f"{one},", f",{one}", f"{one};{two}", f"{one} {two}"):
            site.refuses(401, "GET", "/items/x", [(name, value)])


@pytest.mark.requirement("S2.5")
def test_two_sources_that_disagree_are_401(site: Site) -> None:
    for bearer, header in (("Kr", "Kw"), ("Kw", "Kr"), ("Kr", "Kx"), ("Kv", "Kr")):
        fields = [("Authorization", f"Bearer {site.keys[bearer]}"), ("X-Api-Key", site.keys[header])]
        site.refuses(401, "GET", "/items/x", fields)
        site.refuses(401, "GET", "/public/x", fields)
    site.refuses(401, "GET", "/items/x", [("Authorization", "Basic eDp5"), ("X-Api-Key", site.keys["Kr"])])
    site.refuses(401, "GET", "/items/x", [("Authorization", ""), ("X-Api-Key", site.keys["Kr"])])


@pytest.mark.requirement("S2.5")
def test_query_and_cookie_are_sources_that_may_disagree(lenient: Sidecar, lenient_key: str, site: Site) -> None:
    other = lenient.keys.issue(scopes=("read",)).text
    query, cookie = f"/items/x?api_key={other}", [("Cookie", f"api_key={other}")]
    responses = [
        lenient.ask("GET", query, key=lenient_key),
        lenient.ask("GET", "/items/x", cookie, key=lenient_key),
        lenient.ask("GET", f"/items/x?api_key={lenient_key}&api_key={lenient_key}"),
        lenient.ask("GET", f"/items/x?api_key={lenient_key}", cookie),
    ]
    assert [response.status for response in responses] == [401] * 4
    assert site.upstream.requests() == []


CANARY = "hv_live_canary"
BAD_VALUES = {
    "empty": b"",
    "blank": b"   ",
    "tab": b"\t",
    "nul": CANARY.encode() + b"\x00",
    "controls": CANARY.encode() + b"\x01\x1b[31m",
    "vertical tab": CANARY.encode() + b"\x0b",
    "delete": CANARY.encode() + b"\x7f",
    "inner tab": CANARY.encode() + b"\tx",
    "high bytes": CANARY.encode() + b"\xe9\xff",
    "utf-8": CANARY.encode() + "ключ".encode(),
    "long": CANARY.encode() + b"a" * 5000,
    "past the cap of a field": CANARY.encode() + b"a" * 9000,
    "past the cap of all": CANARY.encode() + b"a" * 200_000,
    "bare CR": CANARY.encode() + b"\rX: y",
}


@pytest.mark.requirement("S2.6")
@pytest.mark.parametrize("case", BAD_VALUES)
@pytest.mark.parametrize("lead", [b"X-Api-Key: ", b"Authorization: Bearer ", b"Authorization: "])
@pytest.mark.parametrize("target", [b"/items/x", b"/public/x"])
def test_a_key_header_without_a_key_is_refused(site: Site, case: str, lead: bytes, target: bytes) -> None:
    raw = b"GET " + target + b" HTTP/1.1\r\nHost: api.test\r\n" + lead + BAD_VALUES[case] + b"\r\n\r\n"
    # Past a cap of the parser the line is too large before it is a key: 431.
    response = site.refuses_bytes({400, 401, 431} if case.startswith("past") else {400, 401}, raw)
    assert "canary" not in str(response)


@pytest.mark.requirement("S2.6")
def test_no_part_of_a_refused_key_is_in_any_log(start_sidecar: StartSidecar) -> None:
    sidecar = start_sidecar(BASE + KEYS, environ={"PYTHONASYNCIODEBUG": "1"})
    for value in BAD_VALUES.values():
        for lead in (b"X-Api-Key: ", b"Authorization: Bearer "):
            sidecar.exchange(b"GET /items/x HTTP/1.1\r\nHost: h\r\n" + lead + value + b"\r\n\r\n")
    sidecar.ask("GET", "/items/x?api_key=hv_live_canary123")
    assert sidecar.stop() == 0
    written = "\n".join([*sidecar.process.stdout.all(), *sidecar.process.stderr.all()])
    assert "/items/x" in written
    assert "canary" not in written


@pytest.mark.requirement("S2.7")
@pytest.mark.parametrize(
    "text",
    [
        "' OR 1=1 --",
        "hv_live_' OR '1'='1",
        "hv_live_x'; DROP TABLE api_key; --",
        'hv_live_" UNION SELECT * FROM api_key --',
    ],
)
def test_sql_in_a_key_is_401_and_the_store_untouched(site: Site, text: str) -> None:
    before = rows(site)
    for name, value in (("X-Api-Key", text), ("Authorization", f"Bearer {text}")):
        site.refuses(401, "GET", "/items/x", [(name, value)])
    assert rows(site) == before
    site.passes("GET", "/items/x", key="Kr")


def rows(site: Site) -> list[tuple[object, ...]]:
    store = sqlite3.connect(site.sidecar.keys.store)
    try:
        return store.execute("SELECT id, digest, status, scopes FROM api_key ORDER BY id").fetchall()
    finally:
        store.close()
