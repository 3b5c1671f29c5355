"""A refused client can say which request it was: each response has the id that is in the log."""

import re

import pytest

from tests.harness.keys import IssuedKey
from tests.harness.recording import Upstream
from tests.harness.running import Sidecar, StartSidecar
from tests.harness.wire import Fields

CONFIG = """\
listen: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:unused.db
ops: 127.0.0.1:0
access_log: {format: json}
keys: {environments: {live: hv_live_}}
scopes: {read: Read}
routes:
  - GET|POST|OPTIONS /items/**: {scopes: [read]}
  - GET /me: {respond: {id: "{key.id}"}}
identity: {request_id: X-Correlation-Id}
limits: {body: 1KiB}
"""
MADE = re.compile(r"[0-9a-f]{32}")


@pytest.fixture(scope="module")
def sidecar(start_shared_sidecar: StartSidecar) -> Sidecar:
    return start_shared_sidecar(CONFIG)


@pytest.fixture(scope="module")
def key(sidecar: Sidecar) -> IssuedKey:
    return sidecar.keys.issue(scopes=("read",))


OUTCOMES = {
    "allowed": (200, "GET", "/items/7", True, b""),
    "allowed, a second time": (200, "GET", "/items/7", True, b""),
    "a large upload": (413, "POST", "/items/7", True, bytes(2000)),
    "our own": (200, "GET", "/me", True, b""),
    "no key": (401, "GET", "/items/7", False, b""),
    "no route": (403, "GET", "/nowhere", True, b""),
    "no method": (405, "FROB", "/items/7", True, b""),
    "a bad target": (400, "GET", "/items/%zz", True, b""),
}


@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize("of_client", [False, True])
def test_each_response_carries_the_id_that_is_logged(
    sidecar: Sidecar, key: IssuedKey, outcome: str, of_client: bool
) -> None:
    status, method, target, with_key, body = OUTCOMES[outcome]
    sent = outcome.replace(" ", "-").replace(",", "") if of_client else ""
    fields = [("X-Correlation-Id", sent)] if sent else []
    response = sidecar.ask(method, target, fields, key=key if with_key else None, body=body)
    assert response.status == status
    told = response.header("X-Correlation-Id")
    assert told == sent if sent else MADE.fullmatch(told)
    assert sidecar.logged(lambda line: line["request_id"] == told)["status"] == status


def test_headers_set_by_the_service_stay(sidecar: Sidecar, key: IssuedKey, upstream: Upstream) -> None:
    upstream.plan(b"HTTP/1.1 200 OK\r\nx-correlation-id: its-own\r\nContent-Length: 0\r\n\r\n")
    response = sidecar.ask("GET", "/items/7", [("X-Correlation-Id", "mine")], key=key)
    assert response.all("X-Correlation-Id") == ["its-own"]
    assert upstream.last().header("X-Correlation-Id") == "mine"


def test_an_upgrade_carries_the_id(sidecar: Sidecar, key: IssuedKey, upstream: Upstream) -> None:
    upstream.plan(b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n", close=True)
    asking = [("Connection", "Upgrade"), ("Upgrade", "echo"), ("X-Correlation-Id", "mine")]
    response = sidecar.ask("GET", "/items/7", asking, key=key)
    assert (response.status, response.all("X-Correlation-Id")) == (101, ["mine"])


def test_a_failing_upstream_is_reported_with_the_request_id(
    sidecar: Sidecar, key: IssuedKey, upstream: Upstream
) -> None:
    upstream.plan(b"nonsense\r\n\r\n", close=True)
    response = sidecar.ask("GET", "/items/7", [("X-Correlation-Id", "mine")], key=key)
    assert (response.status, response.header("X-Correlation-Id")) == (502, "mine")


MALFORMED = {
    "no version": (400, b"GET /items/7\r\n\r\n"),
    "no host": (400, b"GET /items/7 HTTP/1.1\r\nX-Correlation-Id: mine\r\n\r\n"),
    "a long line": (431, b"GET /items/7 HTTP/1.1\r\nX: %b\r\n\r\n" % bytes([65] * 9000)),
    "a coding": (501, b"POST /items/7 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"),
    "a body that breaks": (400, b"POST /items/7 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nz\r\n"),
}


@pytest.mark.parametrize("malformed", MALFORMED)
def test_who_sends_what_is_no_request_is_told_an_id_too(sidecar: Sidecar, malformed: str) -> None:
    status, raw = MALFORMED[malformed]
    response = sidecar.exchange(raw)
    assert response.status == status
    assert len(response.all("X-Correlation-Id")) == 1 and MADE.fullmatch(response.header("X-Correlation-Id"))


def test_the_ping_of_a_server_is_answered_with_the_id_that_is_logged(sidecar: Sidecar) -> None:
    response = sidecar.ask("OPTIONS", "*", [("X-Correlation-Id", "ping-1")])
    assert (response.status, response.header("X-Correlation-Id")) == (204, "ping-1")
    sidecar.logged(lambda line: line["request_id"] == "ping-1" and line["status"] == 204)


UNSAFE = ["a b", "a\tb", 'a"b', "é", "x" * 129, "<script>", ""]


@pytest.mark.parametrize("unsafe", UNSAFE)
def test_an_id_that_is_not_safe_is_replaced(sidecar: Sidecar, key: IssuedKey, unsafe: str) -> None:
    for credential in (key, None):
        response = sidecar.ask("GET", "/items/7", [("X-Correlation-Id", unsafe)], key=credential)
        assert MADE.fullmatch(response.header("X-Correlation-Id"))


@pytest.mark.parametrize("again", [1, 2])
@pytest.mark.parametrize(("presented", "status"), [("it", 200), ("none", 401), ("another", 401), ("two", 401)])
def test_an_id_that_holds_a_key_is_replaced(
    sidecar: Sidecar, key: IssuedKey, presented: str, status: int, again: int
) -> None:
    fields: Fields = [("X-Correlation-Id", f"id-{key.text}")]
    if presented == "two":
        fields = [*fields, ("Authorization", f"Bearer {key.text}")]
    credential = {"it": key.text, "two": key.text, "another": "hv_live_another"}.get(presented)
    response = sidecar.ask("GET", "/items/7", fields, key=credential)
    assert response.status == status
    assert MADE.fullmatch(response.header("X-Correlation-Id"))
