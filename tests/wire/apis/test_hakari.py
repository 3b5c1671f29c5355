"""Hakari, as deploy/examples/hakari.yaml has it."""

import json
import sqlite3
from base64 import b64encode, urlsafe_b64encode
from hashlib import sha256

import pytest

from tests.harness.keys import IssuedKey, moment
from tests.harness.recording import Upstream
from tests.harness.running import EXAMPLES, Sidecar, StartSidecar

CONFIG = EXAMPLES / "hakari.yaml"
IDENTITY = {"x-project-id", "x-key-id", "x-key-label", "x-key-scopes"}
FORGED = [("X-Project-Id", "prj_2"), ("x_key_id", "key_forged"), ("X-KEY-SCOPES", "*"), ("X.Key--Label", "forged")]
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ1c3JfMSJ9.c2lnbmF0dXJl"

READ_STREAMS = [("GET", "/streams"), ("GET", "/streams/1"), ("POST", "/streams/1/playback-tickets")]
WRITE_STREAMS = [
    ("POST", "/streams"),
    ("PUT", "/streams/1"),
    ("PATCH", "/streams/1"),
    ("DELETE", "/streams/1"),
    ("POST", "/streams/1/rotate"),
    ("POST", "/streams/1/disable"),
]
READ_VODS = [("GET", "/vods"), ("GET", "/vods/1"), ("POST", "/vods/1/playback-tickets")]
WRITE_VODS = [
    ("POST", "/vods"),
    ("PATCH", "/vods/1"),
    ("DELETE", "/vods/1"),
    ("POST", "/vods/1/cancel"),
    ("PUT", "/vods/1/signed-playback"),
]
EVERYTHING = [*READ_STREAMS, *WRITE_STREAMS, *READ_VODS, *WRITE_VODS]


@pytest.fixture(scope="module")
def sidecar(start_shared_sidecar: StartSidecar) -> Sidecar:
    return start_shared_sidecar(CONFIG)


@pytest.fixture(scope="module")
def key(sidecar: Sidecar) -> IssuedKey:
    return sidecar.keys.issue("Encoder in Osaka", tenant="prj_1")


def allowed(sidecar: Sidecar, key: IssuedKey) -> list[tuple[str, str]]:
    """The part of EVERYTHING in the key's project that it may do; the rest must be refused with 403."""
    credential = [("Authorization", f"Bearer {key.text}")]
    with sidecar.connect() as connection:
        responses = [connection.ask(method, f"/v1/projects/prj_1{path}", credential) for method, path in EVERYTHING]
    assert {response.status for response in responses} <= {200, 403}
    return [asked for asked, response in zip(EVERYTHING, responses, strict=True) if response.status == 200]


@pytest.mark.requirement("K1")
@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("GET", "/usage"), *EVERYTHING])
def test_a_key_acts_on_its_own_project_only(
    sidecar: Sidecar, upstream: Upstream, key: IssuedKey, method: str, path: str
) -> None:
    assert sidecar.ask(method, f"/v1/projects/prj_1{path}", key=key).status == 200
    assert upstream.last().header("X-Project-Id") == "prj_1"
    for other in ("prj_2", "prj_11", "PRJ_1"):
        assert sidecar.ask(method, f"/v1/projects/{other}{path}", key=key).status == 403
    assert upstream.requests() == []


@pytest.mark.requirement("K1")
def test_a_key_without_a_project_is_not_issued(sidecar: Sidecar) -> None:
    refused = sidecar.keys.run("issue", "--name", "Nobody's")
    assert refused.exit_code != 0 and "each key must have tenant" in refused.output


@pytest.mark.requirement("K1")
@pytest.mark.parametrize(
    ("method", "path"), [("PATCH", ""), ("GET", "/members"), ("POST", "/webhooks"), ("PUT", "/a/b")]
)
def test_a_route_without_scopes_is_open_to_every_key_of_the_project(sidecar: Sidecar, method: str, path: str) -> None:
    key = sidecar.keys.issue(scopes=("vod:read",), tenant="prj_1")
    assert sidecar.ask(method, f"/v1/projects/prj_1{path}", key=key).status == 200
    assert sidecar.ask(method, f"/v1/projects/prj_2{path}", key=key).status == 403


