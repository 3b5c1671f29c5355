"""What the demo configures, issues and sends."""

from dataclasses import dataclass

CONFIG = """\
listen: 127.0.0.1:0
ops: 127.0.0.1:0
admin: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:///replaced

keys:
  environments: {live: demo_}

scopes:
  streams:read: List and get streams
  streams:write: {description: Create and delete streams, includes: [streams:read]}
  reports:read: Get reports

quotas:
  reports: {limit: 2, per: hour, window: sliding, by: key}

routes:
  - GET /v1/status: {public: true}
  - GET /v1/streams/**: {scopes: [streams:read]}
  - POST|DELETE /v1/streams/**: {scopes: [streams:write]}
  - GET /v1/reports: {scopes: [reports:read], quotas: [reports]}
  - "* /v1/tenants/{tenant}/**": {tenant: tenant}

identity:
  headers: {X-Key-Id: "{key.id}", X-Tenant: "{key.tenant}", X-Scopes: "{key.scopes}"}

access_log: "off"
"""

KEYS = {
    "reader": ("acme", ("streams:read",)),
    "writer": ("acme", ("streams:write",)),
    "reporter": ("globex", ("reports:read",)),
}
"""Name to tenant and scopes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A request and the answer it gets. `reason` is empty where the request is allowed."""

    method: str = "GET"
    path: str
    key: str = ""
    status: int
    reason: str = ""
    why: str


STEPS = (
    Step(path="/v1/status", status=200, why="the route is public"),
    Step(path="/v1/streams", status=401, reason="missing_credential", why="the route wants a key"),
    Step(path="/v1/streams", key="reader", status=200, why="the key has the scope streams:read"),
    Step(path="/v1/streams", key="mistyped", status=401, reason="invalid_key", why="the checksum tells a mistyped key"),
    Step(
        method="POST",
        path="/v1/streams",
        key="reader",
        status=403,
        reason="insufficient_scope",
        why="the key lacks streams:write",
    ),
    Step(method="POST", path="/v1/streams", key="writer", status=200, why="the key has the scope streams:write"),
    Step(path="/v1/streams/1", key="writer", status=200, why="streams:write includes streams:read"),
    Step(path="/v1/tenants/acme/users", key="reader", status=200, why="the key belongs to this tenant"),
    Step(
        path="/v1/tenants/globex/users",
        key="reader",
        status=403,
        reason="wrong_tenant",
        why="the key belongs to another tenant",
    ),
    Step(path="/internal", key="writer", status=403, reason="no_route", why="what no route names is denied"),
    Step(
        path="/v1/streams/../status",
        key="writer",
        status=400,
        reason="ambiguous_target",
        why="the upstream might read this path in another way than the routes do",
    ),
    Step(path="/v1/reports", key="reporter", status=200, why="the first of two in an hour"),
    Step(path="/v1/reports", key="reporter", status=200, why="the second"),
    Step(path="/v1/reports", key="reporter", status=429, reason="quota_exceeded", why="the quota is used up"),
)


def mistyped(text: str) -> str:
    """A key with two neighbouring characters of its random part changed over, as people do."""
    at = next(at for at in range(len(text) - 10, 5, -1) if text[at] != text[at + 1])
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
