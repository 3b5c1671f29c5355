"""Hoko, as deploy/examples/hoko.yaml has it."""

import pytest

from tests.harness.keys import IssuedKey
from tests.harness.recording import Upstream
from tests.harness.running import EXAMPLES, Sidecar, StartSidecar

CONFIG = EXAMPLES / "hoko.yaml"
CHANGES = ("POST", "PUT", "DELETE")
COLLECTIONS = ("links", "collections", "tags", "analytics", "track/lead", "track/sale", "customers", "partners")
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
OPENS = {
    "linksRead": {("GET", "links")},
    "linksWrite": {(method, "links") for method in CHANGES},
    "collectionsRead": {("GET", "collections")},
    "collectionsWrite": {(method, "collections") for method in CHANGES},
    "tagsRead": {("GET", "tags")},
    "tagsWrite": {(method, "tags") for method in CHANGES},
    "analyticsRead": {("GET", "analytics")},
    "conversionsWrite": {("POST", "track/lead"), ("POST", "track/sale")},
    "customersRead": {("GET", "customers")},
    "customersWrite": {("PUT", "customers"), ("DELETE", "customers")},
    "partnersRead": {("GET", "partners")},
    "partnersWrite": {(method, "partners") for method in CHANGES},
}


@pytest.fixture(scope="module")
def sidecar(start_shared_sidecar: StartSidecar) -> Sidecar:
    return start_shared_sidecar(CONFIG)


@pytest.fixture(scope="module")
def all_scopes_key(sidecar: Sidecar) -> IssuedKey:
    return sidecar.keys.issue(scopes=tuple(OPENS), tenant="ws_1")


def opened(sidecar: Sidecar, key: IssuedKey, below: str = "") -> set[tuple[str, str]]:
    """Method and collection of everything that the key may do; the rest must be refused with 403."""
    asked = [(method, collection) for method in METHODS for collection in COLLECTIONS]
    field = ("Authorization", f"Bearer {key.text}")
    with sidecar.connect() as connection:
        statuses = [connection.ask(method, f"/api/{name}{below}", [field]).status for method, name in asked]
    assert set(statuses) <= {200, 403}
    return {pair for pair, status in zip(asked, statuses, strict=True) if status == 200}


@pytest.mark.requirement("O1")
def test_the_key_travels_as_bearer_and_the_upstream_gets_its_workspace(sidecar: Sidecar, upstream: Upstream) -> None:
    key = sidecar.keys.issue("Shop", scopes=("linksRead", "tagsRead"), tenant="ws_7")
    forged = ("X-Workspace-Id", "ws_1")
    assert sidecar.ask("GET", "/api/links", [forged, ("Authorization", f"Bearer {key.text}")]).status == 200
    seen = upstream.last()
    assert (seen.header("X-Workspace-Id"), seen.header("X-Key-Id")) == ("ws_7", key.id)
    assert (seen.header("X-Key-Name"), seen.header("X-Key-Scopes")) == ("Shop", "linksRead tagsRead")
    assert "authorization" not in seen.names
    assert sidecar.ask("GET", "/api/links", [("X-Api-Key", key.text)]).status == 401
    assert upstream.requests() == []


@pytest.mark.requirement("O2")
@pytest.mark.parametrize("scope", OPENS)
def test_each_scope_opens_what_it_names_and_implies_no_other(sidecar: Sidecar, upstream: Upstream, scope: str) -> None:
    key = sidecar.keys.issue(scopes=(scope,), tenant="ws_1")
    assert opened(sidecar, key) == OPENS[scope]
    assert opened(sidecar, key, below="/1/parts") == OPENS[scope]
    assert len(upstream.requests()) == 2 * len(OPENS[scope])


@pytest.mark.requirement("O2")
def test_there_are_twelve_scopes_and_no_others(sidecar: Sidecar) -> None:
    assert len(OPENS) == 12
    refused = sidecar.keys.run("issue", "--name", "More", "--scope", "analyticsWrite")
    assert refused.exit_code != 0 and "analyticsWrite" in refused.output


@pytest.mark.requirement("O3")
def test_a_key_may_have_any_mix_of_scopes(sidecar: Sidecar) -> None:
    mix = ("linksWrite", "tagsRead", "conversionsWrite")
    key = sidecar.keys.issue(scopes=mix, tenant="ws_1")
    assert key.told["scopes"] == list(mix)
    assert opened(sidecar, key) == set.union(*(OPENS[scope] for scope in mix))


@pytest.mark.requirement("O3")
def test_write_alone_cannot_read(sidecar: Sidecar) -> None:
    key = sidecar.keys.issue(scopes=("linksWrite",), tenant="ws_1")
    assert sidecar.ask("POST", "/api/links", key=key, body=b"{}").status == 200
    refused = sidecar.ask("GET", "/api/links", key=key)
    assert (refused.status, refused.json()["code"]) == (403, "insufficient_scope")
    assert 'scope="linksRead"' in refused.header("WWW-Authenticate")


@pytest.mark.requirement("O3")
@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("POST", "/api/customers"),
        ("PATCH", "/api/links/1"),
        ("PATCH", "/api/customers/1"),
        ("POST", "/api/analytics"),
        ("GET", "/api/track/lead"),
        ("POST", "/api/track"),
        ("GET", "/internal"),
        ("GET", "/api"),
        ("GET", "/api/linksX"),
        ("GET", "/"),
    ],
)
def test_an_unmatched_request_is_refused_for_every_key(
    sidecar: Sidecar, upstream: Upstream, all_scopes_key: IssuedKey, method: str, target: str
) -> None:
    everything = sidecar.keys.issue(scopes=("*",), tenant="*")
    assert [sidecar.ask(method, target, key=key).status for key in (all_scopes_key, everything)] == [403, 403]
    assert sidecar.ask(method, target).status == 401
    assert upstream.requests() == []


@pytest.mark.requirement("O4")
def test_revocation_is_immediate_and_permanent(sidecar: Sidecar, upstream: Upstream) -> None:
    key = sidecar.keys.issue(scopes=("linksRead",), tenant="ws_1")
    assert sidecar.ask("GET", "/api/links", key=key).status == 200
    upstream.clear()
    sidecar.keys.told("revoke", key.id)
    assert sidecar.ask("GET", "/api/links", key=key).status == 401
    for verb in ("enable", "disable"):
        refused = sidecar.keys.run(verb, key.id)
        assert refused.exit_code != 0 and "revoked" in refused.output
    assert sidecar.ask("GET", "/api/links", key=key).status == 401
    assert upstream.requests() == []


@pytest.mark.requirement("O5")
def test_an_attempt_with_a_revoked_key_is_logged_with_its_id_and_counted(sidecar: Sidecar) -> None:
    counter = 'sidecar_auth_failures_total{reason="revoked_key"}'
    key = sidecar.keys.issue(scopes=("linksRead",), tenant="ws_1")
    sidecar.keys.told("revoke", key.id)
    before = sidecar.metric(counter)
    assert sidecar.ask("GET", "/api/links?page=2", key=key).status == 401
    assert sidecar.metric(counter) == before + 1
    line = sidecar.logged(lambda line: line["key_id"] == key.id)
    assert (line["reason"], line["status"], line["tenant"]) == ("revoked_key", 401, "ws_1")
    assert (line["method"], line["path"], line["key_prefix"]) == ("GET", "/api/links", key.told["prefix"])
    assert not any(key.text in line for line in sidecar.process.stdout.all())
