"""A gate over a real store, cache and limiter, with a clock that tests set."""

import itertools
import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sidecar.config.build.config import Config
from sidecar.config.load import load
from sidecar.core.apikey import Hasher, KeyFormat, Pepper
from sidecar.core.error_responses import ErrorResponses
from sidecar.core.model import Allow, ApiKey, Decision, Deny, RequestHead
from sidecar.gate.compile import responses
from sidecar.gate.gate import Gate
from sidecar.keys.cache import KeyCache
from sidecar.keys.grace import Grace
from sidecar.limiter.memory import MemoryLimiter
from sidecar.store.store import SqliteStore
from tests.unit.keys.making import ANN, Clock, a_key, new_store

CONFIG = """\
listen: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:///nowhere
keys:
  from: [{header: Authorization, scheme: Bearer}, {header: X-Api-Key}]
  environments: {live: hv_live_, test: hv_test_}
  pass_through: [{header: Authorization, scheme: Bearer}, {cookie: session}]
  failures: {limit: 3, per: minute}
scopes:
  read: Read
  write: {includes: [read]}
quotas:
  general: {limit: 3, per: hour}
  video: {limit: 10, per: hour}
  anonymous: {limit: 2, per: minute, by: address, only: anonymous}
plans:
  pro: {general: 100}
routes:
  - GET /public/**: {public: true, quotas: [anonymous]}
  - GET /items/**: {scopes: [read]}
  - POST /items/**: {all_scopes: [read, write]}
  - GET /counted/**: {quotas: [general, {quota: video, cost: 4}]}
  - "* /o/{org}/e/{env}/**": {tenant: org, environment: env}
  - "* /live/**": {environments: [live], pass_through: false}
  - "* /sessions/**": {pass_through: only}
  - POST /signin: {public: true, pass_through: only}
  - GET /me: {respond: {id: "{key.id}"}}
  - LIST|mirror /named/**: {scopes: [write]}
  - "* /named/**": {scopes: [read]}
identity:
  headers: {X-Key: "{key.id}", X-Name: "{key.name}", X-Trace: "{request.id}"}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """One gate, and all that it asks."""

    gate: Gate
    responses: ErrorResponses
    store: SqliteStore
    hasher: Hasher
    clock: Clock
    grace: Grace
    folder: Path

    async def issue(self, *scopes: str, prefix: str = "hv_live_", **changes: Any) -> tuple[str, ApiKey]:
        """A stored key and its plaintext."""
        text = KeyFormat().make(prefix, random.Random(next(_SEEDS)).randrange)  # noqa: S311 - no secret is guarded
        digest, algorithm = self.hasher.for_new(text)
        environment = changes.pop("environment", prefix.split("_")[1])
        key = a_key(text, digest=digest, algorithm=algorithm, scopes=scopes, environment=environment, **changes)
        await self.store.keys.add([key], actor=ANN)
        return text, key

    def move_store(self) -> None:
        """Make the store unavailable or, if it is, available again."""
        place, away = (self.folder / name for name in ("keys.db", "moved.db"))
        if away.exists():
            away.rename(place)
        else:
            place.rename(away)

    async def decide(
        self, method: str, target: str, *, key: str = "", peer: str = "198.51.100.7", **headers: str
    ) -> Decision:
        fields = [(name.replace("_", "-"), value) for name, value in headers.items()]
        if key:
            fields.append(("Authorization", f"Bearer {key}"))
        raw = tuple((name.encode(), value.encode("latin-1")) for name, value in (("Host", "api.test"), *fields))
        return await self.gate.decide(RequestHead(method=method, target=target, headers=raw, peer=peer))

    async def allows(self, method: str, target: str, **more: Any) -> Allow:
        decision = await self.decide(method, target, **more)
        assert isinstance(decision, Allow), decision
        return decision

    async def denies(self, method: str, target: str, **more: Any) -> Deny:
        decision = await self.decide(method, target, **more)
        assert isinstance(decision, Deny), decision
        return decision


_SEEDS = itertools.count(1)


async def make_world(folder: Path, config: str = CONFIG, *, grace: float = 0) -> World:
    """A world of its own, with its store in `folder`, which is to be closed. grace: as store.grace, in seconds of the
    clock."""
    clock, hasher = Clock(), Hasher([Pepper.of(b"pepper for tests")])
    store = await new_store(str(folder / "keys.db"), clock=clock)
    ids = itertools.count(1)
    settings = _settings(config)
    lasting = Grace(store.keys, grace, time=clock.monotonic)
    gate = Gate(
        settings,
        KeyCache(store.keys, size=100, grace=lasting),
        MemoryLimiter(),
        hasher=hasher,
        clock=clock,
        new_request_id=lambda: f"made-{next(ids)}",
    )
    return World(
        gate=gate, responses=responses(settings), store=store, hasher=hasher, clock=clock, grace=lasting, folder=folder
    )


@cache
def _settings(config: str) -> Config:
    with TemporaryDirectory() as folder:
        file = Path(folder, "sidecar.yaml")
        file.write_text(config, encoding="utf-8")
        return load(str(file), environ={})