@pytest.mark.requirement("K2")
def test_stored_are_the_digest_and_the_first_12_characters(sidecar: Sidecar, key: IssuedKey) -> None:
    assert key.text.startswith("hkr_")
    with sqlite3.connect(sidecar.keys.store) as database:
        row = database.execute("SELECT digest, algorithm, prefix FROM api_key WHERE id = ?", (key.id,)).fetchone()
    database.close()
    assert row == (sha256(key.text.encode()).digest(), "sha256", key.text[:12])


@pytest.mark.requirement("K2")
def test_nothing_of_a_dump_can_be_sent_as_a_key(sidecar: Sidecar, upstream: Upstream, key: IssuedKey) -> None:
    with sqlite3.connect(sidecar.keys.store) as database:
        rows = database.execute("SELECT * FROM api_key").fetchall()
    database.close()
    stored = {text for row in rows for value in row for text in written(value)}
    assert key.id in stored and key.told["prefix"] in stored and key.text not in stored
    for text in stored:
        for sent in {f"hkr_{text}", text if text.startswith("hkr_") else f"hkr_{text[4:]}"}:
            assert sidecar.ask("GET", "/v1/projects/prj_1/streams", key=sent).status in (400, 401)
    assert upstream.requests() == []


def written(value: object) -> list[str]:
    """Ways in which a stored value could be sent in a header."""
    if isinstance(value, bytes):
        return [value.hex(), b64encode(value).decode(), urlsafe_b64encode(value).decode()]
    return [str(value)] if str(value).isascii() else []


@pytest.mark.requirement("K2a")
def test_a_key_that_existed_before_is_imported_and_works_along_with_new_ones(sidecar: Sidecar, key: IssuedKey) -> None:
    old = "hkr_" + "Zm9v-YmFy_" * 4 + "Zm9v"
    line = {"hash": sha256(old.encode()).hexdigest(), "name": "Old encoder", "tenant": "prj_1", "prefix": old[:12]}
    imported = sidecar.keys.run("import", "-", stdin=json.dumps(line) + "\n")
    assert imported.exit_code == 0, imported.output
    target = "/v1/projects/prj_1/streams"
    for known in (old, key.text, old):
        assert sidecar.ask("POST", target, key=known).status == 200
    for wrong in (old[:-1], old + "v", key.text[:-1]):
        assert sidecar.ask("POST", target, key=wrong).status == 401


@pytest.mark.requirement("K3")
@pytest.mark.parametrize(
    ("scopes", "opens"),
    [
        (("streams:read",), READ_STREAMS),
        (("streams:write",), READ_STREAMS + WRITE_STREAMS),
        (("vod:read",), READ_VODS),
        (("vod:write",), READ_VODS + WRITE_VODS),
        (("streams:read", "vod:write"), READ_STREAMS + READ_VODS + WRITE_VODS),
        (("*",), EVERYTHING),
    ],
)
def test_a_key_holds_its_scopes_and_what_they_include(
    sidecar: Sidecar, scopes: tuple[str, ...], opens: list[tuple[str, str]]
) -> None:
    assert allowed(sidecar, sidecar.keys.issue(scopes=scopes, tenant="prj_1")) == opens


@pytest.mark.requirement("K3")
def test_without_scopes_a_key_gets_every_one(sidecar: Sidecar) -> None:
    key = sidecar.keys.issue(tenant="prj_1")
    assert key.told["scopes"] == ["*"]
    assert allowed(sidecar, key) == EVERYTHING


@pytest.mark.requirement("K3")
@pytest.mark.parametrize("scope", ["streams:read", "vod:read", "vod:write"])
def test_an_endpoint_accepts_any_one_of_the_scopes_it_lists(sidecar: Sidecar, scope: str) -> None:
    key = sidecar.keys.issue(scopes=(scope,), tenant="prj_1")
    assert sidecar.ask("GET", "/v1/projects/prj_1/usage", key=key).status == 200


