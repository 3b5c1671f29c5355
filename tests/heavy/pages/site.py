"""A sidecar with an admin listener, and how a person comes in."""

import http.client
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from urllib.parse import urlencode

from playwright.sync_api import Page, expect

from tests.harness.running import Sidecar, StartSidecar

TOKEN = "an-admin-token-of-these-tests"
READER = "a-token-that-may-only-look"
ACME = "a-token-for-the-keys-of-acme"

CONFIG = """\
listen: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:///replaced
admin:
  listen: 127.0.0.1:0
  tokens:
    - {name: reader, hash: "sha256:READER", rights: read}
    - {name: acme, hash: "sha256:ACME", rights: write, tenant: acme}
keys:
  environments: {live: hv_live_, test: hv_test_}
scopes:
  streams:read: List and get streams
  streams:write: {description: Create and delete streams, includes: [streams:read]}
quotas:
  general: {limit: 10, per: 24h, window: sliding, by: key}
plans:
  pro: {general: 1000}
routes:
  - GET /v1/streams/**: {scopes: [streams:read], quotas: [general]}
  - POST|DELETE /v1/streams/**: {all_scopes: [streams:write], quotas: [general]}
  - GET /v1/status: {public: true}
  - "* /v1/projects/{project}/**": {tenant: project}
identity:
  headers: {X-Key-Id: "{key.id}"}
"""
_ADMIN = re.compile(r"sidecar: admin listener on (.+):(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """What the admin listener answered."""

    status: int
    headers: Mapping[str, str]
    text: str


@dataclass(slots=True)
class Site:
    """The sidecar, and its admin listener as a browser and as a bare client see it."""

    sidecar: Sidecar
    host: str = ""
    port: int = 0
    cookie: str = ""
    proof: str = ""

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def sign_in(self, page: Page, token: str = TOKEN) -> None:
        """As a person does; ends at the overview."""
        page.goto(self.url + "/sign-in")
        page.get_by_label("Admin token").fill(token)
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("heading", name="Overview")).to_be_visible()

    def let_in(self, page: Page, token: str = TOKEN) -> None:
        """The browser of somebody who has signed in before: without the form, which takes longer than many a test."""
        name, _, value = self._session(token).partition("=")
        page.context.add_cookies([{"name": name, "value": value, "url": self.url}])

    def enter(self, token: str = TOKEN) -> None:
        """Without a browser: from here on `get` and `post` are of this session."""
        self.cookie = self._session(token)
        found = re.search(r'name="proof" value="([^"]+)"', self.get("/").text)
        assert found
        self.proof = found[1]

    def _session(self, token: str) -> str:
        """The cookie of a new one."""
        response = self.post("/sign-in", token=token)
        assert response.status == 303, response
        return response.headers["set-cookie"].partition(";")[0]

    def get(self, target: str, **headers: str) -> Response:
        return self.ask("GET", target, headers=headers)

    def post(self, address: str, /, *, headers: Mapping[str, str] | None = None, **fields: str | list[str]) -> Response:
        """A form; with the session's proof where there is one, and none was given."""
        given: dict[str, str | list[str]] = {"proof": self.proof, **fields}
        return self.ask("POST", address, headers=headers or {}, body=urlencode(given, doseq=True))

    def ask(self, method: str, target: str, *, headers: Mapping[str, str], body: str = "") -> Response:
        sent = {"Accept": "text/html", "Origin": self.url, "Sec-Fetch-Site": "same-origin"}
        if body:
            sent["Content-Type"] = "application/x-www-form-urlencoded"
        if self.cookie:
            sent["Cookie"] = self.cookie
        connection = http.client.HTTPConnection(self.host, self.port, timeout=30)
        try:
            connection.request(method, target, body or None, {**sent, **headers})
            response = connection.getresponse()
            told = {name.lower(): value for name, value in response.getheaders()}
            return Response(status=response.status, headers=told, text=response.read().decode())
        finally:
            connection.close()


def start_site(start: StartSidecar, *, more: str = "") -> Site:
    """A new sidecar with a new store, in which one key stands. more: routes beside those of CONFIG."""
    sidecar = start(_config().replace("identity:\n", f"{more}identity:\n"), environ={"SIDECAR_ADMIN_TOKEN": TOKEN})
    line = sidecar.process.stderr.wait_for(lambda line: _ADMIN.fullmatch(line) is not None)
    found = _ADMIN.fullmatch(line or "")
    assert found, sidecar.process.stderr.all()
    return Site(sidecar, host=found[1], port=int(found[2]))


def _config() -> str:
    hashes = {"READER": sha256(READER.encode()).hexdigest(), "ACME": sha256(ACME.encode()).hexdigest()}
    text = CONFIG
    for name, digest in hashes.items():
        text = text.replace(name, digest)
    return text
