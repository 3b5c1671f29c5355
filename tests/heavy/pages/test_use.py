"""Usability: by keyboard, on a phone, without scripts, with little and with much data."""

import json
import re
from hashlib import sha256
from typing import Literal

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.harness.running import StartSidecar
from tests.heavy.pages.site import ACME, TOKEN, Site, start_site

_PAST_THE_EDGE = """[...document.querySelectorAll('body *')]
    .filter(found => !found.closest('svg, .skip, .unseen, .nav, .table-wrap, .docs section'))
    .filter(found => found.getBoundingClientRect().right > (found.closest('.card') ?? document.body)
        .getBoundingClientRect().right + 1)
    .map(found => found.outerHTML.slice(0, 120))"""
"""What is wider than the card that it stands in, or than the page."""


_ROUTE, _WHY = "/policy/GET%20%2Fv1%2Fstreams%2F**", "/refusals/told"
_REST = ("/audit", "/policy", _ROUTE, _WHY)
_SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
_TOLD = [("X-Request-Id", "told")]
"""With it, the refusal has the page `_WHY`."""


def worker(number: int) -> str:
    """A key that nobody uses, as a line for `sidecar keys import`."""
    secret = {"prefix": f"hv_live_{number:04}", "hash": sha256(b"%d" % number).hexdigest(), "algorithm": "sha256"}
    owner = {"name": f"Worker {number}", "tenant": f"tenant-{number % 5}", "environment": "live"}
    return json.dumps({**secret, **owner, "scopes": ["streams:read"]})


@pytest.fixture(scope="module")
def house(start_shared_sidecar: StartSidecar) -> Site:
    """One sidecar with some keys, which these tests only look at."""
    site = start_site(start_shared_sidecar)
    imported = site.sidecar.keys.run("import", "-", stdin="\n".join(map(worker, range(55))))
    assert imported.exit_code == 0, imported.output
    site.sidecar.keys.issue("Nightly export", tenant="globex", environment="test", scopes=("streams:write",))
    site.sidecar.ask("GET", "/nowhere/" + "x" * 200, _TOLD)
    return site


def focused(page: Page) -> str:
    """What the next key goes to, as a person would name it."""
    name: str = page.evaluate("document.activeElement.innerText || document.activeElement.id")
    return name.strip()


def test_signing_in_and_finding_the_way_needs_no_mouse(page: Page, house: Site) -> None:
    page.goto(house.url)
    expect(page.get_by_label("Admin token")).to_be_focused()
    page.keyboard.type(TOKEN)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    order = []
    for _ in range(9):
        page.keyboard.press("Tab")
        order.append(focused(page))
    assert order == [
        "Skip to content", "sidecar", "Overview", "Keys", "Policy", "Audit", "Explain", "API", "Sign out"
    ]  # fmt: skip


def test_the_skip_link_is_the_first_focus(page: Page, house: Site) -> None:
    house.let_in(page)
    page.goto(house.url + "/keys")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("#"))
    page.keyboard.press("Tab")
    assert focused(page) == "Issue a key"
    page.keyboard.press("Tab")
    assert focused(page) == "search"


def test_the_focused_element_is_visible(page: Page, house: Site) -> None:
    house.let_in(page)
    for target in ("/keys", "/keys/new", _ROUTE):
        page.goto(house.url + target)
        for _ in range(20):
            page.keyboard.press("Tab")
            on = "document.activeElement"
            seen = f"getComputedStyle({on}).outlineStyle !== 'none' || {on} === document.body"
            assert page.evaluate(seen), page.evaluate(f"{on}.outerHTML")


def test_every_field_has_a_name(page: Page, house: Site) -> None:
    house.let_in(page)
    for target in ("/keys", "/keys/new", "/audit", "/explain", "/policy", _ROUTE):
        page.goto(house.url + target)
        nameless = page.evaluate(
            "[...document.querySelectorAll('input:not([type=hidden]), select, textarea')]"
            ".filter(field => !field.labels.length).map(field => field.outerHTML)"
        )
        assert nameless == [], target


