"""Hitorino, as deploy/examples/hitorino.yaml has it."""

import sqlite3
from contextlib import closing

import pytest

from tests.harness.keys import IssuedKey, moment
from tests.harness.recording import Upstream
from tests.harness.running import EXAMPLES, Sidecar, StartSidecar

CONFIG = EXAMPLES / "hitorino.yaml"
COLLECTIONS = ("/v1/streams", "/v1/videos", "/v1/users", "/v1/webhooks")
INVALID_KEY = b'{"error":{"code":"invalid_api_key","message":"The API key provided is missing or invalid."}}'
NO_WRITE_ACCESS = (
    '{"error":{"code":"insufficient_scope","message":"This API key does not have write access. '
    'Generate a write-scoped key in Settings → API Keys."}}'
).encode()
ANONYMOUS_LIMIT = 60


@pytest.fixture(scope="module")
def sidecar(start_shared_sidecar: StartSidecar) -> Sidecar:
    return start_shared_sidecar(CONFIG)


@pytest.fixture(scope="module")
def read_key(sidecar: Sidecar) -> IssuedKey:
    return sidecar.keys.issue("Nightly export", scopes=("read",), tenant="acct_1")


@pytest.fixture(scope="module")
def write_key(sidecar: Sidecar) -> IssuedKey:
    return sidecar.keys.issue("Deployment", scopes=("write",), tenant="acct_1")


@pytest.mark.requirement("H1")
def test_the_key_travels_as_bearer_and_stays_with_the_sidecar(
    sidecar: Sidecar, upstream: Upstream, read_key: IssuedKey
) -> None:
    response = sidecar.ask("GET", "/v1/users", [("Authorization", f"Bearer {read_key.text}")])
    assert (response.status, response.json()["upstream"]) == (200, True)
    seen = upstream.last()
    assert "authorization" not in seen.names and read_key.text.encode() not in seen.head
    told = [seen.header(name) for name in ("X-Account-Id", "X-Key-Id", "X-Key-Name", "X-Key-Scopes")]
    assert told == ["acct_1", read_key.id, "Nightly export", "read"]


@pytest.mark.requirement("H1")
def test_the_key_in_any_other_place_is_not_accepted(sidecar: Sidecar, upstream: Upstream, read_key: IssuedKey) -> None:
    elsewhere = [
        ("Authorization", read_key.text),
        ("Authorization", f"Basic {read_key.text}"),
        ("X-Api-Key", read_key.text),
    ]
    assert [sidecar.ask("GET", "/v1/users", [field]).status for field in elsewhere] == [401, 401, 401]
    assert sidecar.ask("GET", f"/v1/users?api_key={read_key.text}").status == 401
    assert upstream.requests() == []


@pytest.mark.requirement("H2")
@pytest.mark.parametrize("scope", ["read", "write"])
def test_a_key_has_a_name_and_a_scope_and_is_shown_once(sidecar: Sidecar, scope: str) -> None:
    issued = sidecar.keys.run("issue", "--name", "Studio display", "--tenant", "acct_1", "--scope", scope)
    shown = next(line.strip() for line in issued.stdout.splitlines() if line.strip().startswith("hto_"))
    assert issued.stdout.count(shown) == 1 and "shown only once" in issued.stdout
    found = next(key for key in sidecar.keys.told("list") if shown.startswith(key["prefix"]))
    assert (found["name"], found["scopes"]) == ("Studio display", [scope])
    for told in (sidecar.keys.run("show", found["id"]), sidecar.keys.run("list", "--json")):
        assert shown not in told.stdout


@pytest.mark.requirement("H2")
@pytest.mark.parametrize("scopes", [(), ("read", "write"), ("admin",), ("*",)])
def test_none_both_or_another_scope_is_refused(sidecar: Sidecar, scopes: tuple[str, ...]) -> None:
    named = [f"--scope={scope}" for scope in scopes]
    refused = sidecar.keys.run("issue", "--name", "Everything", "--tenant", "acct_1", *named)
    assert refused.exit_code != 0 and "each key has exactly 1 scope, of: read, write" in refused.output


@pytest.mark.requirement("H2")
def test_nothing_stored_gives_the_plaintext_back(sidecar: Sidecar, read_key: IssuedKey) -> None:
    with closing(sqlite3.connect(sidecar.keys.store)) as database:
        names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        tables = [name for name in names if name != "key_text"]  # Its words can be looked for, but not listed.
        dump = str([database.execute(f"SELECT * FROM {name}").fetchall() for name in tables])  # noqa: S608
    files = [path.read_bytes() for path in sidecar.keys.store.parent.iterdir() if path.is_file()]
    assert read_key.told["prefix"] in dump
    assert read_key.text not in dump
    assert not any(read_key.text.encode() in content for content in files)


