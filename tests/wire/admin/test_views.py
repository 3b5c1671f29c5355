"""The API on everything but keys: audit, usage, configuration, the gate."""

from pathlib import Path

from tests.harness.running import Sidecar, StartSidecar
from tests.wire.admin.calls import CONFIG, Admin, admin_address


def test_the_audit_records_who_changed_what_and_from_where(ops: Admin) -> None:
    key_id, _ = ops.issue(scopes=["streams:read"])
    ops.call("PATCH", f"keys/{key_id}", {"scopes": ["billing"]})
    newest, first = ops.call("GET", f"audit?key={key_id}").json["rows"]
    assert (newest["actor"], newest["source"]) == ("token:ops", "127.0.0.1")
    assert (newest["before"]["scopes"], newest["after"]["scopes"]) == (["streams:read"], ["billing"])
    assert (first["before"], "digest" in first["after"]) == (None, False)
    page = ops.call("GET", f"audit?key={key_id}&limit=1").json
    assert ops.call("GET", f"audit?key={key_id}&limit=1&after={page['next']}").json["rows"] == [first]


def test_usage_counts_requests_by_route_and_class(start_sidecar: StartSidecar, tmp_path: Path) -> None:
    store = tmp_path / "keys.db"
    before = start_sidecar(CONFIG, store=store)
    key_id, secret = Admin(address=admin_address(before)).issue(scopes=["streams:read"])
    for target in ("/streams/1", "/streams/2", "/billing/1"):
        before.ask("GET", target, key=secret)
    before.stop()
    ops = Admin(address=admin_address(start_sidecar(CONFIG, store=store)))
    rows = ops.call("GET", f"keys/{key_id}/usage").json["rows"]
    assert {(row["route"], row["status_class"], row["count"]) for row in rows} == {
        ("GET /streams/**", 2, 2),
        ("GET /billing/**", 4, 1),
    }
    assert ops.call("GET", "overview").json["requests_by_class"] == {"2xx": 2, "4xx": 1}


def test_a_key_that_a_client_puts_into_its_user_agent_is_neither_stored_nor_shown(start_sidecar: StartSidecar) -> None:
    sidecar = start_sidecar(CONFIG)
    key_id, secret = Admin(address=admin_address(sidecar)).issue(scopes=["streams:read"])
    assert sidecar.ask("GET", "/streams/1", [("User-Agent", f"app/1 (key={secret})")], key=secret).status == 200
    sidecar.stop()
    assert sidecar.keys.told("show", key_id)["last_used_agent"] == "app/1 (key=[redacted])"
    assert secret[12:].encode() not in sidecar.keys.store.read_bytes()


def test_a_span_that_ends_before_it_begins_is_refused(ops: Admin) -> None:
    key_id, _ = ops.issue()
    response = ops.call("GET", f"keys/{key_id}/usage?since=2026-01-02T00:00:00Z&until=2026-01-01T00:00:00Z")
    assert (response.status, response.pointers) == (400, ["?since"])


def test_routes_scopes_and_plans_are_those_in_force(ops: Admin) -> None:
    streams, billing = ops.call("GET", "routes").json["routes"]
    assert (streams["name"], streams["any_scopes"], streams["quotas"]) == (
        "GET /streams/**",
        ["streams:read"],
        {"general": 1},
    )
    file, _, line = billing["where"].rpartition(":")
    assert file.endswith("sidecar.yaml")
    assert int(line) > 1
    assert [scope["name"] for scope in ops.call("GET", "scopes").json["scopes"]] == [
        "streams:read",
        "streams:write",
        "billing",
    ]
    assert [plan["limits"] for plan in ops.call("GET", "plans").json["plans"]] == [{"general": 10}, {"general": 5000}]


def test_explain_is_the_gates_decision_and_takes_nothing(ops: Admin, sidecar: Sidecar) -> None:
    key_id, secret = ops.issue(scopes=["streams:read"], plan="free")
    question = {"method": "GET", "target": "/streams/1", "key": key_id}
    for _ in range(12):
        body = ops.call("POST", "explain", question).json
        assert (body["decision"], body["route"], body["quotas"][0]["remaining"]) == ("allow", "GET /streams/**", 10)
    sidecar.ask("GET", "/streams/1", key=secret)
    assert ops.call("POST", "explain", question).json["quotas"][0]["remaining"] == 9
    denied = ops.call("POST", "explain", {"method": "GET", "target": "/billing/1", "secret": secret}).json
    assert (denied["decision"], denied["reason"], denied["status"]) == ("deny", "insufficient_scope", 403)
    assert denied["where"].endswith(tuple("0123456789"))
    assert secret not in str(denied)


def test_explain_does_not_show_the_key_even_where_the_upstream_gets_it(start_sidecar: StartSidecar) -> None:
    config = CONFIG.replace("keys:\n  env", "keys:\n  forward_credential: true\n  env", 1)
    ops = Admin(address=admin_address(start_sidecar(config)))
    _, secret = ops.issue(scopes=["streams:read"])
    response = ops.call("POST", "explain", {"method": "GET", "target": "/streams/1", "secret": secret})
    assert response.json["decision"] == "allow"
    assert "Bearer (the key)" in response.body.decode()
    assert secret not in response.body.decode()