def test_nothing_is_wider_than_a_phone_light_or_dark(browser: Browser, house: Site) -> None:
    key_id = house.sidecar.keys.told("list")[0]["id"]
    context = browser.new_context(viewport={"width": 360, "height": 740})
    page = context.new_page()
    house.let_in(page)
    targets = (
        "/",
        "/keys",
        "/keys?search=nothing",
        f"/keys/many?action=revoke&id={key_id}",
        "/keys/new",
        "/explain",
        "/api/docs",
        *_REST,
    )
    many = f"/keys/many?action=revoke&id={key_id}"
    for target in (*targets, many, f"/keys/{key_id}", f"/keys/{key_id}/change", f"/keys/{key_id}/revoke"):
        page.goto(house.url + target)
        for scheme in _SCHEMES:
            page.emulate_media(color_scheme=scheme)
            assert page.evaluate(f"matchMedia('(prefers-color-scheme: {scheme})').matches")
            assert page.evaluate(_PAST_THE_EDGE) == [], (target, scheme)
    context.close()


def test_nothing_is_wider_than_a_laptops_screen(page: Page, site: Site) -> None:
    key = site.sidecar.keys.issue("x" * 200, tenant="y" * 100, scopes=("streams:read", "streams:write"))
    site.sidecar.ask("GET", "/nowhere/" + "x" * 200, _TOLD, key=key)
    page.set_viewport_size({"width": 1280, "height": 800})
    site.let_in(page)
    for target in ("/", "/keys?tenant=" + "y" * 100, f"/keys/many?action=revoke&id={key.id}", *_REST):
        page.goto(site.url + target)
        assert page.evaluate(_PAST_THE_EDGE) == [], target
        wider = "[...document.querySelectorAll('.table-wrap')].filter(one => one.scrollWidth > one.clientWidth).length"
        assert page.evaluate(wider) == 0, target


def test_the_list_of_keys_fits_into_its_card_at_every_width(page: Page, site: Site) -> None:
    site.sidecar.keys.told("issue", "--name", "x" * 200, "--tenant", "y" * 100, "--scope", "streams:write")
    site.sidecar.keys.told("issue", "--name", "CI", "--plan", "pro", "--scope", "streams:read", "--expires", "90d")
    site.sign_in(page)
    page.goto(site.url + "/keys")
    wrap = "(({scrollWidth, clientWidth}) => scrollWidth - clientWidth)(document.querySelector('.table-wrap'))"
    for width in (1280, 1100, 1000, 920, 900, 760, 681, 660, 600, 561, 560):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate(wrap) == 0, width
        assert page.evaluate(_PAST_THE_EDGE) == [], width
    for width, shown in ((1280, True), (1000, False), (360, True)):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.locator("td.from-800").first.is_visible() is shown


def test_a_new_key_fits_on_a_phone(page: Page, site: Site) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    site.let_in(page)
    page.goto(site.url + "/keys/new")
    page.get_by_label("Name").fill("Narrow")
    page.get_by_role("button", name="Issue key").click()
    expect(page.locator("#secret")).to_be_visible()
    assert page.evaluate(_PAST_THE_EDGE) == []


def test_everything_works_without_script(browser: Browser, site: Site) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    site.sign_in(page)
    page.goto(site.url + "/keys/new")
    page.get_by_label("Name").fill("Without script")
    page.get_by_label("Tenant").fill("acme")
    page.get_by_role("button", name="Issue key").click()
    secret = page.locator("#secret").inner_text()
    assert site.sidecar.ask("GET", "/v1/projects/acme/x", key=secret).status == 200
    page.get_by_role("link", name="I have copied it").click()
    page.get_by_role("link", name="Revoke", exact=True).click()
    page.get_by_role("button", name="Revoke key").click()
    expect(page.get_by_text("The key is revoked")).to_be_visible()
    context.close()


def test_the_list_searches_filters_and_pages(page: Page, house: Site) -> None:
    house.let_in(page)
    page.goto(house.url + "/keys")
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(50)
    page.get_by_role("link", name="Next page").click()
    expect(rows).to_have_count(7)
    page.get_by_role("link", name="First page").click()
    page.get_by_label("Search").fill("nightly")
    page.keyboard.press("Enter")
    expect(rows).to_have_count(1)
    page.get_by_label("Environment").select_option("live")
    expect(page.get_by_role("heading", name="No matching keys")).to_be_visible()
    page.get_by_role("link", name="Show all keys").click()
    page.get_by_label("Tenant").fill("tenant-3")
    page.get_by_role("button", name="Search").click()
    expect(rows).to_have_count(11)
    page.get_by_label("Status").select_option("revoked")
    expect(page.get_by_role("heading", name="No matching keys")).to_be_visible()