@pytest.mark.requirement("H3")
@pytest.mark.parametrize("collection", COLLECTIONS)
def test_read_opens_the_collections_and_everything_below_for_get(
    sidecar: Sidecar, upstream: Upstream, read_key: IssuedKey, collection: str
) -> None:
    targets = [collection, f"{collection}/1", f"{collection}/1/parts/2?x=1"]
    assert [sidecar.ask("GET", target, key=read_key).status for target in targets] == [200, 200, 200]
    assert [seen.target for seen in upstream.requests()] == targets
    refused = [sidecar.ask(method, f"{collection}/1", key=read_key) for method in ("POST", "PUT", "PATCH", "DELETE")]
    assert [response.status for response in refused] == [403, 403, 403, 403]
    assert len(upstream.requests()) == 3


@pytest.mark.requirement("H3")
def test_read_opens_nothing_else(sidecar: Sidecar, upstream: Upstream, read_key: IssuedKey) -> None:
    assert [sidecar.ask("GET", target, key=read_key).status for target in ("/v1/uploads", "/v1/streamsX")] == [403, 403]
    assert upstream.requests() == []


@pytest.mark.requirement("H3")
@pytest.mark.parametrize("target", [*COLLECTIONS, "/v1/streams/1/start", "/v1/uploads"])
def test_write_opens_everything(sidecar: Sidecar, upstream: Upstream, write_key: IssuedKey, target: str) -> None:
    methods = ["GET", "POST", "PUT", "PATCH", "DELETE"]
    responses = [sidecar.ask(method, target, key=write_key) for method in methods]
    assert [response.status for response in responses] == [200] * 5
    assert [seen.method for seen in upstream.requests()] == methods


@pytest.mark.requirement("H4")
@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "Bearer",
        "Bearer {mistyped}",
        "Bearer {key}x",
        "Bearer  {key}",
        "Bearer \t{key}",
        "Bearer {first} {rest}",
        "Bearer {key} {key}",
        'Bearer "{key}"',
        "Bearer '{key}'",
        '"Bearer {key}"',
        "Bearer Bearer {key}",
        "Bearer {revoked}",
    ],
)
def test_every_wrong_key_gets_an_identical_response(
    sidecar: Sidecar, upstream: Upstream, read_key: IssuedKey, revoked_key: IssuedKey, value: str | None
) -> None:
    text = read_key.text
    filled = value and value.format(
        key=text,
        mistyped=text[:-8] + ("a" if text[-8] != "a" else "b") + text[-7:],
        first=text[:20],
        rest=text[20:],
        revoked=revoked_key.text,
    )
    response = sidecar.ask("GET", "/v1/users", [] if filled is None else [("Authorization", filled)])
    assert (response.status, response.body) == (401, INVALID_KEY)
    assert response.header("Content-Type") == "application/json"
    assert upstream.requests() == []


@pytest.fixture(scope="module")
def revoked_key(sidecar: Sidecar) -> IssuedKey:
    key = sidecar.keys.issue(scopes=("write",), tenant="acct_1")
    sidecar.keys.told("revoke", key.id)
    return key


@pytest.mark.requirement("H5")
@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_a_read_key_on_a_write_operation(
    sidecar: Sidecar, upstream: Upstream, read_key: IssuedKey, method: str
) -> None:
    response = sidecar.ask(method, "/v1/streams", key=read_key)
    assert (response.status, response.body) == (403, NO_WRITE_ACCESS)
    assert response.header("Content-Type") == "application/json"
    assert upstream.requests() == []


@pytest.mark.requirement("H6")
@pytest.mark.parametrize("target", ["/v1/accounts/acct_2", "/v1/accounts/acct_2/members", "/internal"])
def test_a_good_key_without_access_to_the_resource(
    sidecar: Sidecar, upstream: Upstream, write_key: IssuedKey, target: str
) -> None:
    response = sidecar.ask("GET", target, key=write_key)
    assert response.status == 403
    assert response.json() == {
        "error": {"code": "insufficient_scope", "message": "This API key does not have access to this resource."}
    }
    assert upstream.requests() == []
    assert sidecar.ask("GET", "/v1/accounts/acct_1/members", key=write_key).status == 200