def test_explain_knows_missing_unknown_and_malformed(ops: Admin) -> None:
    def reason(**fields: str) -> str | None:
        response = ops.call("POST", "explain", {"method": "GET", "target": "/streams/1", **fields})
        found: str | None = response.json["reason"]
        return found

    assert reason() == "missing_credential"
    assert reason(secret="hv_live_nobodys") == "invalid_key"
    assert reason(secret="a\r\nX: y") in ("malformed_credential", "bad_header")
    assert reason(target="/streams/%zz") == "bad_target"
    assert ops.call("POST", "explain", {"method": "GET", "target": "/x", "key": "key_nobody"}).status == 404
    both = ops.call("POST", "explain", {"method": "GET", "target": "/x", "key": "a", "secret": "b"})
    assert (both.status, both.pointers) == (400, ["/secret"])


def test_whoami_shows_what_a_token_may_do(ops: Admin, acme: Admin) -> None:
    assert ops.call("GET", "whoami").json == {
        "name": "ops",
        "rights": "write",
        "tenant": None,
        "scopes": ["streams:read", "streams:write", "billing"],
        "plans": ["free", "pro"],
        "environments": ["live"],
        "default_plan": None,
        "default_scopes": ["streams:read"],
        "required": [],
    }
    mine = acme.call("GET", "whoami").json
    assert (mine["tenant"], mine["scopes"], mine["plans"]) == ("acme", ["streams:read", "streams:write"], ["free"])


def test_the_overview_counts_keys_and_names_those_that_are_due(ops: Admin, acme: Admin) -> None:
    key_id, _ = ops.issue(tenant="globex")
    ops.call("POST", f"keys/{key_id}/rotate")
    body = ops.call("GET", "overview").json
    assert body["keys"]["active"] >= 2
    assert (key_id, "retires") in {(due["key"]["id"], due["why"]) for due in body["due"]}
    mine = acme.call("GET", "overview").json
    assert (mine["keys"], mine["due"]) == (None, [])


def test_the_documentation_is_one_page_without_script_or_other_host(ops: Admin) -> None:
    response = ops.call("GET", "/api/docs")
    page = response.body.decode()
    assert response.headers["Content-Type"].startswith("text/html")
    assert "POST /api/v1/keys/{id}/rotate" in page
    assert "<script" not in page
    assert "//" not in page.replace("</", "")


def test_keys_are_sorted_counted_and_followed_page_by_page(ops: Admin, acme: Admin) -> None:
    ends = [f"2031-0{month}-01T00:00:00Z" for month in (3, 1, 2)]
    for end in ends:
        ops.issue(name="sorted one", tenant="acme", expires_at=end)
    ops.issue(name="sorted one", tenant="globex")
    found, query = [], "keys?search=sorted&sort=ends&limit=2"
    page = ops.call("GET", query).json
    assert page["total"] == 4
    while page["next"]:
        found += page["keys"]
        page = ops.call("GET", f"{query}&after={page['next']}").json
    assert [key["expires_at"] for key in (*found, *page["keys"])] == [*sorted(ends), None]
    assert acme.call("GET", query).json["total"] == 3
    assert acme.call("GET", f"{query}&tenant=globex").json == {"keys": [], "next": None, "total": 0}
    assert ops.call("GET", "keys?search=sorted&unused_for_seconds=3600").json["total"] == 0
    assert ops.call("GET", "keys?sort=size").pointers == ["?sort"]


def test_the_audit_is_searched_by_the_names_of_keys_within_ones_own_tenant(ops: Admin, acme: Admin) -> None:
    mine, _ = ops.issue(name="audited here", tenant="acme")
    other, _ = ops.issue(name="audited there", tenant="globex")
    assert {row["key_id"] for row in ops.call("GET", "audit?name=audited").json["rows"]} == {mine, other}
    assert {row["key_id"] for row in acme.call("GET", "audit?name=audited").json["rows"]} == {mine}
    assert ops.call("GET", "audit?name=nobody").json["rows"] == []


def test_the_pages_list_filter_and_issue_as_the_api_does(ops: Admin, acme: Admin) -> None:
    name = "A name that is long enough for two lines of the list, and that is not cut"
    ops.issue(name=name, tenant="acme", scopes=["billing"], plan="pro", expires_at="2031-01-01T00:00:00Z")
    page = ops.call("GET", "/keys?search=two+lines&sort=ends").body.decode()
    assert name in page and "billing" in page and "Plan pro" in page and "2031-01-01 00:00:00 UTC" in page
    assert "1 key<" in page
    assert name in ops.call("GET", "/audit?name=two+lines&tenant=acme&until=2099-01-01").body.decode()
    assert name not in ops.call("GET", "/audit?name=two+lines&tenant=globex").body.decode()
    assert name not in ops.call("GET", "/audit?until=2020-01-01").body.decode()
    form = ops.call("GET", "/keys/new").body.decode()
    assert '<option value="90d" selected>' in form
    assert "pro: general 5,000 per day" in form
    assert 'name="tenant"' not in acme.call("GET", "/audit").body.decode()
