"""A page of another origin calls the sidecar with Chromium's fetch."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page

from tests.harness.keys import IssuedKey
from tests.harness.recording import Upstream
from tests.harness.running import Sidecar, StartSidecar

CONFIG = """\
listen: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:unused.db
ops: 127.0.0.1:0
keys: {environments: {live: hv_live_}}
scopes: {read: Read}
quotas: {two: {limit: 2, per: day}}
cors: {origins: ["ORIGIN"], expose: [X-Total]}
routes:
  - GET /items/**: {scopes: [read]}
  - POST /items/**: {scopes: [read]}
  - GET /two: {quotas: [two]}
  - GET /cookies: {cors: {origins: ["ORIGIN"], credentials: true}}
  - GET /closed: {cors: off}
"""
FETCH = """\
async ([url, options]) => {
  try {
    const response = await fetch(url, options);
    return {status: response.status, text: await response.text(), headers: Object.fromEntries(response.headers)};
  } catch (error) {
    return {status: 0, text: String(error), headers: {}};
  }
}"""


class _Empty(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def origin() -> Iterator[str]:
    """Of a site that serves an empty page."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Empty)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def sidecar(start_shared_sidecar: StartSidecar, origin: str) -> Sidecar:
    return start_shared_sidecar(CONFIG.replace("ORIGIN", origin))


@pytest.fixture(scope="module")
def key(sidecar: Sidecar) -> IssuedKey:
    return sidecar.keys.issue(scopes=("read",))


@pytest.fixture
def stranger(context: BrowserContext, origin: str) -> Page:
    """The same site under another name, which is another origin."""
    page = context.new_page()
    page.goto(origin.replace("127.0.0.1", "localhost"))
    return page


@pytest.fixture
def app(context: BrowserContext, origin: str) -> Page:
    page = context.new_page()
    page.goto(origin)
    return page


def fetch(page: Page, sidecar: Sidecar, target: str, key: IssuedKey | None = None, **options: Any) -> dict[str, Any]:
    """What a script on the page sees; status 0 where the browser keeps the response from it."""
    sent = {} if key is None else {"Authorization": f"Bearer {key.text}"}
    options["headers"] = {**sent, **options.pop("headers", {})}
    found: dict[str, Any] = page.evaluate(FETCH, [f"http://127.0.0.1:{sidecar.data[1]}{target}", options])
    return found


def test_a_listed_origin_reads_responses_after_a_preflight(
    app: Page, sidecar: Sidecar, key: IssuedKey, upstream: Upstream
) -> None:
    upstream.plan(b"HTTP/1.1 200 OK\r\nX-Total: 7\r\nX-Secret: 1\r\nContent-Length: 2\r\n\r\n{}")
    seen = fetch(app, sidecar, "/items/7", key)
    assert (seen["status"], seen["text"], seen["headers"]["x-total"]) == (200, "{}", "7")
    assert "x-secret" not in seen["headers"]
    assert [each.method for each in upstream.requests()] == ["GET"]
    seen = fetch(app, sidecar, "/items/7", key, method="POST", body="{}", headers={"Content-Type": "application/json"})
    assert seen["status"] == 200
    assert [each.method for each in upstream.requests()] == ["GET", "POST"]


def test_a_listed_origin_reads_why_it_was_refused(app: Page, sidecar: Sidecar, key: IssuedKey) -> None:
    seen = fetch(app, sidecar, "/items/7")
    assert (seen["status"], '"missing_credential"' in seen["text"]) == (401, True)
    assert seen["headers"]["www-authenticate"].startswith("Bearer")
    assert seen["headers"]["x-request-id"]
    statuses = [fetch(app, sidecar, "/two", key)["status"] for _ in range(2)]
    seen = fetch(app, sidecar, "/two", key)
    assert [*statuses, seen["status"]] == [200, 200, 429]
    assert seen["headers"]["x-ratelimit-remaining"] == "0"
    assert int(seen["headers"]["retry-after"]) > 0


def test_a_route_lets_browsers_send_cookies_only_where_it_says_so(app: Page, sidecar: Sidecar, key: IssuedKey) -> None:
    assert fetch(app, sidecar, "/cookies", key, credentials="include")["status"] == 200
    assert fetch(app, sidecar, "/items/7", key, credentials="include")["status"] == 0


def test_responses_to_unlisted_origins_stay_unreadable(
    app: Page, stranger: Page, sidecar: Sidecar, key: IssuedKey, upstream: Upstream
) -> None:
    assert fetch(stranger, sidecar, "/items/7", key)["status"] == 0
    assert fetch(stranger, sidecar, "/items/7")["status"] == 0
    assert fetch(app, sidecar, "/closed", key)["status"] == 0
    assert fetch(app, sidecar, "/items/7", key, method="DELETE")["status"] == 0
    assert fetch(app, sidecar, "/items/7", key, headers={"X-Other": "1"})["status"] == 0
    assert upstream.requests() == []
