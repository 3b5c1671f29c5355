"""A sidecar that lets one thing through: what lies under /allowed, with one key."""

import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from tests.harness.keys import IssuedKey
from tests.harness.recording import Recorded, Upstream
from tests.harness.running import Sidecar

CONFIG = """\
listen: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:///nowhere
scopes: {read: Read, admin: Administer}
keys:
  from: [{header: Authorization, scheme: Bearer}]
  environments: {live: hv_live_}
  failures: off
routes:
  - "* /allowed/**": {scopes: [read]}
  - "* /closed/**": {scopes: [admin]}
identity:
  headers: {X-Auth-Key-Id: "{key.id}", X-Auth-Subject: "{key.tenant}", X-Auth-Scopes: "{key.scopes}"}
access_log: off
"""
TENANT = "tenant-of-the-key"
_CLASSES = re.compile(r"[^a-z0-9]+")
_BESIDE = ("x-auth-key-id", "x-auth-subject", "x-auth-scopes")


@dataclass(frozen=True, slots=True, kw_only=True)
class FuzzSite:
    sidecar: Sidecar
    upstream: Upstream
    key: IssuedKey

    @property
    def credential(self) -> tuple[bytes, bytes]:
        return (b"Authorization", b"Bearer " + self.key.text.encode())

    def check_allowed(self, seen: Recorded) -> None:
        """It bears the identity of the key, once and nothing else, and lies under /allowed however it is read."""
        assert not seen.malformed, seen.head
        told = [(_CLASSES.sub("-", name.lower()), value) for name, value in seen.headers]
        identity = {name: [value for folded, value in told if folded == name] for name in _BESIDE}
        wanted = dict(zip(_BESIDE, ([self.key.id], [TENANT], ["read"]), strict=True))
        assert identity == wanted, seen.head
        for path in paths_of(seen.target):
            assert path.startswith(b"/allowed/") or path == b"/allowed", (seen.target, path)


def paths_of(target: str) -> set[bytes]:
    """The paths that servers of several habits make of it; written down here anew, not taken from the sidecar."""
    raw = target.encode("latin-1").partition(b"?")[0]
    found: set[bytes] = set()
    for times in range(3):
        path = raw
        for _ in range(times):
            path = unquote_to_bytes(path)
        for backslash in (path, path.replace(b"\\", b"/")):
            for params in (backslash, re.sub(rb";[^/]*", b"", backslash)):
                merged = re.sub(rb"/+", b"/", params)
                found |= {params, merged, _resolved(params), _resolved(merged), re.sub(rb"/+", b"/", _resolved(params))}
    return found


def _resolved(path: bytes) -> bytes:
    kept: list[bytes] = []
    for segment in path.split(b"/")[1:]:
        if segment == b"..":
            kept = kept[:-1]
        elif segment != b".":
            kept.append(segment)
    return b"/" + b"/".join(kept)
