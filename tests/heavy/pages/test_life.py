"""A key's life on the page, with the data listener as the judge."""

import shlex
import subprocess
from typing import Any

from playwright.sync_api import Locator, Page, expect

from tests.harness.tools import needed
from tests.heavy.pages.site import Site


def issue(page: Page, site: Site, name: str = "Billing worker", scope: str = "streams:read") -> str:
    """By the form; the plaintext that is then shown."""
    page.goto(site.url + "/keys/new")
    page.get_by_label("Name").fill(name)
    page.get_by_label("Tenant").fill("acme")
    scope_box(page, scope).check()
    page.get_by_role("button", name="Issue key").click()
    expect(page.get_by_role("heading", name=name)).to_be_visible()
    return page.locator("#secret").inner_text()


def scope_box(page: Page, scope: str) -> Locator:
    return page.locator(f"input[name=scope][value='{scope}']")


def act(page: Page, verb: str) -> None:
    """Press the button of the key's page, read what will happen, and confirm."""
    page.get_by_role("main").get_by_role("link", name=verb, exact=True).click()
    expect(page.get_by_role("heading", name="What will happen")).to_be_visible()
    page.get_by_role("button", name=f"{verb} key").click()


def reload_until_used(page: Page) -> None:
    """Counts are written every few seconds, and by whom right after them."""
    about = page.get_by_role("region", name="About")
    while not (page.get_by_role("group", name="requests over 24 hours").count() and "127.0.0.1" in about.inner_text()):
        page.wait_for_timeout(250)
        page.reload()


def test_a_key_issued_on_the_page_works_at_once_shows_as_used_and_is_refused_once_revoked(
    page: Page, site: Site
) -> None:
    site.let_in(page)
    secret = issue(page, site)
    assert site.sidecar.ask("GET", "/v1/streams/7", key=secret).status == 200
    assert site.sidecar.ask("POST", "/v1/streams", key=secret).status == 403
    page.get_by_role("link", name="I have copied it").click()
    reload_until_used(page)
    usage = page.get_by_role("region", name="Usage")
    expect(usage.get_by_role("row", name="GET /v1/streams/**")).to_contain_text("1")
    expect(page.get_by_role("region", name="About")).to_contain_text("127.0.0.1")
    expect(page.get_by_role("region", name="Quotas")).to_contain_text("9 left")
    act(page, "Revoke")
    expect(page.get_by_text("The key is revoked permanently. Its next request is refused.")).to_be_visible()
    assert site.sidecar.ask("GET", "/v1/streams/7", key=secret).status == 401
    expect(page.get_by_role("region", name="Audit trail")).to_contain_text("Revoked")
    expect(page.get_by_role("link", name="Revoke", exact=True)).to_have_count(0)


def test_the_curl_command_of_a_new_key_works_unchanged(page: Page, site: Site) -> None:
    site.let_in(page)
    issue(page, site)
    command = shlex.split(page.locator("#command").inner_text())
    answered = subprocess.run([needed("curl"), "-sS", *command[1:]], capture_output=True, text=True, check=True)
    assert command[0] == "curl" and answered.stdout.startswith("HTTP/1.1 200")


def test_copying_puts_the_whole_key_on_the_clipboard(page: Page, site: Site) -> None:
    site.let_in(page)
    secret = issue(page, site)
    page.get_by_role("button", name="Copy key").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == secret


def test_a_key_is_shown_once_and_a_reload_leads_to_the_key_and_makes_no_second_one(page: Page, site: Site) -> None:
    site.let_in(page)
    secret = issue(page, site)
    expect(page.get_by_text("it is not shown again")).to_be_visible()
    page.reload()
    expect(page.get_by_text("It was shown once", exact=False)).to_be_visible()
    assert secret not in page.content()
    page.goto(site.url + "/keys")
    expect(page.get_by_role("link", name="Billing worker")).to_have_count(1)
    page.get_by_role("link", name="Billing worker").click()
    assert secret not in page.content()


def test_a_rotated_key_works_along_with_its_successor_and_says_so(page: Page, site: Site) -> None:
    site.let_in(page)
    old = issue(page, site)
    page.get_by_role("link", name="I have copied it").click()
    act(page, "Rotate")
    new = page.locator("#secret").inner_text()
    assert new != old
    assert [site.sidecar.ask("GET", "/v1/streams", key=key).status for key in (old, new)] == [200, 200]
    page.get_by_role("link", name="the old one").click()
    expect(page.locator(".titled")).to_contain_text("Retiring")
    expect(page.get_by_role("link", name="Rotate", exact=True)).to_have_count(0)


def test_a_disabled_key_is_refused_until_it_is_enabled(page: Page, site: Site) -> None:
    site.let_in(page)
    secret = issue(page, site)
    page.get_by_role("link", name="I have copied it").click()
    act(page, "Disable")
    assert site.sidecar.ask("GET", "/v1/streams", key=secret).status == 401
    act(page, "Enable")
    assert site.sidecar.ask("GET", "/v1/streams", key=secret).status == 200


def test_a_granted_scope_takes_effect_on_the_next_request_and_is_audited(page: Page, site: Site) -> None:
    site.let_in(page)
    secret = issue(page, site)
    page.get_by_role("link", name="I have copied it").click()
    page.get_by_role("link", name="Change", exact=True).click()
    scope_box(page, "streams:write").check()
    page.get_by_label("Plan").select_option("pro")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("The change is saved")).to_be_visible()
    assert site.sidecar.ask("POST", "/v1/streams", key=secret).status == 200
    trail = page.get_by_role("region", name="Audit trail")
    expect(trail).to_contain_text("streams:read → streams:read, streams:write")
    expect(trail).to_contain_text("token:environment from 127.0.0.1")


def test_a_concurrent_change_is_not_overwritten(page: Page, site: Site) -> None:
    site.let_in(page)
    issue(page, site)
    page.get_by_role("link", name="I have copied it").click()
    key_id = page.url.rpartition("/")[2].partition("?")[0]
    page.goto(f"{site.url}/keys/{key_id}/change")
    told: Any = site.sidecar.keys.told("disable", key_id)
    assert told["status"] == "disabled"
    page.get_by_label("Name").fill("Another name")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("Nothing was saved.")).to_be_visible()
    assert site.sidecar.keys.told("show", key_id)["name"] == "Billing worker"


def test_form_errors_are_shown_at_the_field_and_input_is_kept(page: Page, site: Site) -> None:
    site.let_in(page)
    page.goto(site.url + "/keys/new")
    page.get_by_label("Name").fill("Kept")
    page.get_by_label("Tenant").fill("no spaces allowed")
    page.get_by_label("Expiry").select_option("on")
    scope_box(page, "streams:write").check()
    page.get_by_role("button", name="Issue key").click()
    expect(page.get_by_label("Tenant")).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#expires_at-wrong")).to_have_text("Choose the last day on which the key works.")
    expect(page.get_by_label("Name")).to_have_value("Kept")
    expect(scope_box(page, "streams:write")).to_be_checked()
