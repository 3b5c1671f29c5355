"""The admin listener: who may use it, what a page may do, what is logged."""

import csv
import io
import json
import sqlite3
from contextlib import closing
from itertools import islice

import pytest

from tests.harness.keys import run_cli
from tests.harness.recording import Upstream
from tests.harness.running import Sidecar, StartSidecar
from tests.harness.wire import exchange, request_bytes
from tests.wire.admin.calls import ACME, CONFIG, OPS, Admin, admin_address

PATHS = (
    "/",
    "/keys",
    "/api",
    "/api/v1",
    "/api/v1/keys",
    "/api/v1/keys/x",
    "/api/v1/whoami",
    "/api/openapi.json",
    "/api/docs",
    "/nothing",
    "/api/v1/../v1/keys",
    "/sign-out",
    "/static/..%2fkeys",
    "/static%2fpage.css",
)
CREDENTIALS = (
    {},
    {"Authorization": ""},
    {"Authorization": "Bearer"},
    {"Authorization": f"Basic {OPS}"},
    {"Authorization": f"Bearer {OPS}x"},
    {"Authorization": f"Bearer {OPS[:-1]}"},
    {"Cookie": f"sidecar_admin={OPS}; session={OPS}"},
)


@pytest.fixture(scope="module")
def sidecar(start_shared_sidecar: StartSidecar) -> Sidecar:
    return start_shared_sidecar(CONFIG)


@pytest.fixture(scope="module")
def ops(sidecar: Sidecar) -> Admin:
    return Admin(address=admin_address(sidecar))


@pytest.mark.requirement("S6.1")
def test_it_listens_on_loopback_by_default(start_sidecar: StartSidecar) -> None:
    without_address = CONFIG.replace("  listen: 127.0.0.1:0\n", "", 1)
    sidecar = start_sidecar(without_address, options=["--admin", "127.0.0.1:0"])
    assert admin_address(sidecar)[0] == "127.0.0.1"


@pytest.mark.requirement("S6.1")
def test_an_admin_session_cookie_sent_to_the_data_listener_is_not_forwarded(
    start_sidecar: StartSidecar, upstream: Upstream
) -> None:
    """Cookies ignore ports: a browser sends the session to every port of a host."""
    sidecar = start_sidecar(CONFIG.replace("routes:", 'routes:\n  - "* /open": {public: true}', 1))
    assert sidecar.ask("GET", "/open", [("Cookie", "theme=dark; sidecar_session=s3cret")]).status == 200
    assert upstream.last().header("Cookie") == "theme=dark"


@pytest.mark.requirement("S6.1")
def test_it_is_off_without_a_token(start_sidecar: StartSidecar) -> None:
    sidecar = start_sidecar(CONFIG[: CONFIG.index("admin:")] + CONFIG[CONFIG.index("keys:") :] + "admin: 127.0.0.1:0\n")
    assert not any("admin listener" in line for line in sidecar.process.stderr.all())


@pytest.mark.requirement("S6.1")
def test_nothing_of_it_is_on_the_data_listener(sidecar: Sidecar) -> None:
    for path in PATHS:
        if ".." not in path:
            told = sidecar.ask("GET", path, [("Authorization", f"Bearer {OPS}")])
            assert told.status == 401, path


@pytest.mark.requirement("S6.2")
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PATCH", "DELETE", "OPTIONS"])
def test_without_a_valid_credential_every_path_is_401(start_sidecar: StartSidecar, method: str) -> None:
    address = admin_address(start_sidecar(CONFIG))
    for path in PATHS:
        told = Admin(address=address, token=None).call(method, path)
        assert told.status == 401, path
        assert "Bearer" in told.headers["WWW-Authenticate"]
    for headers in CREDENTIALS:
        assert Admin(address=address, token=None, headers=headers).call(method, "keys").status == 401, headers


@pytest.mark.requirement("S6.2")
def test_the_sign_in_form_is_a_401_too_and_its_static_files_reveal_nothing(ops: Admin) -> None:
    stranger = Admin(address=ops.address, token=None)
    told = stranger.call("GET", "/sign-in")
    assert (told.status, "Bearer" in told.headers["WWW-Authenticate"]) == (401, True)
    assert b"Admin token" in told.body and b"ops" not in told.body
    files = [stranger.call("GET", f"/static/{name}") for name in ("page.css", "page.js", "icon.svg", "chevron.svg")]
    assert {file.status for file in files} == {200}
    # They are the same for everyone, before and after any key is issued.
    ops.issue(name="canary of the ops listener")
    assert [stranger.call("GET", f"/static/{name}").body for name in ("page.css", "page.js")] == [
        file.body for file in files[:2]
    ]


