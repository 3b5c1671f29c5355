"""Requests to the admin listener, as scripts and browsers send them."""

import http.client
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any
from urllib.parse import urlencode

from tests.harness.running import Sidecar

OPS, AUDITOR, ACME = "ops-token-0123456789abcdef", "auditor-token-0123456789ab", "acme-token-0123456789abcdef"


def entry(name: str, token: str, rest: str) -> str:
    """An item of `admin: tokens:`."""
    return f"{{name: {name}, hash: 'sha256:{sha256(token.encode()).hexdigest()}', {rest}}}"


CONFIG = f"""\
listen: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:///nowhere
admin:
  listen: 127.0.0.1:0
  hosts: [keys.internal]
  tokens:
    - {entry("ops", OPS, "rights: write")}
    - {entry("auditor", AUDITOR, "rights: read")}
    - {entry("acme", ACME, "rights: write, tenant: acme, scopes: ['streams:write'], plans: [free]")}
keys:
  environments: {{live: hv_live_}}
  default_scopes: [streams:read]
scopes:
  streams:read: List streams
  streams:write: {{includes: [streams:read]}}
  billing: Pay
quotas:
  general: {{limit: 1000, per: 24h, window: sliding}}
plans:
  free: {{general: 10}}
  pro: {{general: 5000}}
routes:
  - GET /streams/**: {{scopes: [streams:read], quotas: [general]}}
  - GET /billing/**: {{scopes: [billing]}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A response of the admin listener."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def pointers(self) -> list[str]:
        """The pointers of a problem's errors."""
        return sorted(error["pointer"] for error in self.json["errors"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Admin:
    """A holder of `token`. Its requests go below /api/v1 unless the path begins with a slash."""

    address: tuple[str, int]
    token: str | None = OPS
    headers: Mapping[str, str] = field(default_factory=dict)

    def call(self, method: str, path: str, body: object = None, **headers: str) -> Response:
        """headers: by their names with `_` for `-`. A `body` of bytes is sent as it is."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        credential = {"Authorization": f"Bearer {self.token}"} if self.token is not None else {}
        text = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        kind = {"Content-Type": "application/json"} if text is not None else {}
        connection = http.client.HTTPConnection(*self.address, timeout=30)
        try:
            target = path if path.startswith("/") else f"/api/v1/{path}"
            connection.request(method, target, text, {**kind, **credential, **self.headers, **given})
            response = connection.getresponse()
            return Response(status=response.status, headers=dict(response.getheaders()), body=response.read())
        finally:
            connection.close()

    def issue(self, **wanted: object) -> tuple[str, str]:
        """Id and plaintext of a new key."""
        response = self.call("POST", "keys", {"name": "a test's key", **wanted})
        assert response.status == 201, response.body
        return response.json["key"]["id"], response.json["secret"]


def admin_address(sidecar: Sidecar) -> tuple[str, int]:
    """Where the admin listener is bound."""
    line = sidecar.process.stderr.wait_for(lambda line: "admin listener on" in line)
    assert line is not None, sidecar.process.stderr.all()
    host, _, port = line.rpartition(" ")[2].rpartition(":")
    return host, int(port)


FORM = "application/x-www-form-urlencoded"


class Person:
    """A person who signed in at the page of `admin` with its token, without a browser."""

    def __init__(self, admin: Admin) -> None:
        sent = {"Accept": "text/html", "Origin": f"http://{admin.address[0]}:{admin.address[1]}", "Content-Type": FORM}
        door = Admin(address=admin.address, token=None, headers=sent)
        signed_in = door.call("POST", "/sign-in", urlencode({"token": admin.token}).encode())
        cookie = signed_in.headers["Set-Cookie"].partition(";")[0]
        self._browser = Admin(address=admin.address, token=None, headers={**sent, "Cookie": cookie})
        proof = re.search(r'name="proof" value="([^"]+)"', self._browser.call("GET", "/").body.decode())
        assert proof is not None
        self._proof = proof[1]

    def get(self, path: str) -> Response:
        return self._browser.call("GET", path)

    def post(self, path: str, **fields: str) -> Response:
        """Submit a form."""
        return self._browser.call("POST", path, urlencode({"proof": self._proof, **fields}).encode())

    def explain(self, target: str, key: str) -> str:
        """The page that explains GET `target`."""
        return self.post("/explain", method="GET", target=target, key=key).body.decode()
