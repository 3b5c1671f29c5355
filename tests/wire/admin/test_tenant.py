"""An administrator of one tenant sees and changes only that tenant's keys, and grants nothing beyond its rights."""

import pytest

from tests.harness.running import Sidecar
from tests.wire.admin.calls import Admin, Person

pytestmark = pytest.mark.requirement("K9")


@pytest.fixture(scope="module")
def foreign(ops: Admin) -> tuple[str, str, str]:
    """Ids of keys that are not acme's: of another tenant, of none, of every one."""
    issued = [ops.issue(tenant=tenant, name="foreign")[0] for tenant in ("globex", None, "*")]
    return issued[0], issued[1], issued[2]


def test_a_tenants_own_keys_are_issued_listed_changed_and_revoked(acme: Admin) -> None:
    key_id, _ = acme.issue(scopes=["streams:read"], plan="free")
    body = acme.call("GET", f"keys/{key_id}").json
    assert body["tenant"] == "acme"
    assert key_id in [key["id"] for key in acme.call("GET", "keys").json["keys"]]
    assert acme.call("PATCH", f"keys/{key_id}", {"name": "other"}).status == 200
    rotated = acme.call("POST", f"keys/{key_id}/rotate")
    assert (rotated.status, rotated.json["key"]["tenant"]) == (201, "acme")
    assert acme.call("POST", f"keys/{key_id}/revoke").json["status"] == "revoked"
    assert {row["key_id"] for row in acme.call("GET", "audit").json["rows"]} == {key_id, rotated.json["key"]["id"]}


def test_keys_of_others_are_answered_like_unknown_ones(acme: Admin, foreign: tuple[str, str, str]) -> None:
    unknown = acme.call("GET", "keys/key_nobody")
    for key_id in foreign:
        for method, path in (("GET", ""), ("GET", "/usage"), ("PATCH", ""), *(("POST", f"/{verb}") for verb in VERBS)):
            response = acme.call(method, f"keys/{key_id}{path}", {} if method == "PATCH" else None)
            assert (response.status, response.body) == (404, unknown.body), (method, path)
        explained = acme.call("POST", "explain", {"method": "GET", "target": "/streams/1", "key": key_id})
        assert (explained.status, explained.body) == (404, unknown.body)


VERBS = ("disable", "enable", "revoke", "rotate")


def test_lists_searches_and_the_audit_contain_nothing_of_other_tenants(
    acme: Admin, foreign: tuple[str, str, str]
) -> None:
    paths = ["keys?limit=500", "keys?search=foreign", "keys?tenant=globex", "keys?tenant=*", "audit?limit=500"]
    paths += [f"audit?key={key_id}" for key_id in foreign] + ["audit?tenant=globex", "overview"]
    paths += [f"keys?search={key_id[:10]}" for key_id in foreign]
    for path in paths:
        response = acme.call("GET", path)
        assert response.status == 200
        for key_id in foreign:
            assert key_id.encode() not in response.body, path


def test_a_plaintext_of_another_tenants_key_is_explained_as_unknown(ops: Admin, acme: Admin) -> None:
    _, secret = ops.issue(tenant="globex", scopes=["streams:read"])
    question = {"method": "GET", "target": "/streams/1", "secret": secret}
    assert ops.call("POST", "explain", question).json["decision"] == "allow"
    body = acme.call("POST", "explain", question).json
    assert (body["reason"], body["key_id"]) == ("invalid_key", None)


@pytest.mark.parametrize(
    ("beyond", "pointer"),
    [
        ({"tenant": "globex"}, "/tenant"),
        ({"tenant": "*"}, "/tenant"),
        ({"scopes": ["streams:read", "billing"]}, "/scopes/1"),
        ({"scopes": ["*"]}, "/scopes/0"),
        ({"scopes": ["streams:*"]}, "/scopes/0"),
        ({"plan": "pro"}, "/plan"),
        ({"plan": None}, "/plan"),
        ({"quotas": {"general": 11}}, "/quotas/general"),
    ],
)
def test_nothing_beyond_the_tokens_reach_is_granted(acme: Admin, beyond: dict[str, object], pointer: str) -> None:
    response = acme.call("POST", "keys", {"name": "x", "plan": "free", **beyond})
    assert (response.status, response.pointers) == (403, [pointer])
    if "tenant" not in beyond:
        key_id, _ = acme.issue(plan="free")
        response = acme.call("PATCH", f"keys/{key_id}", beyond)
        assert (response.status, response.pointers) == (403, [pointer])


