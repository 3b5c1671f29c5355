"""Any token is a method if a route names it; methods that are neither named nor known open nothing."""

from functools import partial
from typing import Any

import pytest

from tests.harness.recording import Upstream
from tests.harness.running import StartSidecar
from tests.wire.forward_auth.asking import DIALECTS, Decider, start_decider, status_of

CONFIG = """\
listen: 127.0.0.1:0
decision: 127.0.0.1:0
ops: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:///nowhere
trusted_proxies: [127.0.0.1]
keys: {environments: {live: hv_live_}}
scopes: {read: Read, write: Write}
routes:
  - LIST|mirror|M-SEARCH|PROPFIND /named/**: {scopes: [write]}
  - "* /named/**": {scopes: [read]}
  - GET /items/**: {scopes: [read]}
"""
NAMED = ["LIST", "mirror", "M-SEARCH", "PROPFIND"]
OTHERS = ["PURGE", "DELETE", "REPORT"]
UNKNOWN = ["BREW", "brew", "Sync", "x.y~z", "A" * 32]
SPELLINGS = [
    *UNKNOWN,
    "get", "Get", "gET", "head", "post", "pUt", "delete", "options", "propfind", "m-Search", "list", "List", "MIRROR",
    "CONNECT", "TRACE", "connect", "Trace",
]  # fmt: skip


@pytest.fixture(scope="module")
def decider(start_shared_sidecar: StartSidecar) -> Decider:
    return start_decider(start_shared_sidecar, CONFIG, {"Kr": "read", "Kw": "write"})


@pytest.fixture(autouse=True)
def _ready(upstream: Upstream) -> None:
    """Nothing is recorded."""


@pytest.mark.requirement("S1.9")
@pytest.mark.parametrize("method", NAMED)
def test_a_method_that_a_route_names_is_judged_by_that_route_and_forwarded(
    decider: Decider, upstream: Upstream, method: str
) -> None:
    assert decider.sidecar.ask(method, "/named/x", key=decider.keys["Kr"].text).status == 403
    assert decider.sidecar.ask(method, "/named/x").status == 401
    assert upstream.requests() == []
    assert decider.sidecar.ask(method, "/named/x", key=decider.keys["Kw"].text).status == 200
    assert upstream.last().head.startswith(f"{method} /named/x HTTP/1.1\r\n".encode())


@pytest.mark.requirement("S1.9")
@pytest.mark.parametrize("method", OTHERS)
def test_any_other_method_is_judged_by_the_route_for_every_method(
    decider: Decider, upstream: Upstream, method: str
) -> None:
    assert decider.sidecar.ask(method, "/items/x", key=decider.keys["Kr"].text).status == 403
    assert upstream.requests() == []
    assert decider.sidecar.ask(method, "/named/x", key=decider.keys["Kr"].text).status == 200
    assert upstream.last().head.startswith(f"{method} /named/x HTTP/1.1\r\n".encode())


@pytest.mark.requirement("S1.9")
@pytest.mark.parametrize("method", SPELLINGS)
def test_another_spelling_of_a_method_is_405_under_every_route(
    decider: Decider, upstream: Upstream, method: str
) -> None:
    for key in ("Kr", "Kw"):
        for path in ("/named/x", "/items/x"):
            assert decider.sidecar.ask(method, path, key=decider.keys[key].text).status == 405
    assert upstream.requests() == []


@pytest.mark.requirement("S5.4")
@pytest.mark.parametrize("dialect", [dialect for dialect in DIALECTS if dialect != "envoy"])
def test_a_proxy_gets_the_same_response_for_every_method(decider: Decider, dialect: str) -> None:
    def told(method: str, path: str, key: str) -> int:
        return status_of(decider.ask(dialect, method, path, key=key))

    for method in NAMED:
        assert [told(method, "/named/x", key) for key in ("Kw", "Kr", "")] == [200, 403, 401]
    for method in OTHERS:
        assert [told(method, "/named/x", key) for key in ("Kw", "Kr", "")] == [403, 200, 401]
        assert told(method, "/items/x", "Kr") == 403
    for method in SPELLINGS:
        assert {told(method, "/named/x", key) for key in ("Kw", "Kr", "")} == {405}


def is_of(request_id: str, line: dict[str, Any]) -> bool:
    return bool(line["request_id"] == request_id)


def test_the_log_names_the_method_and_the_metrics_only_the_standard_ones(decider: Decider) -> None:
    series = 'sidecar_requests_total{code="200",method="other",route="* /named/**"}'
    before = decider.sidecar.metric(series)
    for method in OTHERS[::2]:
        headers = [("X-Request-Id", f"logged-{method}")]
        assert decider.ask("caddy", method, "/named/x", headers, key="Kr").status == 200
        line = decider.sidecar.logged(partial(is_of, f"logged-{method}"))
        assert (line["method"], line["route"]) == (method, "* /named/**")
    assert decider.sidecar.metric(series) == before + 2