@pytest.mark.requirement("K3")
def test_the_star_holds_for_scopes_that_are_added_later(start_sidecar: StartSidecar, sidecar: Sidecar) -> None:
    everything, streams = (sidecar.keys.issue(scopes=(scope,), tenant="prj_1") for scope in ("*", "streams:write"))
    later = CONFIG.read_text(encoding="utf-8")
    later = later.replace("\nscopes:\n", "\nscopes:\n  clips:read: List clips\n")
    later = later.replace("\nroutes:\n", '\nroutes:\n  - GET /v1/clips: {scopes: ["clips:read"]}\n')
    changed = start_sidecar(later, store=sidecar.keys.store)
    assert changed.ask("GET", "/v1/clips", key=everything).status == 200
    assert changed.ask("GET", "/v1/clips", key=streams).status == 403


@pytest.mark.requirement("K4")
@pytest.mark.parametrize(
    ("kind", "reads", "writes"), [("streams", READ_STREAMS, WRITE_STREAMS), ("vod", READ_VODS, WRITE_VODS)]
)
def test_reading_is_read_and_changing_is_write(
    sidecar: Sidecar, kind: str, reads: list[tuple[str, str]], writes: list[tuple[str, str]]
) -> None:
    reader = sidecar.keys.issue(scopes=(f"{kind}:read",), tenant="prj_1")
    writer = sidecar.keys.issue(scopes=(f"{kind}:write",), tenant="prj_1")
    assert allowed(sidecar, reader) == reads
    assert set(allowed(sidecar, writer)) >= set(writes)


@pytest.mark.requirement("K5")
def test_revocation_counts_on_the_next_request_and_is_final(sidecar: Sidecar, upstream: Upstream) -> None:
    key = sidecar.keys.issue(tenant="prj_1")
    assert sidecar.ask("GET", "/v1/projects/prj_1/streams", key=key).status == 200
    upstream.clear()
    sidecar.keys.told("revoke", key.id)
    assert sidecar.ask("GET", "/v1/projects/prj_1/streams", key=key).status == 401
    refused = sidecar.keys.run("enable", key.id)
    assert refused.exit_code != 0 and "revoked" in refused.output
    assert sidecar.ask("GET", "/v1/projects/prj_1/streams", key=key).status == 401
    assert upstream.requests() == []


@pytest.mark.requirement("K6")
def test_last_use_is_sampled_and_not_one_write_a_request(start_sidecar: StartSidecar, upstream: Upstream) -> None:
    sidecar, requests, page_bytes = start_sidecar(CONFIG), 500, 4096
    key = sidecar.keys.issue(tenant="prj_1")
    log = sidecar.keys.store.with_name(sidecar.keys.store.name + "-wal")
    before = log.stat().st_size if log.exists() else 0
    with sidecar.connect() as connection:
        for _ in range(requests):
            field = ("Authorization", f"Bearer {key.text}")
            assert connection.ask("GET", "/v1/projects/prj_1/streams", [field]).status == 200
    after = log.stat().st_size if log.exists() else 0
    assert after - before < requests * page_bytes / 10
    assert sidecar.stop() == 0
    shown = sidecar.keys.told("show", key.id)
    assert moment(shown, "last_used_at") >= moment(shown, "created_at")


@pytest.mark.requirement("K7")
def test_the_label_is_free_text(sidecar: Sidecar, upstream: Upstream) -> None:
    label = "大阪 encoder; <b>№ 1</b>, 50 % & 'more'"
    key = sidecar.keys.issue(label, tenant="prj_1")
    assert sidecar.keys.told("show", key.id)["name"] == label
    assert sidecar.ask("GET", "/v1/projects/prj_1/streams", key=key).status == 200
    assert upstream.last().header("X-Key-Label").isascii()


