"""A forward-auth sidecar, and the requests of each dialect."""

from collections.abc import Mapping
from dataclasses import dataclass

from tests.harness.keys import IssuedKey
from tests.harness.processes import ROOT
from tests.harness.running import Sidecar, StartSidecar
from tests.harness.wire import Address, Connection, Fields, Response, exchange, request_bytes

FILES = ROOT / "deploy" / "forward-auth"
DIALECTS = ("nginx", "caddy", "traefik", "envoy")
CARRIERS = {
    "nginx": ("X-Original-Method", "X-Original-URI"),
    "caddy": ("X-Forwarded-Method", "X-Forwarded-Uri"),
    "traefik": ("X-Forwarded-Method", "X-Forwarded-Uri"),
}
IDENTITY = ("X-Auth-Subject", "X-Auth-Scopes", "X-Auth-Key-Id", "X-Request-Id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Decider:
    """A running sidecar, its forward-auth listener, and keys by their names in the requirements (`Kr`)."""

    sidecar: Sidecar
    address: Address
    keys: Mapping[str, IssuedKey]

    def ask(self, dialect: str, method: str, target: str, headers: Fields = (), *, key: str = "") -> Response:
        """The response to a proxy's request about a client's request, in its dialect."""
        return self.exchange(question(dialect, method, target, [*self.credential(key), *headers]))

    def exchange(self, raw: bytes, *, source: str = "") -> Response:
        return exchange(self.address, raw, head_only=raw.startswith(b"HEAD "), source=source)

    def connect(self) -> Connection:
        return Connection(self.address)

    def credential(self, key: str) -> list[tuple[str, str]]:
        """key: the name of one, or nothing."""
        return [("Authorization", f"Bearer {self.keys[key].text}")] if key else []


def question(dialect: str, method: str, target: str, headers: Fields = ()) -> bytes:
    """The bytes that a proxy of that dialect sends."""
    if dialect == "envoy":
        return request_bytes(method, f"/envoy{target}", headers)
    carriers = list(zip(CARRIERS[dialect], (method, target), strict=True))
    if dialect == "nginx":
        return request_bytes("GET", "/nginx", [*carriers, *headers])
    return request_bytes("GET", f"/{dialect}", [("X-Forwarded-Host", "api.test"), *carriers, *headers], host="sidecar")


def status_of(response: Response) -> int:
    """The gate's status, even if nginx cannot use it."""
    really = response.all("X-Auth-Status")
    return int(really[0]) if really else response.status


def start_decider(start: StartSidecar, config: str = "", keys: Mapping[str, str] | None = None) -> Decider:
    """config: that of deploy/forward-auth by default, bound anywhere. keys: names to scopes."""
    text = config or (FILES / "sidecar.yaml").read_text(encoding="utf-8")
    sidecar = start(text.replace("decision: 127.0.0.1:8081", "decision: 127.0.0.1:0"))
    line = sidecar.process.stderr.wait_for(lambda line: "decision listener on" in line)
    assert line is not None, sidecar.process.stderr.all()
    host, _, port = line.rpartition(" ")[2].rpartition(":")
    scopes = keys or {"Kr": "read", "Kw": "write", "Ka": "admin", "Kv": "admin"}
    issued = {name: sidecar.keys.issue(name, scopes=(scope,), tenant=f"t-{name}") for name, scope in scopes.items()}
    if "Kv" in issued:
        sidecar.keys.told("revoke", issued["Kv"].id)
    return Decider(sidecar=sidecar, address=(host, int(port)), keys=issued)