@pytest.mark.requirement("H6")
def test_the_upstreams_own_refusal_passes_through(sidecar: Sidecar, upstream: Upstream, write_key: IssuedKey) -> None:
    body = b'{"error":{"code":"access_denied","message":"Not your stream."}}'
    upstream.plan(b"HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    response = sidecar.ask("DELETE", "/v1/streams/of-someone-else", key=write_key)
    assert (response.status, response.body) == (403, body)


@pytest.mark.requirement("H7")
def test_one_key_of_an_account_is_revoked_immediately_and_the_others_keep_working(
    sidecar: Sidecar, upstream: Upstream
) -> None:
    keys = [sidecar.keys.issue(f"Key {n}", scopes=("read",), tenant="acct_7") for n in range(3)]
    with sidecar.connect() as connection:

        def status(key: IssuedKey) -> int:
            return connection.ask("GET", "/v1/users", [("Authorization", f"Bearer {key.text}")]).status

        assert [status(key) for key in keys] == [200, 200, 200]
        sidecar.keys.told("revoke", keys[1].id)
        assert status(keys[1]) == 401
        assert [status(key) for key in keys] == [200, 401, 200]
        sidecar.keys.told("revoke", keys[0].id)
        assert [status(key) for key in keys] == [401, 401, 200]
    assert len(upstream.requests()) == 3 + 2 + 1


@pytest.mark.requirement("H8")
def test_public_endpoints_answer_without_a_key_up_to_a_limit_per_address(
    start_sidecar: StartSidecar, upstream: Upstream
) -> None:
    sidecar = start_sidecar(CONFIG)
    with sidecar.connect(source="127.0.0.2") as stranger, sidecar.connect(source="127.0.0.3") as other:
        targets = ["/v1/streams", "/v1/videos/1"] * (ANONYMOUS_LIMIT // 2)
        assert {stranger.ask("GET", target).status for target in targets} == {200}
        refused = stranger.ask("GET", "/v1/streams")
        assert refused.status == 429 and refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert int(refused.header("Retry-After")) >= 1
        assert other.ask("GET", "/v1/streams").status == 200
    assert not any("x-account-id" in seen.names or "x-key-id" in seen.names for seen in upstream.requests())


@pytest.mark.requirement("H8")
def test_with_a_good_key_its_identity_and_its_higher_limit_apply(
    start_sidecar: StartSidecar, upstream: Upstream
) -> None:
    sidecar = start_sidecar(CONFIG)
    key = sidecar.keys.issue(scopes=("read",), tenant="acct_8")
    with sidecar.connect() as connection:
        responses = [
            connection.ask("GET", "/v1/streams", [("Authorization", f"Bearer {key.text}")])
            for _ in range(ANONYMOUS_LIMIT + 1)
        ]
        assert {response.status for response in responses} == {200}
        assert int(responses[0].header("X-RateLimit-Limit")) > ANONYMOUS_LIMIT
        assert {seen.header("X-Account-Id") for seen in upstream.requests()} == {"acct_8"}
        without = connection.ask("GET", "/v1/streams")
        assert int(without.header("X-RateLimit-Remaining")) == ANONYMOUS_LIMIT - 1


@pytest.mark.requirement("H8")
@pytest.mark.parametrize("target", ["/v1/streams", "/v1/videos/1"])
def test_a_bad_key_is_never_silently_anonymous(
    sidecar: Sidecar, upstream: Upstream, revoked_key: IssuedKey, target: str
) -> None:
    for text in (revoked_key.text, "hto_nonsense", "nonsense"):
        response = sidecar.ask("GET", target, key=text)
        assert (response.status, response.body) == (401, INVALID_KEY)
    assert upstream.requests() == []


@pytest.mark.requirement("H8")
@pytest.mark.parametrize("target", ["/v1/videos", "/v1/streams/1", "/v1/videos/1/parts"])
def test_everything_but_the_public_endpoints_needs_a_key(sidecar: Sidecar, upstream: Upstream, target: str) -> None:
    assert sidecar.ask("GET", target).status == 401
    assert sidecar.ask("POST", "/v1/streams").status == 401
    assert upstream.requests() == []


@pytest.mark.requirement("H9")
def test_every_key_shows_when_it_was_last_used(start_sidecar: StartSidecar, upstream: Upstream) -> None:
    sidecar = start_sidecar(CONFIG)
    used, unused = (sidecar.keys.issue(name, scopes=("read",), tenant="acct_9") for name in ("Used", "Unused"))
    assert sidecar.ask("GET", "/v1/users", key=used).status == 200
    assert sidecar.stop() == 0
    shown = sidecar.keys.told("show", used.id)
    assert moment(shown, "last_used_at") >= moment(shown, "created_at")
    assert sidecar.keys.told("show", unused.id)["last_used_at"] is None
