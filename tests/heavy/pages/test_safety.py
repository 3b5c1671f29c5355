"""What the page must never do: execute input, obey another site, or show others' data."""

import html
import re
from urllib.parse import quote

import pytest
from playwright.sync_api import Page, expect

from tests.harness.running import StartSidecar
from tests.heavy.pages.site import ACME, READER, TOKEN, Site, start_site

HOSTILE = (
    "<img src=x onerror=alert(1)>",
    '"><script>alert(1)</script>',
    "'); alert(1); //",
    "=cmd|' /C calc'!A0",
    "{{ 1301 * 1303 }} {% raw %} ${1301*1303}",
)
ROUTE, WHY = "/policy/GET%20%2Fv1%2Fstreams%2F**", "/refusals/told"
PAGES = ("/", "/keys", "/keys/new", "/policy", ROUTE, WHY, "/audit", "/explain", "/sign-in")
HOSTILE_ROUTE = "GET /'&ltimg=x(1)/{id}:go/**"
"""With all that a pattern may hold of what HTML and scripts read."""
STRICT = {
    "default-src": "'none'",
    "script-src": "'self'",
    "connect-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self'",
    "form-action": "'self'",
    "frame-ancestors": "'none'",
    "base-uri": "'none'",
}


@pytest.fixture(scope="module")
def house(start_shared_sidecar: StartSidecar) -> Site:
    """One sidecar for those tests that leave no trace in each other's way, with the refusal of the page WHY."""
    site = start_site(start_shared_sidecar)
    site.sidecar.ask("GET", "/nowhere", [("X-Request-Id", "told")])
    return site


@pytest.fixture
def inside(house: Site) -> Site:
    """The same, signed in without a browser."""
    house.cookie = house.proof = ""
    house.enter()
    return house


def test_a_keys_name_is_shown_and_never_executed(page: Page, site: Site) -> None:
    keys = [
        site.sidecar.keys.issue(name, tenant="<b>x<b>y", metadata={"note": name}, scopes=("streams:read",))
        for name in HOSTILE
    ]
    site.let_in(page)
    for target in (
        "/keys",
        "/audit",
        ROUTE,
        *(f"/keys/{key.id}{more}" for key in keys for more in ("", "/change", "/revoke")),
    ):
        page.goto(site.url + target)
        shown = page.content()
        assert page.locator("img, script:not([src]), [onerror], main b b").count() == 0, target
        assert page.locator("main").is_visible() and "1695203" not in shown, target
    page.goto(site.url + "/keys")
    for name in HOSTILE:
        expect(page.get_by_role("link", name=name, exact=True)).to_be_visible()


def test_names_of_routes_and_paths_are_shown_and_never_executed(page: Page, start_sidecar: StartSidecar) -> None:
    site = start_site(start_sidecar, more=f'  - "{HOSTILE_ROUTE}": {{scopes: [streams:read]}}\n')
    path = "/<script>alert(2)</script>/{{ 1301 * 1303 }}"
    key = site.sidecar.keys.issue("Own", scopes=("streams:read",))
    site.sidecar.ask("GET", path.replace(" ", "%20"), [("X-Request-Id", "told")], key=key)
    site.let_in(page)
    for target in ("/", "/policy", "/policy?search=%26ltimg", f"/policy/{quote(HOSTILE_ROUTE, safe='')}", WHY,
                   f"/keys/{key.id}", f"/explain?target={quote(path)}"):  # fmt: skip
        page.goto(site.url + target)
        assert page.locator("img, script:not([src]), [onerror]").count() == 0, target
        assert page.locator("main h1").is_visible() and "1695203" not in page.content(), target
    page.goto(f"{site.url}/policy")
    expect(page.get_by_role("link", name=HOSTILE_ROUTE, exact=True)).to_be_visible()


def test_a_search_is_shown_again_and_never_run(page: Page, site: Site) -> None:
    site.let_in(page)
    for name in HOSTILE:
        page.goto(f"{site.url}/keys")
        page.get_by_label("Search").fill(name)
        page.get_by_role("button", name="Search").click()
        expect(page.get_by_label("Search")).to_have_value(name)
        assert page.locator("img, script:not([src])").count() == 0


@pytest.mark.parametrize("letter", ["h", "%68", "%2568"])
def test_a_key_in_a_path_to_explain_is_not_shown(inside: Site, letter: str) -> None:
    key = "aB3" * 14
    response = inside.post("/explain", method="GET", target=f"/v1/streams/{letter}v_live_{key}")
    assert response.status == 200 and "[redacted]" in response.text
    assert key not in response.text


def test_a_name_that_would_end_a_header_is_refused_in_words(inside: Site) -> None:
    response = inside.post("/keys/new", name="x\r\nSet-Cookie: a=b")
    assert response.status == 422 and "printable characters" in response.text
    assert "set-cookie" not in response.headers


def test_every_page_has_a_strict_content_security_policy(inside: Site) -> None:
    for target in (*PAGES, "/keys/none", "/static/page.css"):
        response = inside.get(target)
        policy = dict(part.strip().split(" ", 1) for part in response.headers["content-security-policy"].split(";"))
        assert policy == STRICT, target
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["cache-control"] == "no-store"


def test_no_page_holds_script_style_or_address_of_its_own(inside: Site) -> None:
    for target in PAGES:
        text = inside.get(target).text
        assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:|<script(?![^>]*\ssrc=)", text), target
        assert not re.search(r"(src|href|action)=\"(https?:)?//", text), target


