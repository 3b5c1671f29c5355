"""The API on keys: every verb of a key's life, and what it refuses."""

import pytest

from tests.harness.running import Sidecar
from tests.wire.admin.calls import Admin


def test_an_issued_key_works_immediately_and_a_revoked_one_stops_immediately(ops: Admin, sidecar: Sidecar) -> None:
    key_id, secret = ops.issue(scopes=["streams:read"])
    assert sidecar.ask("GET", "/streams/1", key=secret).status == 200
    assert ops.call("POST", f"keys/{key_id}/disable").json["status"] == "disabled"
    assert sidecar.ask("GET", "/streams/1", key=secret).status == 401
    assert ops.call("POST", f"keys/{key_id}/enable").json["status"] == "active"
    assert sidecar.ask("GET", "/streams/1", key=secret).status == 200
    assert ops.call("POST", f"keys/{key_id}/revoke").json["status"] == "revoked"
    assert sidecar.ask("GET", "/streams/1", key=secret).status == 401
    response = ops.call("POST", f"keys/{key_id}/enable")
    assert (response.status, response.json["code"]) == (409, "conflict")


def test_the_plaintext_is_returned_once_and_stored_nowhere(ops: Admin) -> None:
    key_id, secret = ops.issue()
    for path in (f"keys/{key_id}", "keys", "audit"):
        assert secret.encode() not in ops.call("GET", path).body


def test_a_rotated_key_and_its_successor_both_work_until_the_overlap_is_over(ops: Admin, sidecar: Sidecar) -> None:
    key_id, secret = ops.issue(scopes=["streams:read"], tenant="globex", plan="pro")
    response = ops.call("POST", f"keys/{key_id}/rotate", {"overlap_seconds": 3600})
    new = response.json["key"]
    assert (response.status, new["replaces"], response.json["old"]["id"]) == (201, key_id, key_id)
    assert {name: new[name] for name in ("tenant", "plan", "scopes")} == {
        "tenant": "globex",
        "plan": "pro",
        "scopes": ["streams:read"],
    }
    for text in (secret, response.json["secret"]):
        assert sidecar.ask("GET", "/streams/1", key=text).status == 200
    at_once = ops.call("POST", f"keys/{new['id']}/rotate", {"overlap_seconds": 0})
    assert sidecar.ask("GET", "/streams/1", key=response.json["secret"]).status == 401
    assert sidecar.ask("GET", "/streams/1", key=at_once.json["secret"]).status == 200


def test_a_change_changes_what_it_names_and_nothing_else(ops: Admin, sidecar: Sidecar) -> None:
    key_id, secret = ops.issue(scopes=["streams:read"], metadata={"team": "a"}, plan="pro")
    assert sidecar.ask("GET", "/billing/1", key=secret).status == 403
    changed = ops.call("PATCH", f"keys/{key_id}", {"scopes": ["billing"], "plan": None}).json
    assert (changed["scopes"], changed["plan"], changed["metadata"]) == (["billing"], None, {"team": "a"})
    assert sidecar.ask("GET", "/billing/1", key=secret).status == 200


def test_every_invalid_field_is_reported_at_once_with_a_pointer_to_it(ops: Admin) -> None:
    wanted = {"nam": "x", "scopes": ["streams:read", 7], "quotas": {"a/b": 0}, "expires_at": "tomorrow"}
    response = ops.call("POST", "keys", wanted)
    assert (response.status, response.headers["Content-Type"]) == (400, "application/problem+json")
    assert response.pointers == ["/expires_at", "/nam", "/name", "/quotas/a~1b", "/scopes/1"]
    response = ops.call(
        "POST", "keys", {"name": "x", "scopes": ["streams:raed"], "plan": "prro", "quotas": {"genral": 1}}
    )
    assert response.pointers == ["/plan", "/quotas/genral", "/scopes/0"]
    assert "did you mean 'streams:read'" in response.body.decode()


