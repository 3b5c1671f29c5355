"""The policy in the API and on its pages: requirements of routes, outcomes of requests, who reaches what."""

import re
import sqlite3
from contextlib import closing
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from sidecar.admin.policy import MOST_KEYS, outcome_of
from sidecar.core.errors import Reason
from sidecar.keys.records import row_of
from sidecar.store.keys import INSERT_KEY
from tests.harness.running import Sidecar, StartSidecar
from tests.harness.waiting import until
from tests.unit.keys.making import a_key
from tests.wire.admin.calls import ACME, CONFIG, Admin, Person, admin_address

STREAMS, BILLING = "GET /streams/**", "GET /billing/**"


def page_of(route: str, **query: str) -> str:
    return f"/policy/{quote(route, safe='')}{'?' + urlencode(query) if query else ''}"


def shown(admin: Admin, path: str) -> str:
    response = admin.call("GET", path, Accept="text/html")
    assert response.status == 200, path
    return response.body.decode()


def routes_of(admin: Admin, **query: str) -> dict[str, Any]:
    found = admin.call("GET", f"policy?{urlencode(query)}").json["routes"]
    return {one["route"]["name"]: one for one in found}


def reach_of(admin: Admin, route: str, **query: str) -> dict[str, Any]:
    found: dict[str, Any] = admin.call("GET", f"policy/reach?{urlencode({'route': route, **query})}").json
    return found


# Outcomes of requests.


def test_requests_are_listed_by_route_and_outcome(start_sidecar: StartSidecar) -> None:
    sidecar = start_sidecar(CONFIG)
    ops = Admin(address=admin_address(sidecar))
    _, secret = ops.issue(scopes=["streams:read"])
    for target in ("/streams/1", "/streams/2", "/billing/1", "/nowhere"):
        sidecar.ask("GET", target, key=secret)
    sidecar.ask("GET", "/streams/1")
    until(lambda: routes_of(ops)["(none)"]["last_day"]["refused"] == 1)
    policy = routes_of(ops)
    assert list(policy) == [STREAMS, BILLING, "(none)"]
    streams = policy[STREAMS]
    assert (streams["last_day"]["allowed"], streams["last_day"]["denied"]) == (2, {})
    assert streams["since_start"] == {
        "allowed": 2, "server_errors": 0, "refused": 1, "faults": 0, "denied": {"missing_credential": 1},
        "would_deny": {},
    }  # fmt: skip
    assert policy[BILLING]["last_day"]["denied"] == {"insufficient_scope": 1}
    page = shown(ops, "/policy")
    assert "2 allowed" in page and "1 no or wrong key" in page and "1 not allowed" in page
    assert "<code>insufficient_scope</code>" in shown(ops, page_of(BILLING))


def test_a_fault_is_not_a_refusal(start_sidecar: StartSidecar) -> None:
    sidecar = start_sidecar(CONFIG, upstream_url="http://127.0.0.1:1")
    ops = Admin(address=admin_address(sidecar))
    _, secret = ops.issue(scopes=["streams:read"])
    assert sidecar.ask("GET", "/streams/1", key=secret).status == 502
    until(lambda: routes_of(ops)[STREAMS]["last_day"]["faults"] == 1)
    assert routes_of(ops)[STREAMS]["since_start"]["faults"] == 1
    assert routes_of(ops)[STREAMS]["last_day"]["refused"] == 0
    assert "1 not served" in shown(ops, "/policy")


def test_each_reason_is_an_outcome() -> None:
    by_outcome = {outcome: {reason for reason in Reason if outcome_of(reason) == outcome} for outcome in OUTCOMES}
    assert set().union(*by_outcome.values()) == set(Reason)
    assert {Reason.MISSING_CREDENTIAL, Reason.REVOKED_KEY, Reason.TOO_MANY_FAILURES} <= by_outcome["credential"]
    assert by_outcome["quota"] == {Reason.QUOTA_EXCEEDED}
    assert {Reason.UPSTREAM_TIMEOUT, Reason.INTERNAL, Reason.LOOP_DETECTED} <= by_outcome["fault"]
    assert {Reason.BAD_TARGET, Reason.UNSUPPORTED_CODING} <= by_outcome["malformed"]
    assert outcome_of("of a later version") == "permission"


