"""What a key needs of its scopes: in the API, on its page, and how it is narrowed from there."""

import re
from html import unescape

import pytest

from tests.harness.past import make_old, write_use
from tests.harness.running import Sidecar, StartSidecar
from tests.wire.admin.calls import ACME, AUDITOR, CONFIG, Admin, Person, admin_address

READS = {("GET /streams/**", ""): 70, ("GET /streams/**", "quota_exceeded"): 30, ("GET /billing/**", "no_route"): 2}


@pytest.fixture(scope="module")
def wide(start_shared_sidecar: StartSidecar) -> tuple[Sidecar, Admin, str]:
    """A sidecar, and an old key that has two scopes and used one."""
    sidecar = start_shared_sidecar(CONFIG)
    ops = Admin(address=admin_address(sidecar))
    key_id, _ = ops.issue(name="BI export", tenant="acme", scopes=["streams:write", "billing"])
    make_old(sidecar.keys.store)
    write_use(sidecar.keys.url, key_id, READS)
    return sidecar, ops, key_id


def words_of(html: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


def test_the_api_gives_the_smallest_set_of_scopes_and_how_to_narrow_the_key(wide: tuple[Sidecar, Admin, str]) -> None:
    _, ops, key_id = wide
    told = ops.call("GET", f"keys/{key_id}/scope-use").json
    assert (told["suggestion"], told["why"], told["requests"]) == ("narrow", None, 100)
    assert (told["scopes"], told["used"]) == (["streams:write", "billing"], ["streams:write"])
    assert (told["needed"], told["unused"], told["refused"]) == (["streams:read"], ["billing"], [])
    assert told["command"] == f"sidecar keys change {key_id} --scope streams:read"


def test_the_page_of_the_key_says_so_and_leads_to_the_change(wide: tuple[Sidecar, Admin, str]) -> None:
    _, ops, key_id = wide
    person = Person(ops)
    html = person.get(f"/keys/{key_id}").body.decode()
    told = "Use of scopes Has 2 scopes (3 with all included), used 1 in 90 days Needed streams:read"
    assert f"{told} Not used billing To narrow it" in words_of(html)
    assert f"sidecar keys change {key_id} --scope streams:read" in words_of(html)
    [link] = [unescape(link) for link in re.findall(r'href="(/keys/[^"]*/change\?[^"]*)"', html)]
    assert checked(person, link) == ["streams:read"]


def checked(person: Person, link: str) -> list[str]:
    """The scopes that are ticked in the form."""
    boxes = re.findall(r"<input[^>]*type=\"checkbox\"[^>]*>", person.get(link).body.decode())
    return [unescape(re.findall(r'value="([^"]*)"', box)[0]) for box in boxes if "checked" in box]


def test_a_link_prefills_only_scopes_that_the_key_has(wide: tuple[Sidecar, Admin, str]) -> None:
    sidecar, ops, _ = wide
    key_id = sidecar.keys.issue(scopes=("streams:read",)).id
    person = Person(ops)
    assert checked(person, f"/keys/{key_id}/change?scope=billing&scope=streams:read&scope=*") == ["streams:read"]
    assert checked(person, f"/keys/{key_id}/change?scope=") == []
    assert checked(person, f"/keys/{key_id}/change") == ["streams:read"]


def test_a_new_key_is_not_judged(wide: tuple[Sidecar, Admin, str]) -> None:
    _, ops, _ = wide
    key_id, _ = ops.issue(scopes=["billing"])
    told = ops.call("GET", f"keys/{key_id}/scope-use").json
    assert (told["suggestion"], told["command"]) == ("too_early", None)
    page = Person(ops).get(f"/keys/{key_id}").body.decode()
    assert "Too early to say: issued" in words_of(page) and "To narrow it" not in page


def test_a_key_without_scopes_has_nothing_to_narrow(wide: tuple[Sidecar, Admin, str]) -> None:
    _, ops, _ = wide
    key_id, _ = ops.issue(scopes=[])
    assert "Use of scopes" not in Person(ops).get(f"/keys/{key_id}").body.decode()


def test_a_read_only_user_sees_the_use_and_no_link(wide: tuple[Sidecar, Admin, str]) -> None:
    sidecar, _, key_id = wide
    auditor = Admin(address=admin_address(sidecar), token=AUDITOR)
    html = Person(auditor).get(f"/keys/{key_id}").body.decode()
    assert "used 1 in 90 days" in words_of(html) and f"/keys/{key_id}/change" not in html
    assert auditor.call("GET", f"keys/{key_id}/scope-use").json["suggestion"] == "narrow"


def test_a_key_of_another_tenant_is_unknown(wide: tuple[Sidecar, Admin, str]) -> None:
    sidecar, ops, key_id = wide
    acme = Admin(address=admin_address(sidecar), token=ACME)
    theirs, _ = ops.issue(tenant="globex")
    assert acme.call("GET", f"keys/{key_id}/scope-use").status == 200
    assert acme.call("GET", f"keys/{theirs}/scope-use").status == 404
