"""How the admin listener shows `mode: observe`."""

from typing import Any

from tests.harness.running import StartSidecar
from tests.harness.waiting import until
from tests.wire.admin.calls import ACME, CONFIG, Admin, Person, admin_address

OBSERVE = CONFIG.replace("keys:\n", "mode: observe\nkeys:\n  observe: [key_secretive]\n")


def test_observe_mode_is_shown_on_every_page_and_in_the_api(start_sidecar: StartSidecar) -> None:
    sidecar = start_sidecar(OBSERVE)
    ops = Admin(address=admin_address(sidecar))
    key_id, secret = ops.issue(scopes=["streams:read"])
    assert sidecar.ask("GET", "/billing/1", key=secret).status == 200
    [refusal] = ops.call("GET", "refusals").json["refusals"]
    assert (refusal["reason"], refusal["status"], refusal["observed"]) == ("insufficient_scope", 200, True)
    assert ops.call("GET", "overview").json["health"]["observing"] == ["everything", "key key_secretive"]
    explained = ops.call("POST", "explain", {"method": "GET", "target": "/billing/1", "key": key_id}).json
    assert (explained["decision"], explained["would_deny"]) == ("allow", "insufficient_scope")
    lines = {line["label"]: line["text"] for line in explained["lines"]}
    assert lines["decision"] == "would deny: insufficient_scope; observed because the mode of the file is observe"
    assert lines["cause"].startswith("the key lacks billing")
    person = Person(ops)
    for path in ("/", "/keys", "/keys/new", f"/keys/{key_id}", "/audit", "/explain"):
        page = person.get(path).body.decode()
        assert "Observed, not enforced:</b> everything, key key_secretive, since" in page
    assert "observed, 200" in person.get("/").body.decode()
    assert "Observed: would be refused: insufficient_scope" in person.explain("/billing/1", key_id)
    past = person.get(f"/refusals/{refusal['request_id']}").body.decode()
    assert "Why it would be refused" in past and "Observed: would be refused: insufficient_scope" in past
    assert "decides the same: it goes on, because the mode of the file is observe." in past
    [told] = ops.call("GET", f"refusals/{refusal['request_id']}").json["decisions"]
    assert told["otherwise"] is False and any(line["label"] == "missing" for line in told["then"])
    assert person.get("/policy").body.decode().count(">observed<") > 2


def test_what_would_be_refused_is_among_the_outcomes_of_the_day(start_sidecar: StartSidecar) -> None:
    sidecar = start_sidecar(OBSERVE.replace("general: {limit: 1000,", "general: {limit: 1,"))
    ops = Admin(address=admin_address(sidecar))
    key_id, secret = ops.issue(scopes=["streams:read"])
    for target in ("/streams/1", "/streams/1", "/billing/1", "/nowhere"):
        assert sidecar.ask("GET", target, key=secret).status == 200
    assert sidecar.ask("GET", "/billing/1").status == 200

    def outcomes(span: str) -> dict[str, Any]:
        routes = ops.call("GET", "policy").json["routes"]
        return {one["route"]["name"]: (one[span]["allowed"], one[span]["would_deny"]) for one in routes}

    until(lambda: outcomes("last_day")["(none)"][0] == 1)
    assert outcomes("last_day") == {
        "GET /streams/**": (2, {"quota_exceeded": 1}),
        "GET /billing/**": (1, {"insufficient_scope": 1}),
        "(none)": (1, {"no_route": 1}),
    }
    assert outcomes("since_start")["GET /billing/**"] == (2, {"insufficient_scope": 1, "missing_credential": 1})
    usage = ops.call("GET", f"keys/{key_id}/usage").json
    assert usage["reasons"] == [] and sum(row["count"] for row in usage["rows"]) == 4
    assert {one["reason"] for one in usage["would_deny"]} == {"quota_exceeded", "insufficient_scope", "no_route"}
    assert "1 would be refused" in text_of(ops, "/policy")
    for path in (f"/keys/{key_id}", "/policy/GET%20%2Fbilling%2F**"):
        page = text_of(ops, path)
        assert "Would be refused" in page and "<code>insufficient_scope</code>" in page
    [refusal] = [one for one in ops.call("GET", "refusals").json["refusals"] if one["reason"] == "quota_exceeded"]
    [told] = ops.call("GET", f"refusals/{refusal['request_id']}").json["decisions"]
    assert [line["text"].split(";")[0] for line in told["then"] if line["label"] == "used up"] == ["general of 1"]


def text_of(admin: Admin, path: str) -> str:
    return admin.call("GET", path, Accept="text/html").body.decode()


def test_a_tenants_administrator_learns_about_no_other_key(start_sidecar: StartSidecar) -> None:
    acme = Admin(address=admin_address(start_sidecar(OBSERVE)), token=ACME)
    assert acme.call("GET", "overview").json["health"]["observing"] == ["everything"]
    assert "key_secretive" not in Person(acme).get("/").body.decode()


def test_there_is_no_banner_if_everything_is_enforced(start_sidecar: StartSidecar) -> None:
    ops = Admin(address=admin_address(start_sidecar(CONFIG)))
    assert ops.call("GET", "overview").json["health"]["observing"] == []
    person = Person(ops)
    assert "not enforced" not in person.get("/").body.decode()
    assert ">observed<" not in person.get("/policy").body.decode()
