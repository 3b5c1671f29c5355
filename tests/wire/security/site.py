"""The site of the requirements, and assertions in their terms: U=0, U=raw."""

import sqlite3
from collections.abc import Collection
from dataclasses import dataclass

from tests.harness.recording import Recorded, Upstream
from tests.harness.running import Sidecar
from tests.harness.wire import Fields, Response, request_bytes

BASE = """\
listen: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:///nowhere
scopes: {read: Read, write: Write, admin: Administer}
routes:
  - "* /public/**": {public: true}
  - GET /items/**: {scopes: [read]}
  - POST /items/**: {scopes: [write]}
  - "* /admin/**": {scopes: [admin]}
identity:
  headers: {X-Auth-Subject: "{key.tenant}", X-Auth-Scopes: "{key.scopes}", X-Auth-Key-Id: "{key.id}"}
"""
KEYS = """\
keys:
  from: [{header: Authorization, scheme: Bearer}, {header: X-Api-Key}]
  environments: {live: hv_live_}
  failures: off
"""
CONFIG = BASE + KEYS
IDENTITY = ("x-auth-subject", "x-auth-scopes", "x-auth-key-id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A sidecar, its upstream, and keys by their names in the requirements (`Kr`)."""

    sidecar: Sidecar
    upstream: Upstream
    keys: dict[str, str]

    def ask(self, method: str, target: str, headers: Fields = (), *, key: str = "", body: bytes = b"") -> Response:
        """key: the name of one; as Bearer credential."""
        credential = [("Authorization", f"Bearer {self.keys[key]}")] if key else []
        raw = request_bytes(method, target, [*credential, *headers], body)
        return self.sidecar.exchange(raw, head_only=method == "HEAD")

    def refuses(
        self,
        status: int | Collection[int],
        method: str,
        target: str,
        headers: Fields = (),
        *,
        key: str = "",
    ) -> Response:
        """The response, which must be ours with `status`, contain nothing of the request, and leave U=0."""
        headers = list(headers)
        response = self.ask(method, target, headers, key=key)
        told_back = ("X-Request-Id",)
        self.check_ours(response, status, [target, *(value for name, value in headers if name not in told_back)])
        return response

    def refuses_bytes(self, status: int | Collection[int], raw: bytes) -> Response:
        """As `refuses`, of exact bytes."""
        response = self.sidecar.exchange(raw)
        self.check_ours(response, status, [])
        return response

    def passes(self, method: str, target: str, headers: Fields = (), *, key: str = "", body: bytes = b"") -> Recorded:
        """What reached the upstream: one request, U=raw, and its response was passed on."""
        response = self.ask(method, target, headers, key=key, body=body)
        assert response.status == 200, response
        seen = self.upstream.last()
        assert seen.head.startswith(f"{method} {target} HTTP/1.1\r\n".encode("latin-1")), seen.head
        return seen

    def check_ours(self, response: Response, status: int | Collection[int], sent: Collection[str]) -> None:
        allowed = {status} if isinstance(status, int) else set(status)
        assert response.status in allowed, (response, sent)
        assert self.upstream.requests() == []
        assert response.header("Cache-Control") == "no-store"
        told = str(response)
        for text in [*sent, *self.keys.values()]:
            assert len(text) < 4 or text not in told, f"{text!r} is in the answer"


def keys_of(sidecar: Sidecar) -> dict[str, str]:
    """Kr, Kw, Ka, and those that are refused: Kx (expired), Kv (revoked), Kd (disabled)."""
    scopes = {"Kr": "read", "Kw": "write", "Ka": "admin", "Kx": "admin", "Kv": "admin", "Kd": "admin"}
    issued = {
        name: sidecar.keys.issue(name, scopes=(scope,), tenant=f"t-{name}", expires="90d" if name == "Kx" else None)
        for name, scope in scopes.items()
    }
    sidecar.keys.told("revoke", issued["Kv"].id)
    sidecar.keys.told("disable", issued["Kd"].id)
    expire(sidecar, issued["Kx"].id)
    return {name: key.text for name, key in issued.items()}


def expire(sidecar: Sidecar, key_id: str) -> None:
    """Make the key expire, by moving its expiry instead of the clock."""
    with sqlite3.connect(sidecar.keys.store) as store:
        store.execute("UPDATE api_key SET expires_at = created_at WHERE id = ?", (key_id,))
    store.close()
