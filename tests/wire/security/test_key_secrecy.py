"""What an outsider learns about keys, and where a key is written."""

import base64
import sqlite3
from pathlib import Path
from zlib import crc32

import pytest

from tests.harness.running import Sidecar, StartSidecar
from tests.harness.wire import Response, request_bytes
from tests.wire.security.site import BASE, CONFIG, KEYS, Site

FAILURES = 5
LIMITED = BASE + KEYS.replace("failures: off", f"failures: {{limit: {FAILURES}, per: day}}")
DEBUGGING = {"PYTHONPATH": str(Path(__file__).parent / "debugging"), "PYTHONASYNCIODEBUG": "1"}
ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def with_checksum(body: str) -> str:
    """A well-formed key that was never issued."""
    value, digits = crc32(body.encode()), ""
    for _ in range(6):
        value, digit = divmod(value, 62)
        digits = ALPHABET[digit] + digits
    return body + digits


def unknown(number: int = 0) -> str:
    return with_checksum(f"hv_live_{number:037d}")


@pytest.mark.requirement("S4.1")
def test_a_checksum_refuses_a_mistyped_key_without_asking_the_store(site: Site) -> None:
    sample = 'sidecar_store_seconds_count{operation="find"}'
    before = site.sidecar.metric(sample)
    key = site.keys["Kr"]
    for position in range(len("hv_live_"), len(key)):
        wrong = "x" if key[position] != "x" else "y"
        assert site.ask("GET", "/items/x", [("X-Api-Key", key[:position] + wrong + key[position + 1 :])]).status == 401
    assert site.sidecar.metric(sample) == before
    assert site.ask("GET", "/items/x", [("X-Api-Key", unknown())]).status == 401
    assert site.sidecar.metric(sample) == before + 1


@pytest.mark.requirement("S4.3")
def test_every_bad_key_gets_the_same_response(site: Site) -> None:
    bad = [
        unknown(),
        "hv_live_" + "a" * 43,
        "hv_live_short",
        "hv_live_",
        "hv_test_" + site.keys["Kr"][8:],
        "someone-elses-key",
        site.keys["Kr"][:-1],
        site.keys["Kr"] + "a",
        site.keys["Kr"].upper(),
        site.keys["Kx"],
        site.keys["Kv"],
        site.keys["Kd"],
    ]
    for target in ("/items/x", "/admin/x", "/public/x", "/nowhere"):
        responses = {site.refuses(401, "GET", target, [("X-Api-Key", text)]).comparable() for text in bad}
        responses |= {
            site.refuses(401, "GET", target, [("Authorization", f"Bearer {text}")]).comparable() for text in bad
        }
        assert len(responses) == 1


@pytest.mark.requirement("S4.4")
def test_a_revoked_key_is_refused_on_the_next_request(site: Site) -> None:
    key = site.sidecar.keys.issue(scopes=("read",))
    for _ in range(2):
        assert site.sidecar.ask("GET", "/items/x", key=key).status == 200
    site.sidecar.keys.told("revoke", key.id)
    site.upstream.clear()
    assert site.sidecar.ask("GET", "/items/x", key=key).status == 401
    assert site.upstream.requests() == []


@pytest.mark.requirement("S4.4")
def test_a_disabled_key_works_again_once_it_is_enabled(site: Site) -> None:
    key = site.sidecar.keys.issue(scopes=("read",))
    statuses = []
    for verb in ("disable", "enable", "disable"):
        site.sidecar.keys.told(verb, key.id)
        statuses.append(site.sidecar.ask("GET", "/items/x", key=key).status)
    assert statuses == [401, 200, 401]


@pytest.fixture
def limited(start_sidecar: StartSidecar) -> Sidecar:
    return start_sidecar(LIMITED)


def wrong(sidecar: Sidecar, number: int, *, source: str = "127.0.0.1", **headers: str) -> Response:
    fields = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return sidecar.ask("GET", "/items/x", fields, key=unknown(number), source=source)


@pytest.mark.requirement("S4.5")
def test_wrong_keys_from_one_address_are_429_over_their_limit(limited: Sidecar, site: Site) -> None:
    good = limited.keys.issue(scopes=("read",))
    assert [wrong(limited, number).status for number in range(FAILURES)] == [401] * FAILURES
    refused = wrong(limited, FAILURES)
    assert refused.status == 429
    assert int(refused.header("Retry-After")) >= 1
    assert refused.header("Cache-Control") == "no-store"
    assert site.upstream.requests() == []
    assert wrong(limited, 0).status == 429
    assert wrong(limited, 0, X_Forwarded_For="9.9.9.9", Forwarded="for=9.9.9.9").status == 429
    assert wrong(limited, 0, source="127.0.0.2").status == 401
    for source in ("127.0.0.1", "127.0.0.2"):
        assert limited.ask("GET", "/items/x", key=good, source=source).status == 200
    assert limited.ask("GET", "/public/x").status == 200


@pytest.mark.requirement("S4.5")
def test_unknown_clients_cannot_lock_a_key_out(limited: Sidecar) -> None:
    good = limited.keys.issue(scopes=("read",))
    mistyped = good.text[:-1] + ("x" if good.text[-1] != "x" else "y")
    for _ in range(3 * FAILURES):
        limited.ask("GET", "/items/x", key=mistyped)
    assert limited.ask("GET", "/items/x", key=good).status == 200