def test_an_invalid_field_is_explained(ops: Admin) -> None:
    response = ops.call("POST", "keys", {"name": "", "scopes": "streams:read", "quotas": {"general": 0}})
    assert {error["pointer"]: error["detail"] for error in response.json["errors"]} == {
        "/name": "must not be empty",
        "/scopes": "must be a list or null, not a string",
        "/quotas/general": "must be at least 1",
    }
    wrong = {"name": 5, "tenant": True, "scopes": [1], "quotas": {"general": "5"}, "metadata": [], "plan": {}}
    response = ops.call("POST", "keys", wrong)
    assert {error["pointer"]: error["detail"] for error in response.json["errors"]} == {
        "/name": "must be a string, not a number",
        "/tenant": "must be a string or null, not true or false",
        "/scopes/0": "must be a string, not a number",
        "/quotas/general": "must be a whole number, not a string",
        "/metadata": "must be an object, not a list",
        "/plan": "must be a string or null, not an object",
    }
    assert ops.call("GET", "keys?limit=x").json["errors"][0]["detail"] == "must be a whole number"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"name": "\xff"}', b"[" * 100_000])
def test_a_body_that_is_not_a_json_object_is_refused(ops: Admin, body: bytes) -> None:
    assert ops.call("POST", "keys", body).status == 400


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "wanted=1", "status=gone", "limit=1&limit=2"])
def test_a_bad_query_is_refused_with_the_name_of_the_parameter(ops: Admin, query: str) -> None:
    response = ops.call("GET", f"keys?{query}")
    assert (response.status, response.pointers) == (400, [f"?{query.partition('=')[0]}"])


def test_a_body_over_one_mebibyte_is_refused(ops: Admin) -> None:
    response = ops.call("POST", "keys", {"name": "x" * 1024 * 1024})
    assert (response.status, response.json["code"]) == (413, "body_too_large")


def test_a_request_sent_twice_issues_one_key(ops: Admin) -> None:
    first = ops.call("POST", "keys", {"name": "once", "tenant": "once"}, Idempotency_Key="order-1")
    again = ops.call("POST", "keys", {"tenant": "once", "name": "once"}, Idempotency_Key="order-1")
    assert (first.status, again.status) == (201, 200)
    assert (again.json["key"]["id"], again.json["secret"], again.json["repeated"]) == (
        first.json["key"]["id"],
        None,
        True,
    )
    assert len(ops.call("GET", "keys?tenant=once").json["keys"]) == 1
    other = ops.call("POST", "keys", {"name": "another"}, Idempotency_Key="order-1")
    assert (other.status, other.json["code"]) == (422, "idempotency_key_used")


def test_a_rotation_sent_twice_makes_one_successor(ops: Admin) -> None:
    key_id, _ = ops.issue()
    first = ops.call("POST", f"keys/{key_id}/rotate", Idempotency_Key="turn-1")
    again = ops.call("POST", f"keys/{key_id}/rotate", Idempotency_Key="turn-1")
    assert (first.status, again.status) == (201, 200)
    assert (again.json["key"]["id"], again.json["secret"]) == (first.json["key"]["id"], None)


def test_a_change_of_a_concurrently_changed_field_is_refused(ops: Admin) -> None:
    key_id, _ = ops.issue()
    tag = ops.call("GET", f"keys/{key_id}").headers["ETag"]
    mine = ops.call("PATCH", f"keys/{key_id}", {"name": "mine"}, If_Match=tag)
    assert mine.status == 200
    assert ops.call("PATCH", f"keys/{key_id}", {"name": "theirs"}, If_Match=tag).status == 412
    assert ops.call("POST", f"keys/{key_id}/revoke", If_Match=tag).status == 412
    assert ops.call("PATCH", f"keys/{key_id}", {"name": "x"}, If_Match=f'"other", {mine.headers["ETag"]}').status == 200
    assert ops.call("POST", f"keys/{key_id}/revoke", If_Match="*").status == 200