@pytest.mark.parametrize(
    "target", ["/", "/keys", "/keys/new", "/keys/none", "/audit", "/policy", ROUTE, WHY, "/explain", "/nothing"]
)
def test_without_signing_in_every_page_is_a_401_with_the_form(house: Site, target: str) -> None:
    house.cookie = ""
    response = house.get(target)
    assert response.status == 401 and "Admin token" in response.text
    assert "the key that makes the store" not in response.text


def test_the_cookie_is_inaccessible_to_scripts_and_other_sites_and_is_not_the_token(house: Site) -> None:
    house.cookie = ""
    response = house.post("/sign-in", token=TOKEN)
    value, *flags = [part.strip() for part in response.headers["set-cookie"].split(";")]
    assert TOKEN not in value and len(value.partition("=")[2]) >= 32
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(flags) and "Secure" not in flags
    behind_tls = house.post("/sign-in", token=TOKEN, headers={"X-Forwarded-Proto": "https"})
    assert "Secure" in behind_tls.headers["set-cookie"]


def test_signing_out_ends_the_session_even_if_the_cookie_is_kept(inside: Site) -> None:
    assert inside.get("/keys").status == 200
    assert inside.post("/sign-out").status == 303
    assert inside.get("/keys").status == 401


def test_a_wrong_token_gets_a_message_and_is_not_shown_again(house: Site) -> None:
    house.cookie = ""
    response = house.post("/sign-in", token="a-wrong-token-of-somebody")
    assert response.status == 401 and "This token is wrong." in response.text
    assert "a-wrong-token" not in response.text and "set-cookie" not in response.headers


@pytest.mark.parametrize("proof", ["", "0" * 32])
@pytest.mark.parametrize(
    "target", ["/keys/new", "/keys/none/change", "/keys/none/revoke", "/policy", ROUTE, "/explain", "/sign-out"]
)
def test_a_form_without_this_sessions_proof_is_refused(inside: Site, target: str, proof: str) -> None:
    response = inside.post(target, proof=proof, name="from elsewhere", target="/x")
    assert response.status == 403 and "another session" in response.text
    assert "from elsewhere" not in inside.get("/keys").text


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_form_that_another_site_sends_is_refused(inside: Site, headers: dict[str, str]) -> None:
    for target in ("/keys/new", "/policy", ROUTE, "/sign-in", "/sign-out"):
        assert inside.post(target, headers=headers, name="from elsewhere", target="/x", token=TOKEN).status == 403
    assert "from elsewhere" not in inside.get("/keys").text


@pytest.mark.parametrize("wanted", ["//evil.example", "https://evil.example", "/\\evil.example", "", "/sign-out"])
def test_signing_in_leads_to_no_other_site(house: Site, wanted: str) -> None:
    house.cookie = ""
    assert house.post("/sign-in", token=TOKEN, next=wanted).headers["location"] == "/"


def test_signing_in_leads_to_the_page_that_was_asked_for(house: Site) -> None:
    house.cookie = ""
    form = house.get("/keys?search=billing").text
    found = re.search(r'name="next" value="([^"]+)"', form)
    assert found
    response = house.post("/sign-in", token=TOKEN, next=html.unescape(found[1]))
    assert response.headers["location"] == "/keys?search=billing"


def test_a_read_only_token_is_offered_no_actions_and_may_do_none(site: Site) -> None:
    key = site.sidecar.keys.issue("Seen")
    site.enter(READER)
    for target in ("/", "/keys", f"/keys/{key.id}"):
        assert not re.search(r'href="/keys/(new|[^"]+/(change|rotate|revoke|disable))"', site.get(target).text)
    assert site.get("/keys/new").status == 403
    for verb in ("rotate", "disable", "revoke", "change"):
        assert site.post(f"/keys/{key.id}/{verb}", name="x").status == 403
    assert site.post("/keys/new", name="x").status == 403
    assert site.sidecar.keys.told("show", key.id)["status"] == "active"


def test_a_token_of_one_tenant_sees_and_makes_keys_of_that_tenant_only(site: Site) -> None:
    own = site.sidecar.keys.issue("Own", tenant="acme")
    other = site.sidecar.keys.issue("Of others", tenant="globex")
    site.sidecar.ask("GET", "/nowhere", [("X-Request-Id", "told")], key=other)
    site.enter(ACME)
    assert "Of others" not in site.get(ROUTE).text + site.get("/policy").text
    tried = site.post(ROUTE, method="GET", target="/v1/streams", key=other.id).text
    assert "Of others" not in tried and "globex" not in tried and site.get(WHY).status == 404
    listed = site.get("/keys").text
    assert "Own" in listed and "Of others" not in listed
    assert "Of others" not in site.get("/audit").text + site.get("/").text
    assert [site.get(f"/keys/{key.id}").status for key in (own, other)] == [200, 404]
    for verb in ("rotate", "disable", "revoke", "change"):
        assert site.post(f"/keys/{other.id}/{verb}", name="x").status == 404
    assert site.post("/keys/new", name="Theirs", tenant="globex").status in (403, 422)
    assert site.post("/keys/new", name="Made here").status == 200
    assert "Made here" in site.get("/keys").text


def test_guessing_tokens_is_slowed_and_says_for_how_long(site: Site) -> None:
    statuses = (site.post("/sign-in", token=f"guess number {number}").status for number in range(100))
    assert next(statuses) == 401
    assert 429 in statuses
    response = site.post("/sign-in", token="another guess")
    assert (
        response.status == 429 and "Too many wrong tokens" in response.text and int(response.headers["retry-after"]) > 0
    )
    assert site.post("/sign-in", token=TOKEN).status == 303