@pytest.mark.requirement("S4.5")
@pytest.mark.parametrize("text", ["hv_live_short", "someone-elses", unknown()])
def test_no_kind_of_wrong_key_is_free(limited: Sidecar, text: str) -> None:
    statuses = [limited.ask("GET", "/public/x", key=text).status for _ in range(FAILURES + 1)]
    assert statuses == [401] * FAILURES + [429]


@pytest.mark.requirement("S4.5")
def test_unknown_keys_leave_neither_labels_nor_state(start_sidecar: StartSidecar) -> None:
    # Its own sidecar: a shared one may write uses of earlier tests at any time.
    sidecar = start_sidecar(CONFIG)
    sidecar.ask("GET", "/items/first", key=unknown())
    series, rows = label_sets(sidecar), stored_rows(sidecar.keys.store)
    for number in range(1, 200):
        assert sidecar.ask("GET", f"/items/{number}", key=unknown(number)).status == 401
    assert label_sets(sidecar) == series
    # Many refusals within a minute are one unusual event, however many keys they are of.
    grown = {name: count - rows[name] for name, count in stored_rows(sidecar.keys.store).items()}
    assert max(grown.values()) <= 5, grown
    assert grown["api_key"] == grown["audit"] == 0


@pytest.mark.requirement("S4.6")
def test_a_canary_key_appears_in_no_output(start_sidecar: StartSidecar) -> None:
    sidecar = start_sidecar(
        BASE + KEYS.replace("{header: X-Api-Key}]", "{header: X-Api-Key}, {query: api_key}, {cookie: api_key}]"),
        environ={**DEBUGGING, "SIDECAR_PEPPER": "a pepper of enough characters"},
    )
    issued = sidecar.keys.issue("canary", scopes=("read",))
    canary = issued.text
    present(sidecar, canary)
    sidecar.keys.told("revoke", issued.id)
    assert sidecar.ask("GET", "/items/x", key=canary).status == 401
    held = (
        Path(f"/proc/{sidecar.process.pid}/cmdline").read_bytes()
        + Path(f"/proc/{sidecar.process.pid}/environ").read_bytes()
    )
    written = held + sidecar.metrics().encode()
    assert sidecar.stop() == 0
    lines = [*sidecar.process.stdout.all(), *sidecar.process.stderr.all()]
    assert any("/items/x" in line for line in lines)
    assert "DEBUG:debugging:on" in lines, "the debug level is not on"
    written += "\n".join(lines).encode()
    for file in sidecar.keys.store.parent.iterdir():
        written += file.read_bytes()
    for form in forms_of(canary):
        assert form not in written


def present(sidecar: Sidecar, key: str) -> None:
    """The key in every place and form in a request."""
    statuses = [
        sidecar.ask("GET", "/items/x", key=key).status,
        sidecar.ask("GET", "/items/x", [("X-Api-Key", key)]).status,
        sidecar.ask("GET", f"/items/x?api_key={key}").status,
        sidecar.ask("GET", "/items/x", [("Cookie", f"api_key={key}")]).status,
        sidecar.ask("POST", "/items/x", key=key).status,
        sidecar.ask("GET", "/items/x", [("X-Api-Key", key + "a")]).status,
        sidecar.ask("GET", "/items/x", [("X-Api-Key", f"{key}, {key}")]).status,
        sidecar.ask("GET", f"/items/x?key={key}#", key=key).status,
        sidecar.ask("GET", f"/items/{key}/x", key=key).status,
        sidecar.ask("GET", f"/items/{percent_encoded(key)}/x", key=key).status,
        sidecar.ask("GET", f"/items/x?api_key={percent_encoded(key)}").status,
    ]
    assert statuses == [200, 200, 200, 200, 403, 401, 401, 400, 200, 200, 200]
    for raw in (
        request_bytes("GET", "/items/x", [("X-Api-Key", key + "\x00")]),
        request_bytes("GET", "/items/x", [("X-Api-Key", key), (f"X-Bad Name{key}", "x")]),
        f"GET /items/x HTTP/1.1\r\nHost: {key}/\r\nX-Api-Key: {key}\r\nContent-Length: x\r\n\r\n".encode(),
        f"{key} / HTTP/9.9\r\n\r\n".encode(),
    ):
        assert sidecar.exchange(raw).status in {400, 401, 405}


def forms_of(key: str) -> list[bytes]:
    """The key, its random part, and both as they may be encoded."""
    random_part = key.removeprefix("hv_live_")[:20].encode()
    whole = key.encode()
    in_base64, escapes = base64.b64encode(whole)[:20], percent_encoded(random_part.decode()).encode()
    return [random_part, random_part.hex().encode(), in_base64, random_part[::-1], escapes]


def percent_encoded(key: str) -> str:
    return "".join(f"%{ord(char):02x}" for char in key)


def label_sets(sidecar: Sidecar) -> set[str]:
    """Except those of periodic work, which may begin at any time."""
    lines = [line.rpartition(" ")[0] for line in sidecar.metrics().splitlines() if not line.startswith("#")]
    return {line for line in lines if not line.startswith("sidecar_store_seconds") or 'operation="find"' in line}


def stored_rows(path: Path) -> dict[str, int]:
    store = sqlite3.connect(path)
    try:
        tables = [name for _, name, kind, *_ in store.execute("PRAGMA main.table_list") if kind != "virtual"]
        return {name: store.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in tables}  # noqa: S608
    finally:
        store.close()