def test_a_row_is_one_link_to_its_key(page: Page, house: Site) -> None:
    house.let_in(page)
    page.goto(house.url + "/keys?search=nightly")
    page.locator("tbody tr td").last.click(force=True)
    expect(page.get_by_role("heading", name="Nightly export")).to_be_visible()


def test_without_keys_the_page_says_what_to_do_first(page: Page, house: Site) -> None:
    house.let_in(page, ACME)
    page.goto(house.url)
    expect(page.get_by_role("heading", name="No keys yet")).to_be_visible()
    page.goto(house.url + "/keys")
    page.get_by_role("link", name="Issue the first key").click()
    expect(page.get_by_role("heading", name="Issue a key")).to_be_visible()
    expect(page.get_by_label("Tenant")).to_have_value("acme")


def test_a_scope_shows_its_meaning_and_the_routes_it_opens(page: Page, house: Site) -> None:
    house.let_in(page)
    page.goto(house.url + "/keys/new")
    choice = page.locator("label.choice", has_text="streams:write").last
    expect(choice).to_contain_text("Create and delete streams")
    expect(choice).to_contain_text("includes streams:read")
    expect(choice).to_contain_text("POST|DELETE /v1/streams/**")


def test_explain_shows_the_decision_with_file_and_line(page: Page, house: Site) -> None:
    house.let_in(page)
    page.goto(house.url + "/keys?search=nightly")
    page.get_by_role("link", name="Nightly export").click()
    page.get_by_role("link", name="Explain a request").click()
    page.get_by_label("Path").fill("/v1/streams/7")
    page.get_by_role("button", name="Explain").click()
    told = page.get_by_role("region", name="Allowed")
    expect(told).to_contain_text("GET /v1/streams/**")
    expect(told).to_contain_text("sidecar.yaml:")
    page.get_by_label("Path").fill("/v1/projects/acme/x")
    page.get_by_role("button", name="Explain").click()
    expect(page.get_by_role("heading", name="Refused: wrong_tenant")).to_be_visible()
    page.get_by_label("Path").fill("not a path")
    page.get_by_role("button", name="Explain").click()
    expect(page.get_by_role("alert")).to_contain_text("A path begins with /")


def test_a_whole_key_may_be_explained_and_is_not_shown_again(page: Page, house: Site) -> None:
    secret = house.sidecar.keys.issue("Asked about", scopes=("streams:read",)).text
    house.let_in(page)
    page.goto(house.url + "/explain")
    page.get_by_label("Path").fill("/v1/streams")
    page.get_by_label("Key", exact=True).fill(secret)
    page.get_by_role("button", name="Explain").click()
    expect(page.get_by_role("heading", name="Allowed")).to_be_visible()
    assert secret not in page.content() and secret not in page.url


def test_a_searched_whole_key_is_found_by_prefix_and_removed_from_the_url(page: Page, house: Site) -> None:
    secret = house.sidecar.keys.issue("Pasted", tenant="pasted").text
    house.let_in(page)
    page.goto(house.url + "/keys")
    page.get_by_label("Search").fill(secret)
    page.keyboard.press("Enter")
    expect(page.get_by_role("link", name="Pasted")).to_be_visible()
    assert secret not in page.url and secret not in page.content()


def test_the_overview_counts_refusals_by_reason(page: Page, site: Site) -> None:
    for _ in range(3):
        assert site.sidecar.ask("GET", "/v1/streams").status == 401
    site.let_in(page)
    page.goto(site.url)
    refusals = page.get_by_role("region", name="Refusals by reason")
    expect(refusals).to_contain_text("missing_credential")
    expect(refusals).to_contain_text("3")


def test_the_overview_names_keys_close_to_the_end_of_a_quota_and_keys_due(page: Page, site: Site) -> None:
    busy = site.sidecar.keys.issue("Busy", scopes=("streams:read",))
    site.sidecar.keys.issue("Ending", expires="3d")
    for _ in range(9):
        assert site.sidecar.ask("GET", "/v1/streams", key=busy).status == 200
    site.let_in(page)
    page.goto(site.url)
    near = page.get_by_role("region", name="Quotas nearly used up")
    expect(near.get_by_role("link", name="Busy")).to_be_visible()
    expect(near).to_contain_text("1 left")
    expect(page.get_by_role("region", name="Keys due").get_by_role("link", name="Ending")).to_be_visible()