@pytest.mark.requirement("S6.2")
@pytest.mark.requirement("S6.6")
def test_wrong_tokens_are_slowed_and_never_lock_out_a_right_one(start_sidecar: StartSidecar) -> None:
    address = admin_address(start_sidecar(CONFIG))
    guesses = (Admin(address=address, token=f"guess-{n}").call("GET", "whoami") for n in range(100))
    assert [told.status for told in islice(guesses, 20)] == [401] * 20
    # A slow machine gains a guess every three seconds.
    refused = next(told for told in guesses if told.status != 401)
    assert refused.status == 429
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert Admin(address=address).call("GET", "whoami").status == 200
    form = {"Content-Type": "application/x-www-form-urlencoded", "Sec-Fetch-Site": "same-origin"}
    browser = Admin(address=address, token=None, headers=form)
    assert browser.call("POST", "/sign-in", b"token=" + OPS.encode()).status == 303


@pytest.mark.requirement("S6.2")
def test_behind_a_trusted_proxy_wrong_tokens_slow_the_client_that_sent_them(start_sidecar: StartSidecar) -> None:
    address = admin_address(start_sidecar(CONFIG + "trusted_proxies: [127.0.0.1]\n"))

    def guess(client: str) -> int:
        stranger = Admin(address=address, token="guess", headers={"X-Forwarded-For": f"198.51.100.7, {client}"})
        return stranger.call("GET", "whoami").status

    assert 429 in {guess("192.0.2.1") for _ in range(40)}
    assert guess("192.0.2.2") == 401


def test_the_audit_accepts_a_client_address_only_from_a_trusted_proxy(start_sidecar: StartSidecar) -> None:
    told = {"X-Forwarded-For": "192.0.2.1"}
    for config, source in ((CONFIG, "127.0.0.1"), (CONFIG + "trusted_proxies: [127.0.0.1]\n", "192.0.2.1")):
        ops = Admin(address=admin_address(start_sidecar(config)), headers=told)
        ops.issue()
        assert ops.call("GET", "audit").json["rows"][0]["source"] == source


@pytest.mark.requirement("S6.2")
def test_a_token_from_the_environment_works_and_is_never_shown(start_sidecar: StartSidecar) -> None:
    token = "canary-canary-canary-canary"
    sidecar = start_sidecar(
        CONFIG[: CONFIG.index("admin:")] + CONFIG[CONFIG.index("keys:") :],
        environ={"SIDECAR_ADMIN_TOKEN": token},
        options=["--admin", "127.0.0.1:0"],
    )
    admin = Admin(address=admin_address(sidecar), token=token)
    assert admin.call("GET", "whoami").json["name"] == "environment"
    admin.issue()
    sidecar.stop()
    written = "\n".join([*sidecar.process.stdout.all(), *sidecar.process.stderr.all()])
    assert token not in written
    assert token.encode() not in sidecar.keys.store.read_bytes()


@pytest.mark.requirement("S6.3")
@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:1", "https://keys.internal.evil"])
def test_requests_of_other_sites_are_refused(ops: Admin, origin: str) -> None:
    assert ops.call("GET", "keys", Origin=origin).status == 403
    assert ops.call("POST", "keys", {"name": "x"}, Origin=origin).status == 403
    assert "Access-Control-Allow-Origin" not in ops.call("OPTIONS", "keys", Origin=origin).headers


@pytest.mark.requirement("S6.3")
@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_browsers_sec_fetch_site_header_is_respected(ops: Admin, site: str) -> None:
    assert ops.call("POST", "keys", {"name": "x"}, Sec_Fetch_Site=site).status == 403
    assert ops.call("GET", "keys", Sec_Fetch_Site=site, Sec_Fetch_Mode="navigate").status == 403
    own = f"http://{ops.address[0]}:{ops.address[1]}"
    assert ops.call("POST", "keys", {"name": "x"}, Sec_Fetch_Site="same-origin", Origin=own).status == 201