OUTCOMES = ("credential", "permission", "quota", "malformed", "fault")


def test_routes_are_found_by_text_scope_and_use(ops: Admin, sidecar: Sidecar) -> None:
    sidecar.ask("GET", "/streams/1")
    assert list(routes_of(ops, search="BILL")) == [BILLING]
    assert list(routes_of(ops, scope="streams:read")) == [STREAMS]
    assert STREAMS in routes_of(ops, used="yes") and STREAMS not in routes_of(ops, used="no")
    page = shown(ops, "/policy?search=bill&scope=billing")
    assert BILLING in page and STREAMS not in page
    assert "No matching routes" in shown(ops, "/policy?search=nothing-like-it")


# Who reaches a route, and what a key reaches.


def test_the_keys_that_reach_a_route_are_grouped_by_tenant_and_scope(start_sidecar: StartSidecar) -> None:
    sidecar = start_sidecar(CONFIG)
    ops, acme = tenants_of(sidecar)
    revoke_all(ops)
    granted = {"acme": ["streams:read"], "globex": ["streams:write"], None: ["*"]}
    keys = {tenant: ops.issue(name=f"of {tenant}", tenant=tenant, scopes=held)[0] for tenant, held in granted.items()}
    ops.issue(name="no scope of it", tenant="acme", scopes=["billing"])
    dead, _ = ops.issue(name="revoked", tenant="acme", scopes=["*"])
    ops.call("POST", f"keys/{dead}/revoke")
    found = reach_of(ops, STREAMS)
    assert [key["id"] for key in found["keys"]] == [keys[None], keys["globex"], keys["acme"]]
    assert (found["count"], found["looked_at"], found["whole"], found["next"]) == (3, 4, True, None)
    assert {one["tenant"]: one["count"] for one in found["tenants"]} == {"acme": 1, "globex": 1, None: 1}
    assert {one["scope"] for one in found["scopes"]} == {"streams:read", "streams:write", "*"}
    first = reach_of(ops, STREAMS, limit="2")
    assert (len(first["keys"]), first["count"]) == (2, 3)
    second = reach_of(ops, STREAMS, limit="2", after=first["next"])
    assert ([key["id"] for key in second["keys"]], second["next"]) == ([keys["acme"]], None)
    page = shown(ops, page_of(STREAMS))
    assert "3 of 4 usable keys" in page and "of globex" in page and "no scope of it" not in page
    assert "1 of 2 usable keys of tenant acme" in shown(ops, page_of(STREAMS, tenant="acme"))
    assert_mine_only(acme, keys["acme"])


def revoke_all(ops: Admin) -> None:
    """Including the key that was issued to make the store."""
    for key in ops.call("GET", "keys").json["keys"]:
        ops.call("POST", f"keys/{key['id']}/revoke")


def tenants_of(sidecar: Sidecar) -> tuple[Admin, Admin]:
    address = admin_address(sidecar)
    return Admin(address=address), Admin(address=address, token=ACME)


def assert_mine_only(acme: Admin, own: str) -> None:
    """Contains neither keys of other tenants, nor their number, nor files, nor other clients' requests."""
    found = reach_of(acme, STREAMS)
    assert [key["id"] for key in found["keys"]] == [own]
    assert (found["count"], found["looked_at"], len(found["tenants"])) == (1, 2, 1)
    assert reach_of(acme, STREAMS, tenant="globex")["looked_at"] == 0
    for path in (page_of(STREAMS), page_of(STREAMS, tenant="globex"), page_of(STREAMS, after="key_x"), "/policy"):
        page = shown(acme, path)
        assert "of globex" not in page and "of None" not in page and "Since the start" not in page
    assert all(one["since_start"] is None for one in routes_of(acme).values())
    assert all(re.fullmatch("(line [0-9]+)?", one["route"]["where"]) for one in routes_of(acme).values())
    assert acme.call("GET", "configuration").json["path"] is None