def test_pages_follow_each_other_without_a_gap(ops: Admin) -> None:
    issued = [ops.issue(tenant="pages")[0] for _ in range(5)]
    listed, path = [], "keys?tenant=pages&limit=2"
    while True:
        page = ops.call("GET", path).json
        listed += [key["id"] for key in page["keys"]]
        if page["next"] is None:
            break
        path = f"keys?tenant=pages&limit=2&after={page['next']}"
    assert sorted(listed) == sorted(issued)
    assert len(listed) == 5


@pytest.mark.parametrize("order", ["created", "used", "ends", "name"])
@pytest.mark.parametrize("end", ["", "@", "@x", "@-1", "@" + "9" * 18, "@" + "9" * 19, "@" + "9" * 50])
def test_a_manipulated_cursor_is_not_a_server_error(ops: Admin, order: str, end: str) -> None:
    key_id, _ = ops.issue(tenant="cursors")
    assert ops.call("GET", f"keys?sort={order}&after={key_id}{end}").status == 200


def test_an_invalid_choice_is_reported_with_the_valid_ones(ops: Admin) -> None:
    told = ops.call("GET", "keys?sort=x&status=nope").json["errors"]
    assert {error["pointer"]: error["detail"] for error in told} == {
        "?sort": "must be one of created, name, tenant, used, unused, ends",
        "?status": "must be one of active, retiring, disabled, revoked, expired, retired",
    }


def test_keys_are_found_by_words_state_and_id(ops: Admin) -> None:
    key_id, _ = ops.issue(name="Nightly export", tenant="search")
    ops.call("POST", f"keys/{key_id}/disable")
    for query in ("search=night", "status=disabled&tenant=search", f"search={key_id[:12]}"):
        assert [key["id"] for key in ops.call("GET", f"keys?{query}").json["keys"]] == [key_id], query
    assert ops.call("GET", "keys?search=null").json["keys"] == []


@pytest.mark.parametrize("name", ["key_nobody", "hv_live_", "x%2Fy", "a" * 60])
def test_a_key_that_is_not_there_is_not_found(ops: Admin, name: str) -> None:
    for method, path in (("GET", ""), ("PATCH", ""), ("POST", "/revoke"), ("GET", "/usage")):
        body = {} if method == "PATCH" else None
        assert ops.call(method, f"keys/{name}{path}", body).status == 404


def test_a_read_only_user_changes_nothing(ops: Admin, auditor: Admin) -> None:
    key_id, _ = ops.issue()
    assert auditor.call("GET", f"keys/{key_id}").status == 200
    assert auditor.call("POST", "keys", {"name": "x"}).status == 403
    assert auditor.call("PATCH", f"keys/{key_id}", {"name": "x"}).status == 403
    for verb in ("disable", "enable", "revoke", "rotate"):
        assert auditor.call("POST", f"keys/{key_id}/{verb}").status == 403
    assert ops.call("GET", f"keys/{key_id}").json["status"] == "active"


def test_a_number_without_a_fraction_is_an_integer(ops: Admin) -> None:
    body = b'{"name": "whole", "quotas": {"general": 5.0}}'
    assert ops.call("POST", "keys", body).json["key"]["quotas"] == {"general": 5}
    refused = ops.call("POST", "keys", body.replace(b"5.0", b"5.5"))
    assert (refused.status, refused.pointers) == (400, ["/quotas/general"])


@pytest.mark.parametrize(
    "time",
    ["2031-02-29T00:00:00Z", "2100-02-29T00:00:00Z", "2031-04-31T00:00:00Z", "2031-01-01T24:00:00Z", "2031-01-01"],
)
def test_a_time_that_no_calendar_has_is_refused(ops: Admin, time: str) -> None:
    assert ops.call("POST", "keys", {"name": "never", "expires_at": time}).pointers == ["/expires_at"]
    assert ops.call("POST", "keys", {"name": "leap", "expires_at": "2032-02-29T23:59:59.5+01:00"}).status == 201