@pytest.mark.requirement("K8")
@pytest.mark.parametrize("field", [("Authorization", f"Bearer {JWT}"), ("Cookie", "theme=dark; session=s%3Aabc.def")])
def test_a_browser_session_reaches_the_upstream_untouched_and_without_identity(
    sidecar: Sidecar, upstream: Upstream, field: tuple[str, str]
) -> None:
    for method, path in [*EVERYTHING, ("GET", "/usage")]:
        target = f"/v1/projects/prj_2{path}?a=%2F"
        assert sidecar.ask(method, target, [*FORGED, field]).status == 200
        seen = upstream.last()
        assert (seen.method, seen.target, seen.header(field[0])) == (method, target, field[1])
        assert not IDENTITY & {name.replace("_", "-").replace(".", "-").replace("--", "-") for name in seen.names}


@pytest.mark.requirement("K8")
def test_a_key_of_ours_is_replaced_by_its_identity(sidecar: Sidecar, upstream: Upstream, key: IssuedKey) -> None:
    for cookies in ([], [("Cookie", "session=abc")]):
        assert sidecar.ask("GET", "/v1/projects/prj_1/streams", [*FORGED, *cookies], key=key).status == 200
        seen = upstream.last()
        assert "authorization" not in seen.names
        told = [value for name, value in seen.headers if name.lower().replace("_", "-").replace(".", "-") in IDENTITY]
        assert told == ["prj_1", key.id, "Encoder in Osaka", "*"]
        assert not any(b"forged" in part for part in (seen.head, seen.body))


@pytest.mark.requirement("K8")
def test_a_session_next_to_a_key_is_not_forwarded(sidecar: Sidecar, upstream: Upstream, key: IssuedKey) -> None:
    for sent, kept in [("session=s3", None), ("theme=dark; session=s3; a=b", "theme=dark; a=b"), ("a=b", "a=b")]:
        assert sidecar.ask("GET", "/v1/projects/prj_1/streams", [("Cookie", sent)], key=key).status == 200
        seen = upstream.last()
        assert [value for name, value in seen.headers if name.lower() == "cookie"] == ([kept] if kept else [])


@pytest.mark.requirement("K8")
@pytest.mark.parametrize("target", ["/v1/me", "/v1/projects", "/v1/auth/sign-in", "/"])
def test_endpoints_outside_projects_are_for_sessions_and_not_for_keys(
    sidecar: Sidecar, upstream: Upstream, key: IssuedKey, target: str
) -> None:
    for method in ("GET", "POST"):
        assert sidecar.ask(method, target, key=key).status == 403
        assert sidecar.ask(method, target, [("Cookie", "session=abc")], key=key).status == 403
        assert sidecar.ask(method, target, key="hkr_nonsense").status == 401
        assert upstream.requests() == []
        assert sidecar.ask(method, target, FORGED, key=JWT).status == 200
        seen = upstream.last()
        assert (seen.target, seen.header("Authorization")) == (target, f"Bearer {JWT}")
        assert not any(b"forged" in part for part in (seen.head, seen.body))


@pytest.mark.requirement("K8")
def test_signing_in_needs_no_session_and_all_else_does(sidecar: Sidecar, upstream: Upstream) -> None:
    assert sidecar.ask("POST", "/v1/auth/sign-in").status == 200
    upstream.clear()
    assert sidecar.ask("GET", "/v1/me").status == 401
    assert upstream.requests() == []


@pytest.mark.requirement("K8")
def test_a_bad_key_of_ours_is_not_a_session(sidecar: Sidecar, upstream: Upstream) -> None:
    target = "/v1/projects/prj_1/streams"
    session = [("Cookie", "session=abc")]
    assert sidecar.ask("GET", target, key="hkr_nonsense").status == 401
    assert sidecar.ask("GET", target, session, key="hkr_nonsense").status == 401
    assert sidecar.ask("GET", target).status == 401
    assert sidecar.ask("GET", target, [("Cookie", "theme=dark")]).status == 401
    assert sidecar.ask("GET", "/v1/elsewhere", key="hkr_nonsense").status == 401
    assert upstream.requests() == []
