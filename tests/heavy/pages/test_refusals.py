"""The latest refusals on the pages, and the way from each to its explanation."""

import re
from html import unescape

from playwright.sync_api import Page, expect

from tests.heavy.pages.site import Site


def test_a_refusal_links_to_a_prefilled_explanation(site: Site) -> None:
    site.enter()
    assert site.sidecar.ask("GET", "/nowhere?secret=hidden").status in (401, 403)
    page = site.get("/").text
    latest = page[page.index('id="latest"') :]
    assert "/nowhere" in latest
    assert "hidden" not in latest
    [address, *_] = re.findall(r'href="(/explain\?[^"]+)"', latest)
    form = site.get(unescape(address)).text
    assert re.search(r'name="target" value="/nowhere"', form)
    assert re.search(r'<option value="GET" selected>', form)


def test_the_overview_shows_the_state_and_filters_refusals(site: Site) -> None:
    site.enter()
    site.sidecar.ask("GET", "/nowhere")
    page = site.get("/").text
    assert all(f"<b>{name}</b>" in page for name in ("Readiness", "Upstream", "Store", "Configuration"))
    assert ">Ready<" in page
    assert "None that fit." in site.get("/?reason=revoked_key").text


def test_the_overview_refreshes_itself(site: Site, page: Page) -> None:
    site.let_in(page)
    page.goto(site.url)
    site.sidecar.ask("GET", "/nowhere/new")
    expect(page.get_by_text("GET /nowhere/new")).to_be_visible(timeout=20_000)


def test_the_page_of_a_key_refreshes_itself(site: Site, page: Page) -> None:
    key = site.sidecar.keys.issue("a reader", scopes=("streams:read",))
    site.let_in(page)
    page.goto(f"{site.url}/keys/{key.id}")
    site.sidecar.ask("GET", "/nowhere/again", key=key)
    expect(page.get_by_text("GET /nowhere/again")).to_be_visible(timeout=20_000)


def test_a_bar_of_the_chart_links_to_its_hour(site: Site, page: Page) -> None:
    key = site.sidecar.keys.issue("a reader", scopes=("streams:read",))
    site.let_in(page)
    site.sidecar.ask("GET", "/nowhere/again", key=key)
    page.goto(f"{site.url}/keys/{key.id}")
    bar = page.locator("figure a")
    expect(bar).to_have_count(1, timeout=20_000)
    bar.click()
    expect(page.get_by_text("Below: requests of")).to_be_visible()
    expect(page.locator("rect.chosen")).to_have_count(1)
    expect(page.get_by_text("GET /nowhere/again")).to_be_visible()
    page.get_by_role("link", name="Show the whole span").click()
    expect(page.locator("rect.chosen")).to_have_count(0)