@pytest.mark.requirement("S6.3")
@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_body_of_another_type_is_refused(ops: Admin, kind: str) -> None:
    assert ops.call("POST", "keys", {"name": "x"}, Content_Type=kind).status == 415


@pytest.mark.requirement("S6.3")
@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "192.0.2.1", ""])
def test_another_host_name_is_refused_before_anything_else(ops: Admin, host: str) -> None:
    told = ops.call("GET", "keys", Host=host)
    assert told.status in (400, 421)
    assert Admin(address=ops.address, token=None).call("GET", "keys", Host=host).status in (400, 421)


@pytest.mark.requirement("S6.3")
@pytest.mark.parametrize("host", ["localhost", "localhost:9091", "127.0.0.1:1", "keys.internal", "KEYS.internal:443"])
def test_its_own_host_names_are_accepted_on_any_port(ops: Admin, host: str) -> None:
    assert ops.call("GET", "keys", Host=host).status == 200


@pytest.mark.requirement("S6.3")
def test_every_response_forbids_caching_framing_and_scripts(ops: Admin) -> None:
    stranger = Admin(address=ops.address, token=None)
    for told in (
        *(admin.call("GET", path) for admin in (ops, stranger) for path in PATHS),
        ops.call("POST", "keys", b"{"),
        ops.call("GET", "keys", Host="evil.example"),
    ):
        assert told.headers["Cache-Control"] == "no-store"
        assert told.headers["X-Content-Type-Options"] == "nosniff"
        assert told.headers["X-Frame-Options"] == "DENY"
        policy = told.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert "Server" not in told.headers


@pytest.mark.requirement("S6.3")
def test_unreadable_input_is_neither_echoed_nor_logged(sidecar: Sidecar, ops: Admin) -> None:
    host = ("Host", "localhost")
    for raw in (
        request_bytes("GET", "/api/v1/keys", [host, ("X", "canary\x00canary")]),
        b"GET /canary HTTP/1.1\r\nHost: localhost\r\ncanary canary\r\n\r\n",
        b"canary /canary canary\r\n\r\n",
        request_bytes("GET", "/api/v1/keys", [host, ("Authorization", f"Bearer {OPS}canary\x01")]),
        request_bytes("GET", "/" + "canary" * 3000, [host]),
    ):
        response = exchange(ops.address, raw)
        assert 400 <= response.status < 500
        assert b"canary" not in response.body
    sidecar_said = "\n".join(sidecar.process.stderr.all())
    assert "canary" not in sidecar_said
    assert "Traceback" not in sidecar_said


@pytest.mark.requirement("S6.4")
def test_names_cannot_break_csv_or_a_log(start_sidecar: StartSidecar) -> None:
    sidecar = start_sidecar(CONFIG)
    ops = Admin(address=admin_address(sidecar))
    names = ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(1)", "\uff1dcmd", '","=1', "<img src=x onerror=alert(1)>", " =1"]
    ids = {ops.issue(name=name, metadata={"note": name})[0]: name for name in names}
    for name in ("\r\nSet-Cookie: a=b", "x\nsidecar: forged", "\t=1", "x\x1b[2J"):
        assert ops.call("POST", "keys", {"name": name}).status == 400
        assert ops.call("POST", "keys", {"name": "x", "metadata": {"note": name}}).status == 400
    exported = sidecar.keys.run("export", "--format", "csv").stdout
    rows = list(csv.DictReader(io.StringIO(exported)))
    assert ids.keys() <= {row["id"] for row in rows}
    for row in rows:
        assert not any(cell.lstrip().startswith(("=", "+", "-", "@", "\uff1d")) for cell in row.values()), row
        if row["id"] in ids:
            assert row["name"].removeprefix("'") == ids[row["id"]]
    # A key that is still used after it was revoked is reported in one line of JSON in the log.
    told = ops.call("POST", "keys", {"name": names[0]}).json
    ops.call("POST", f"keys/{told['key']['id']}/revoke")
    sidecar.ask("GET", "/streams/%0d%0aforged", [("User-Agent", "a\tb")], key=told["secret"])
    sidecar.ask("GET", "/streams/1", key=told["secret"])
    sidecar.stop()
    lines = sidecar.process.stderr.all()
    assert any(json.loads(line)["kind"] == "revoked_key" for line in lines if line.startswith("{"))
    assert not any(line.startswith(("forged", "sidecar: forged", "Set-Cookie")) for line in lines)


