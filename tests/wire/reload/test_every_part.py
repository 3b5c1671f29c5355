"""One reload reconfigures every part: afterwards, each uses the new values."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

import pytest

from tests.harness.recording import Upstream
from tests.harness.wire import Address, Connection, Response, request_bytes
from tests.wire.forward_auth.asking import question
from tests.wire.reload.changing import Changing
from tests.wire.reload.conftest import StartChanging

OLD_TOKEN, NEW_TOKEN = "old-token-0123456789abcdef", "new-token-0123456789abcdef"
BEFORE = f"""\
listen: 127.0.0.1:0
ops: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:///nowhere
admin:
  listen: 127.0.0.1:0
  tokens: [{{name: ops, hash: 'sha256:{sha256(OLD_TOKEN.encode()).hexdigest()}', rights: read}}]
decision: {{listen: 127.0.0.1:0}}
trusted_proxies: [127.0.0.1/32]
keys: {{environments: {{live: hv_live_}}}}
scopes: {{read: Read}}
routes:
- GET /items/**: {{scopes: [read]}}
- GET /repos/{{name}}: {{public: true}}
limits: {{header: 8KiB}}
realm: before
access_log: {{query: redacted}}
reload: {{interval: 50ms}}
"""
AFTER = (
    BEFORE.replace(sha256(OLD_TOKEN.encode()).hexdigest(), sha256(NEW_TOKEN.encode()).hexdigest())
    .replace("live: hv_live_", "live: hv_live_, other: ot_")
    .replace("GET /items/**: {scopes: [read]}", "GET /items/**: {scopes: [read]}\n- GET /new: {public: true}")
    .replace("header: 8KiB", "header: 1KiB")
    .replace("realm: before", "realm: after")
    .replace("127.0.0.1/32", "127.0.0.2/32, 127.0.0.1/32")
    .replace("realm: after", "realm: after\npaths: {encoded_slash: keep}")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """What each part shows of the current configuration."""

    changing: Changing

    def listener(self, name: str) -> Address:
        line = self.changing.sidecar.process.stderr.wait_for(lambda line: f"{name} listener on" in line)
        assert line is not None
        host, _, port = line.rpartition(" ")[2].rpartition(":")
        return host, int(port)

    def ask(self, listener: str, raw: bytes, *, source: str = "") -> Response:
        with Connection(self.listener(listener), source=source) as connection:
            return connection.exchange(raw)

    def gate(self) -> int:
        return self.ask("data", request_bytes("GET", "/new")).status

    def encoded_slashes(self) -> tuple[int, int]:
        target = "/repos/a%2Fb"
        asked = self.ask("data", request_bytes("GET", target)), self.ask("decision", question("envoy", "GET", target))
        return asked[0].status, asked[1].status

    def error_responses(self) -> bool:
        return "after" in self.ask("data", request_bytes("GET", "/items/1")).header("WWW-Authenticate")

    def data_limits(self) -> int:
        return self.ask("data", request_bytes("GET", "/items/1", [("X-Long", "x" * 2000)])).status

    def forward_auth(self) -> int:
        return self.ask("decision", question("envoy", "GET", "/new")).status

    def forward_auth_terms(self) -> int:
        return self.ask("decision", question("envoy", "GET", "/items/1"), source="127.0.0.2").status

    def admin(self) -> int:
        credential = ("Authorization", f"Bearer {NEW_TOKEN}")
        return self.ask("admin", request_bytes("GET", "/api/v1/whoami", [credential], host="localhost")).status

    def redaction(self) -> bool:
        """A path segment that begins like a key is hidden in the log."""
        target = "/items/ot_0123456789abcdefghij0123456789"
        self.ask("data", request_bytes("GET", target, [("X-Mark", "1")]))
        line = self.changing.sidecar.logged(lambda line: line["path"].startswith("/items/") and len(line["path"]) > 9)
        return "ot_0123456789abcdef" not in line["path"]

    def metrics(self) -> bool:
        return 'route="GET /new"' in self.changing.sidecar.metrics()


@pytest.mark.parametrize(
    ("part", "before", "after"),
    [
        (House.gate, 401, 502),
        (House.encoded_slashes, (400, 400), (502, 200)),
        (House.error_responses, False, True),
        (House.data_limits, 401, 431),
        (House.forward_auth, 401, 200),
        (House.forward_auth_terms, 403, 401),
        (House.admin, 401, 200),
        (House.metrics, False, True),
    ],
    ids=lambda value: value.__name__ if callable(value) else str(value),
)
def test_each_part_uses_the_new_configuration(
    start_changing: StartChanging, part: Callable[[House], object], before: object, after: object
) -> None:
    house = House(changing=start_changing(BEFORE, upstream_url="http://127.0.0.1:1"))
    assert part(house) == before
    house.changing.taken(AFTER)
    assert part(house) == after


def test_the_log_hides_keys_of_a_new_prefix(start_changing: StartChanging) -> None:
    house = House(changing=start_changing(BEFORE, upstream_url="http://127.0.0.1:1"))
    house.changing.taken(AFTER)
    assert house.redaction()


def test_the_log_names_the_configuration_in_force(start_changing: StartChanging) -> None:
    house = House(changing=start_changing(BEFORE, upstream_url="http://127.0.0.1:1"))
    named = []
    for _ in range(2):
        in_force = re.search('sidecar_config_info.sha256="(.{12})', house.changing.sidecar.metrics())
        house.gate()
        named.append(house.changing.sidecar.logged(lambda line: line["config"] not in named)["config"])
        assert in_force is not None and in_force[1] == named[-1]
        house.changing.taken(AFTER)


def test_a_new_upstream_gets_the_next_request(start_changing: StartChanging, upstream: Upstream) -> None:
    house = House(changing=start_changing(BEFORE, upstream_url=upstream.url))
    house.changing.taken(AFTER)
    assert house.gate() == 200
    assert upstream.last().target == "/new"