def test_what_a_key_reaches_and_what_would_open_the_rest(ops: Admin) -> None:
    key_id, _ = ops.issue(scopes=["streams:read"])
    told = ops.call("GET", f"keys/{key_id}/reach").json
    assert [route["name"] for route in told["allowed"]] == [STREAMS]
    [closed] = told["closed"]
    assert (closed["route"]["name"], closed["missing"], closed["opened_by"]) == (BILLING, ["billing"], ["billing"])
    page = shown(ops, f"/keys/{key_id}")
    assert "needs billing" in page and f'href="{page_of(BILLING)}"' in page


def test_a_key_of_another_tenant_reaches_nothing_for_its_administrator(ops: Admin, acme: Admin) -> None:
    key_id, _ = ops.issue(tenant="globex")
    assert acme.call("GET", f"keys/{key_id}/reach").status == 404


def test_many_keys_are_checked_in_steps(start_sidecar: StartSidecar) -> None:
    sidecar = start_sidecar(CONFIG)
    ops = Admin(address=admin_address(sidecar))
    revoke_all(ops)
    fill(sidecar, MOST_KEYS + 5)
    found = reach_of(ops, BILLING)
    assert (found["count"], found["looked_at"], found["whole"]) == (0, MOST_KEYS, False)
    rest = reach_of(ops, BILLING, after=found["next"])
    assert (rest["looked_at"], rest["whole"], rest["next"]) == (5, True, None)
    assert f"None of {MOST_KEYS:,} usable keys. Not all keys were searched" in shown(ops, page_of(BILLING))


def fill(sidecar: Sidecar, number: int) -> None:
    rows = (row_of(a_key(id=f"key_{at:020}", digest=at.to_bytes(32), scopes=("streams:read",))) for at in range(number))
    with closing(sqlite3.connect(sidecar.keys.store, timeout=30)) as store, store:
        store.execute("PRAGMA synchronous = OFF")
        store.executemany(INSERT_KEY, rows)


# Invalid names.


@pytest.mark.parametrize("name", ["GET /nowhere", "x", "%", "..", "GET /streams/**/", "\x00", "<script>", "a" * 5000])
def test_an_unknown_route_is_a_404(ops: Admin, name: str) -> None:
    assert ops.call("GET", page_of(name), Accept="text/html").status == 404
    assert ops.call("GET", f"policy/reach?{urlencode({'route': name[:1000]})}").status == 404


def test_a_route_must_be_named(ops: Admin) -> None:
    response = ops.call("GET", "policy/reach")
    assert (response.status, response.pointers) == (400, ["?route"])


NAME = "GET /a'&amp=(b)/{id}:go/**"
SCOPE = "x'&y:read"


def test_markup_in_names_and_addresses_is_text(start_sidecar: StartSidecar) -> None:
    quoted = ["'" + name.replace("'", "''") + "'" for name in (NAME, SCOPE)]
    config = CONFIG.replace("GET /billing/**:", f"{quoted[0]}:").replace("[billing]", f"[{quoted[1]}]")
    hostile = Admin(address=admin_address(start_sidecar(config.replace("  billing: Pay", f"  {quoted[1]}: Pay"))))
    name, tenant = "<img src=x onerror=alert(1)>", "<u>'"
    key_id, _ = hostile.issue(name=name, tenant=tenant, scopes=[SCOPE])
    query = urlencode({"search": "<i>'", "scope": '<i>"x', "from": "<i>", "used": "<i>"})
    marked = page_of(NAME, tenant="<i>", after='<i>"', reason="<i>", at="<i>", key="<i>")
    for path in ("/policy", f"/policy?{query}", page_of(NAME), marked, f"/keys/{key_id}"):
        page = shown(hostile, path)
        assert not [text for text in ("<i>", "<u>", "<img", "alert(1)>", "&amp=(") if text in page], path
    page = shown(hostile, page_of(NAME))
    assert markup(NAME) in page and markup(name) in page and "1 of 2 usable keys" in page
    assert f'href="{page_of(NAME)}"' in shown(hostile, "/policy")


