"""Many keys on the page: chosen, listed before anything changes, changed together, exported."""

import csv
import io
import re
import sqlite3
import time
from contextlib import closing

from playwright.sync_api import Browser, Page, expect

from tests.heavy.pages.site import ACME, READER, Response, Site

DAY = 86_400
_HIDDEN = re.compile(r'<input type="hidden" name="id" value="([^"]+)">')


def statuses(site: Site) -> dict[str, str]:
    return {key["name"]: key["status"] for key in site.sidecar.keys.told("list") if key["tenant"]}


def age(site: Site, name: str, days: int) -> None:
    """The key was issued, and never used, so many days ago."""
    with closing(sqlite3.connect(site.sidecar.keys.store)) as store, store:
        at = int(time.time() - days * DAY) * 1_000_000
        store.execute("UPDATE api_key SET created_at = ? WHERE name = ?", (at, name))


def confirmed(site: Site, page: Response) -> Response:
    """Submit the page that lists many keys, as its button does."""
    hidden = dict(re.findall(r'<input type="hidden" name="(action|unused_since)" value="([^"]*)">', page.text))
    return site.post("/keys/many", id=_HIDDEN.findall(page.text), **hidden)


def test_chosen_keys_are_listed_then_revoked_without_script(browser: Browser, site: Site) -> None:
    for name in ("First", "Second", "Third"):
        site.sidecar.keys.issue(name, tenant="acme")
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    site.sign_in(page)
    page.goto(site.url + "/keys")
    for name in ("First", "Third"):
        page.get_by_label(f"Select {name}").check()
    page.get_by_role("button", name="Revoke selected").click()
    expect(page.get_by_role("heading", name="Revoke 2 keys")).to_be_visible()
    assert set(statuses(site).values()) == {"active"}
    page.get_by_role("button", name="Revoke 2 keys").click()
    expect(page.get_by_text("Revoked 2 keys.")).to_be_visible()
    assert statuses(site) == {"First": "revoked", "Second": "active", "Third": "revoked"}
    rows = site.sidecar.keys.told("list")
    assert len([key for key in rows if key["revoked_at"]]) == 2
    context.close()


def test_all_keys_of_a_page_are_chosen_at_once(page: Page, site: Site) -> None:
    for name in ("First", "Second"):
        site.sidecar.keys.issue(name, tenant="acme")
    site.let_in(page)
    page.goto(site.url + "/keys?tenant=acme")
    page.get_by_label("Select all on this page").check()
    page.get_by_role("button", name="Disable selected").click()
    page.get_by_role("button", name="Disable 2 keys").click()
    expect(page.get_by_text("Disabled 2 keys.")).to_be_visible()
    assert statuses(site) == {"First": "disabled", "Second": "disabled"}


def test_keys_without_use_are_filtered_and_one_that_is_used_meanwhile_stays(site: Site) -> None:
    for name, days in (("Old", 100), ("Older", 400), ("New", 1)):
        site.sidecar.keys.issue(name, tenant="acme")
        age(site, name, days)
    site.enter()
    listed = site.get("/keys?unused=90").text
    assert "Older" in listed and "Old<" in listed and ">New<" not in listed
    page = site.get("/keys/many?action=revoke&unused=90&tenant=acme")
    assert "Revoke 2 keys" in page.text and len(_HIDDEN.findall(page.text)) == 2
    age(site, "Old", 0)
    done = confirmed(site, page)
    assert done.status == 303
    assert "Revoked 1 key. 1 key left unchanged" in site.get(done.headers["location"]).text
    assert statuses(site) == {"Old": "active", "Older": "revoked", "New": "active"}


def test_without_a_choice_or_a_filter_no_key_is_selected(site: Site) -> None:
    site.enter()
    for target in ("/keys/many?action=revoke", "/keys/many?action=revoke&sort=name", "/keys/many?action=x&tenant=a"):
        sent = site.get(target)
        assert (sent.status, sent.headers["location"]) == (303, "/keys?done=none")


def test_others_keys_and_forged_forms_change_nothing(site: Site) -> None:
    own, other = (site.sidecar.keys.issue(tenant, tenant=tenant) for tenant in ("acme", "globex"))
    site.enter(ACME)
    assert site.get(f"/keys/many?action=revoke&id={own.id}&id={other.id}").status == 404
    assert site.post("/keys/many", action="revoke", id=[own.id, other.id]).status == 404
    assert site.post("/keys/many", action="revoke", proof="forged", id=own.id).status == 403
    site.enter(READER)
    assert site.get(f"/keys/many?action=revoke&id={own.id}").status == 403
    assert site.post("/keys/many", action="revoke", id=own.id).status == 403
    assert "Select " not in site.get("/keys").text
    assert statuses(site) == {"acme": "active", "globex": "active"}


def test_a_filtered_export_contains_no_secrets(site: Site) -> None:
    secrets = [site.sidecar.keys.issue("=1+1", tenant="acme").text for _ in range(3)]
    site.sidecar.keys.issue("Of others", tenant="globex")
    site.enter(READER)
    sent = site.get("/keys/export?tenant=acme")
    assert sent.headers["content-type"] == "text/csv; charset=utf-8"
    assert sent.headers["content-disposition"] == 'attachment; filename="keys.csv"'
    rows = list(csv.DictReader(io.StringIO(sent.text)))
    assert [row["name"] for row in rows] == ["'=1+1"] * 3
    assert not {"hash", "digest", "algorithm"} & rows[0].keys()
    assert not any(secret in sent.text for secret in secrets)
    site.enter(ACME)
    everything = list(csv.DictReader(io.StringIO(site.get("/keys/export").text)))
    assert {row["tenant"] for row in everything} == {"acme"}