@pytest.mark.requirement("S6.5")
def test_if_the_audit_cannot_be_written_nothing_changes(start_sidecar: StartSidecar) -> None:
    sidecar = start_sidecar(CONFIG)
    ops = Admin(address=admin_address(sidecar))
    key_id, _ = ops.issue(name="before")
    before = ops.call("GET", "keys").body, ops.call("GET", "audit").body
    with closing(sqlite3.connect(sidecar.keys.store, isolation_level=None)) as store:
        store.execute("CREATE TRIGGER full BEFORE INSERT ON audit BEGIN SELECT RAISE(ABORT, 'canary'); END")
    for method, path, body in (
        ("POST", "keys", {"name": "x"}),
        ("PATCH", f"keys/{key_id}", {"name": "after"}),
        *(("POST", f"keys/{key_id}/{verb}", None) for verb in ("rotate", "disable", "revoke")),
    ):
        told = ops.call(method, path, body, **({"Idempotency_Key": "once"} if path == "keys" else {}))
        assert (told.status, b"canary" in told.body) == (503, False), path
    assert (ops.call("GET", "keys").body, ops.call("GET", "audit").body) == before
    with closing(sqlite3.connect(sidecar.keys.store, isolation_level=None)) as store:
        store.execute("DROP TRIGGER full")
    # Nor is it remembered as carried out.
    told = ops.call("POST", "keys", {"name": "x"}, Idempotency_Key="once")
    assert (told.status, told.json["repeated"]) == (201, False)
    assert sidecar.keys.told("show", key_id)["name"] == "before"
    assert run_cli("audit", "verify", environ={"SIDECAR_STORE": sidecar.keys.url}).exit_code == 0


@pytest.mark.requirement("S6.5")
def test_every_change_is_audited_once_and_nothing_else(ops: Admin) -> None:
    before = len(ops.call("GET", "audit?limit=500").json["rows"])
    key_id, _ = ops.issue()
    ops.call("PATCH", f"keys/{key_id}", {"name": "other"})
    ops.call("PATCH", f"keys/{key_id}", {"name": "other"})  # No change.
    ops.call("PATCH", f"keys/{key_id}", {"unknown": 1})
    ops.call("POST", f"keys/{key_id}/revoke")
    actions = [row["action"] for row in ops.call("GET", "audit?limit=500").json["rows"]]
    assert len(actions) == before + 3
    assert actions[:3] == ["revoke", "change", "issue"]


@pytest.mark.requirement("S6.5")
def test_unknown_fields_are_400_everywhere(ops: Admin) -> None:
    key_id, _ = ops.issue()
    bodies = {"keys": {"name": "x"}, f"keys/{key_id}/rotate": {}, "explain": {"method": "GET", "target": "/"}}
    for path, body in bodies.items():
        told = ops.call("POST", path, {**body, "admin": True})
        assert (told.status, told.pointers) == (400, ["/admin"])
    assert ops.call("PATCH", f"keys/{key_id}", {"tenant": "globex"}).pointers == ["/tenant"]
    assert ops.call("POST", f"keys/{key_id}/revoke", {"reason": "x"}).status == 400


def test_admin_token_prints_a_token_once_with_an_entry_that_holds_its_hash(start_sidecar: StartSidecar) -> None:
    made = run_cli("admin", "token", "--name", "portal", "--tenant", "acme", "--scope", "streams:read")
    assert made.exit_code == 0
    token = made.stdout.split()[0]
    entry = made.stdout[made.stdout.index("- name") :].rstrip()
    assert token not in entry
    sidecar = start_sidecar(CONFIG.replace("  tokens:\n", f"  tokens:\n    {entry}\n", 1))
    admin = Admin(address=admin_address(sidecar), token=token)
    told = admin.call("GET", "whoami").json
    assert (told["name"], told["rights"], told["tenant"], told["scopes"]) == (
        "portal",
        "read",
        "acme",
        ["streams:read"],
    )
    assert Admin(address=admin.address, token=ACME).call("GET", "whoami").status == 200