def markup(text: str) -> str:
    return escape(text).replace("&#x27;", "&#39;")


# Trying a request.


def test_a_request_is_tried_on_the_page_as_explain_decides(ops: Admin) -> None:
    key_id, secret = ops.issue(scopes=["streams:read"])
    person = Person(ops)
    for path in ("/policy", page_of(STREAMS)):
        allowed = person.post(path, method="GET", target="/streams/1", key=key_id)
        assert (allowed.status, "Allowed" in allowed.body.decode()) == (200, True)
        refused = person.post(path, method="GET", target=f"/streams/{secret}?k={secret}", key=secret).body.decode()
        assert "Refused" in refused or "Allowed" in refused
        assert secret not in refused
        assert person.post(path, method="GET", target="no path", key="").status == 422
    assert person.post(page_of("GET /nowhere"), method="GET", target="/", key="").status == 404


def test_the_form_of_a_route_is_filled_in_for_it(ops: Admin) -> None:
    page = shown(ops, page_of(BILLING, key="hv_live_" + "aB3" * 14))
    assert 'value="/billing"' in page and "aB3aB3" not in page
    assert 'name="key" value="key_1"' in shown(ops, page_of(BILLING, key="key_1"))


def test_a_form_without_proof_is_refused(ops: Admin) -> None:
    for path in ("/policy", page_of(STREAMS)):
        assert Person(ops).post(path, method="GET", target="/x", proof="").status == 403


# An observed route.


def test_a_route_that_is_only_observed_is_marked(start_sidecar: StartSidecar) -> None:
    config = CONFIG.replace("{scopes: [billing]}", "{scopes: [billing], mode: observe}")
    sidecar = start_sidecar(config)
    ops = Admin(address=admin_address(sidecar))
    assert {name: one["observed"] for name, one in routes_of(ops).items()} == {
        STREAMS: False, BILLING: True, "(none)": False
    }  # fmt: skip
    mark, banner = '<span class="chip">observed</span>', "<b>Observed, not enforced:</b> GET /billing/**, since 20"
    assert mark in shown(ops, page_of(BILLING)) and mark not in shown(ops, page_of(STREAMS))
    assert banner in shown(ops, "/policy")
    sidecar.ask("GET", "/billing/1", [("X-Request-Id", "told")])
    assert "Observed: would be refused: missing_credential" in shown(ops, "/refusals/told")


# A refused configuration.


def write(file: Path, text: str) -> None:
    new = file.with_name("new")
    new.write_text(text, encoding="utf-8")
    new.replace(file)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_refused_configuration_is_shown_with_its_errors_until_it_is_fixed(
    start_sidecar: StartSidecar, tmp_path: Path, workers: int
) -> None:
    file, good = tmp_path / "sidecar.yaml", f"{CONFIG}reload: {{interval: 50ms}}\nworkers: {workers}\n"
    file.write_text(good, encoding="utf-8")
    ops, acme = tenants_of(start_sidecar(file, environ={"PLAN": "s3cret-of-a-variable"}))
    assert ops.call("GET", "configuration").json["pending"] is None
    wrong = good.replace("default_scopes: [streams:read]", "default_plan: '${PLAN}'").replace("[billing]", "[biling]")
    write(file, wrong)
    until(lambda: ops.call("GET", "configuration").json["pending"] is not None)
    told = ops.call("GET", "configuration").json
    assert told["pending"]["total"] == 2
    assert [one["where"].rpartition("/")[2].split(":")[0] for one in told["pending"]["problems"]] == [
        "sidecar.yaml"
    ] * 2
    assert [one["message"] for one in told["pending"]["problems"]] == [
        "keys.default_plan: unknown plan '${PLAN}'",
        "routes[1].scopes[0]: unknown scope 'biling' (did you mean 'billing'?)",
    ]
    banner, page = shown(ops, "/keys"), shown(ops, "/policy")
    assert "The configuration file was refused" in banner and "2 errors" in banner
    assert page.count("was refused") == 1
    assert f"{file}:" in page and "did you mean" in page and "s3cret" not in page
    assert_without_details(acme, file)
    assert list(routes_of(ops)) == [STREAMS, BILLING, "(none)"]
    write(file, good)
    until(lambda: ops.call("GET", "configuration").json["pending"] is None)
    assert "was refused" not in shown(ops, "/policy")


