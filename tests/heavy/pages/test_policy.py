"""The policy page: from a route to who reaches it, and a request tried in place."""

from playwright.sync_api import Page, expect

from tests.heavy.pages.site import Site


def test_a_route_is_found_and_tried_with_a_key_that_reaches_it(site: Site, page: Page) -> None:
    key = site.sidecar.keys.issue("Nightly export", tenant="globex", scopes=("streams:read",))
    site.let_in(page)
    page.goto(site.url)
    page.get_by_role("link", name="Policy", exact=True).click()
    page.keyboard.press("/")
    page.keyboard.type("v1/streams")
    page.keyboard.press("Enter")
    page.get_by_role("link", name="GET /v1/streams/**", exact=True).click()
    expect(page.get_by_role("heading", name="Who can reach this")).to_be_visible()
    expect(page.get_by_role("link", name="Nightly export")).to_be_visible()
    expect(page.get_by_label("Path", exact=True)).to_have_value("/v1/streams")
    page.get_by_label("Key", exact=True).fill(key.id)
    page.get_by_role("button", name="Explain").click()
    expect(page.get_by_role("heading", name="Allowed")).to_be_visible()
    expect(page.get_by_role("heading", name="GET /v1/streams/**")).to_be_visible()


def test_a_refused_configuration_appears_on_every_page_automatically(site: Site, page: Page) -> None:
    file = site.sidecar.keys.config
    site.let_in(page)
    page.goto(site.url)
    file.write_text(file.read_text(encoding="utf-8") + "realms: <b>bold</b>\n", encoding="utf-8")
    expect(page.get_by_text("The configuration file was refused")).to_be_visible(timeout=40_000)
    page.get_by_role("link", name="Show the errors").click()
    expect(page.get_by_text("realms: unknown key (did you mean 'realm'?)")).to_be_visible()
