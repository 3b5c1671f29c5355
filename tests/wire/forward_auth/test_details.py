"""What a refused client and the holder of a key learn: the same from the sidecar and from a forward-auth proxy."""

import json

import pytest

from tests.harness.running import StartSidecar
from tests.wire.forward_auth.asking import DIALECTS, Decider, start_decider, status_of

CONFIG = """\
listen: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:unused.db
ops: 127.0.0.1:0
decision: 127.0.0.1:0
trusted_proxies: [127.0.0.1]
keys: {environments: {live: hv_live_}}
scopes: {read: Read, write: Write, secret:admin: Administer}
quotas:
  few: {limit: 1, per: month}
  general: {limit: 100, per: month}
routes:
  - GET /items/**: {scopes: [read]}
  - POST /items/**: {all_scopes: [read, write]}
  - GET /few: {quotas: [few]}
  - GET /.well-known/api-key: {respond: {name: "{key.name}", scopes: "{key.scopes}", quotas: "{quotas}"}}
errors:
  insufficient_scope: {detail: true}
  quota_exceeded: {detail: true, body: {message: "{detail}"}}
"""
LACKS = "The API key lacks a scope that this operation requires"


@pytest.fixture(scope="module")
def decider(start_shared_sidecar: StartSidecar) -> Decider:
    decider = start_decider(start_shared_sidecar, CONFIG, {"reader": "read", "spender": "read", "revoked": "read"})
    decider.sidecar.keys.told("revoke", decider.keys["revoked"].id)
    return decider


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_refusal_names_the_missing_scope_wherever_it_is_asked_for(decider: Decider, dialect: str) -> None:
    asked = decider.ask(dialect, "POST", "/items/7", key="reader")
    sent = decider.sidecar.ask("POST", "/items/7", key=decider.keys["reader"])
    assert (status_of(asked), sent.status) == (403, 403)
    assert asked.json()["detail"] == sent.json()["detail"] == f"{LACKS}: write."
    assert b"secret" not in asked.body + sent.body and b"t-reader" not in asked.body + sent.body


@pytest.mark.parametrize(("method", "target"), [("POST", "/items/7"), ("GET", "/.well-known/api-key")])
def test_each_refusal_carries_the_id_of_its_request(decider: Decider, method: str, target: str) -> None:
    asked = decider.ask("caddy", method, target, [("X-Request-Id", "asked-1")], key="reader")
    assert (status_of(asked), asked.header("X-Request-Id")) == (403, "asked-1")
    unclear = decider.ask("caddy", "GET", "/items/a/../b", [("X-Request-Id", "asked-2")], key="reader")
    assert (status_of(unclear), unclear.header("X-Request-Id")) == (400, "asked-2")
    decider.sidecar.logged(lambda line: line["request_id"] == "asked-2")


@pytest.mark.parametrize("credential", ["", "revoked"])
@pytest.mark.parametrize("target", ["/items/7", "/few", "/nowhere"])
def test_without_a_valid_key_nothing_is_named(decider: Decider, credential: str, target: str) -> None:
    asked = decider.ask("caddy", "POST", target, key=credential)
    assert status_of(asked) == 401
    assert asked.json()["detail"] == ("The API key is not valid." if credential else "An API key is required.")


def test_the_quota_that_is_used_up_is_named(decider: Decider) -> None:
    key = decider.keys["spender"]
    decider.sidecar.ask("GET", "/few", key=key)
    asked, sent = decider.ask("caddy", "GET", "/few", key="spender"), decider.sidecar.ask("GET", "/few", key=key)
    assert asked.status == sent.status == 429
    assert asked.json() == sent.json()
    assert sent.json()["message"].startswith("The quota few of 1 is used up. It is fully available again at 20")


def test_a_key_can_query_its_identity_and_remaining_quota_repeatedly(decider: Decider) -> None:
    name = '"},{ \\ é {key.id}'
    told = decider.sidecar.keys.told("issue", "--name", name, "--scope", "read", "--scope", "write")
    for _ in range(3):
        response = decider.sidecar.ask("GET", "/.well-known/api-key", [("Authorization", f"Bearer {told['key']}")])
        assert (response.status, response.header("Cache-Control")) == (200, "no-store")
        known = json.loads(response.body)
        assert (known["name"], known["scopes"]) == (name, ["read", "write"])
        assert [(each["name"], each["limit"], each["remaining"]) for each in known["quotas"]] == [
            ("few", 1, 1),
            ("general", 100, 100),
        ]