def assert_without_details(acme: Admin, file: Path) -> None:
    pending = acme.call("GET", "configuration").json["pending"]
    assert (pending["problems"], pending["total"]) == ([], 2)
    page = shown(acme, "/policy")
    assert "who operates the sidecar can see which" in page and f"{file}:" not in page.partition('id="routes"')[0]
    assert "was refused" not in shown(acme, "/keys")


def test_the_first_refusal_says_since_when_and_the_newest_is_shown(start_sidecar: StartSidecar, tmp_path: Path) -> None:
    file, good = tmp_path / "sidecar.yaml", f"{CONFIG}reload: {{interval: 50ms}}\n"
    file.write_text(good, encoding="utf-8")
    ops, _ = tenants_of(start_sidecar(file))

    def messages() -> list[str]:
        pending = ops.call("GET", "configuration").json["pending"]
        return [one["message"] for one in pending["problems"]] if pending else []

    write(file, good + "first: 1\n")
    until(lambda: any("first" in message for message in messages()))
    since = ops.call("GET", "configuration").json["pending"]["since"]
    write(file, good + "second: 1\n" * 150)
    until(lambda: any("second" in message for message in messages()))
    pending = ops.call("GET", "configuration").json["pending"]
    assert (pending["since"], pending["total"], len(pending["problems"])) == (since, 150, 100)
    assert "50 more errors" in shown(ops, "/policy")


def test_a_problem_is_shown_without_keys_and_cut(start_sidecar: StartSidecar, tmp_path: Path) -> None:
    file, good = tmp_path / "sidecar.yaml", f"{CONFIG}reload: {{interval: 50ms}}\n"
    file.write_text(good, encoding="utf-8")
    ops, _ = tenants_of(start_sidecar(file))
    key = "hv_live_" + "aB3" * 14
    write(file, good.replace("[billing]", f"[{key}]").replace("[streams:read], quotas", f"[{'x-' * 2500}], quotas"))
    until(lambda: ops.call("GET", "configuration").json["pending"] is not None)
    long, short = (one["message"] for one in ops.call("GET", "configuration").json["pending"]["problems"])
    assert (len(long), long[-1]) == (501, "…")
    assert short == "routes[1].scopes[0]: unknown scope 'hv_live_aB3a…'"
    assert key not in shown(ops, "/policy")


def test_what_needs_a_restart_is_named(start_sidecar: StartSidecar, tmp_path: Path) -> None:
    file, good = tmp_path / "sidecar.yaml", f"{CONFIG}reload: {{interval: 50ms}}\n"
    file.write_text(good, encoding="utf-8")
    ops, acme = tenants_of(start_sidecar(file))
    write(file, good + "access_log: off\n")
    until(lambda: ops.call("GET", "configuration").json["needs_restart"] == ["access_log"])
    assert "These options of the file need a restart to count: access_log." in shown(ops, "/policy")
    assert acme.call("GET", "configuration").json["needs_restart"] == []