def test_what_a_key_has_already_may_stay_but_not_be_turned_into_a_new_secret(ops: Admin, acme: Admin) -> None:
    key_id, _ = ops.issue(tenant="acme", scopes=["billing", "streams:read"], plan="pro")
    response = acme.call("PATCH", f"keys/{key_id}", {"name": "renamed", "scopes": ["billing"]})
    assert (response.status, response.json["scopes"], response.json["plan"]) == (200, ["billing"], "pro")
    response = acme.call("POST", f"keys/{key_id}/rotate")
    assert (response.status, response.pointers) == (403, ["/plan", "/scopes/0"])


def test_the_default_scopes_are_granted_only_within_reach(acme: Admin) -> None:
    key_id, _ = acme.issue(plan="free")
    assert acme.call("GET", f"keys/{key_id}").json["scopes"] == ["streams:read"]


def test_a_cursor_of_another_tenants_key_is_refused(ops: Admin, acme: Admin) -> None:
    own, _ = acme.issue(plan="free")
    newest, _ = ops.issue(tenant="globex")
    unknown = acme.call("GET", "keys?after=key_nobody")
    assert acme.call("GET", f"keys?after={newest}").json == unknown.json
    assert (unknown.json["keys"], unknown.json["next"]) == ([], None)
    assert own in [key["id"] for key in ops.call("GET", f"keys?after={newest}").json["keys"]]


def test_a_token_cannot_extend_access_beyond_its_own(ops: Admin, acme: Admin) -> None:
    end = "2090-01-01T00:00:00Z"
    key_id, _ = ops.issue(tenant="acme", scopes=["billing"], plan="free", expires_at=end)
    for later in (None, "2090-01-01T00:00:01Z"):
        response = acme.call("PATCH", f"keys/{key_id}", {"expires_at": later})
        assert (response.status, response.pointers) == (403, ["/scopes/0"])
    assert acme.call("PATCH", f"keys/{key_id}", {"expires_at": "2089-01-01T00:00:00Z"}).status == 200
    # Nor is it granted again after someone has removed it.
    assert acme.call("POST", f"keys/{key_id}/disable").status == 200
    response = acme.call("POST", f"keys/{key_id}/enable")
    assert (response.status, response.pointers) == (403, ["/scopes/0"])
    assert ops.call("POST", f"keys/{key_id}/enable").status == 200


def test_a_tenants_own_key_can_be_extended_and_reenabled(acme: Admin) -> None:
    key_id, _ = acme.issue(plan="free", expires_at="2090-01-01T00:00:00Z")
    assert acme.call("PATCH", f"keys/{key_id}", {"expires_at": None}).json["expires_at"] is None
    assert acme.call("POST", f"keys/{key_id}/disable").status == 200
    assert acme.call("POST", f"keys/{key_id}/enable").json["status"] == "active"


def test_a_tenant_gets_line_numbers_without_the_file_name(acme: Admin, ops: Admin, sidecar: Sidecar) -> None:
    key_id, secret = acme.issue(plan="free")
    question = {"method": "GET", "target": "/billing/1", "key": key_id}
    for call in ("routes", "policy", f"keys/{key_id}/reach", f"keys/{key_id}/routes"):
        assert "sidecar.yaml" not in acme.call("GET", call).body.decode(), call
        assert "sidecar.yaml:" in ops.call("GET", call).body.decode(), call
    told = acme.call("POST", "explain", question)
    assert told.json["where"].startswith("line ") and "sidecar.yaml" not in told.body.decode()
    assert ops.call("POST", "explain", question).json["where"].endswith("sidecar.yaml:" + told.json["where"][5:])
    headers = [("X-Request-Id", "asked-by-acme")]
    sidecar.ask("GET", "/billing/1", headers, key=secret)
    assert "(line " in acme.call("GET", "refusals/asked-by-acme").body.decode()
    pages = ("/policy", "/policy/GET%20%2Fbilling%2F**", f"/keys/{key_id}", "/refusals/asked-by-acme")
    for path in pages:
        assert "sidecar.yaml:" not in acme.call("GET", path, Accept="text/html").body.decode(), path
    assert "sidecar.yaml:" not in Person(acme).explain("/billing/1", key_id)
