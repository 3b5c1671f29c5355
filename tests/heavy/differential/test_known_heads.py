"""Two sidecars over one store, one without known requests: they are indistinguishable."""

import itertools
import json
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.app import REMEMBERS
from tests.harness.keys import IssuedKey
from tests.harness.recording import Recorded, Upstream
from tests.harness.running import Sidecar, StartSidecar
from tests.harness.wire import ConnectionClosed, Response
from tests.heavy.fuzz.budget import budget
from tests.heavy.fuzz.mutations import cut, mutated
from tests.unit.proxy.test_known_heads import ODD, USUAL
from tests.wire.corpus.stage import untroubled

CONFIG = """\
listen: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:unused.db
ops: 127.0.0.1:0
access_log: {format: json}
keys:
  from: [{header: Authorization, scheme: Bearer}, {header: X-Api-Key}]
  environments: {live: hv_live_, test: hv_test_}
  failures: {limit: 1000000, per: minute}
scopes: {read: Read, write: {includes: [read]}}
quotas: {general: {limit: 60, per: hour}, video: {limit: 40, per: day}}
routes:
  - "* /public/**": {public: true}
  - GET /items/**: {scopes: [read], quotas: [general]}
  - POST /items/**: {all_scopes: [read, write]}
  - GET /counted/**: {quotas: [general, {quota: video, cost: 2}]}
  - "* /o/{org}/e/{env}/**": {tenant: org, environment: env}
  - GET /me: {quotas: [general], respond: {id: "{key.id}", left: "{quotas}"}}
cors: {origins: ["https://app.test"]}
identity:
  headers: {X-Key: "{key.id}", X-Trace: "{request.id}"}
"""
PATIENCE_SECONDS = 0.3
"""For a response to what is not a whole request."""
RELOADED = (
    CONFIG.replace("scopes: [read], quotas: [general]", "scopes: [write]").replace(
        "  headers: {X-Key", "  would_deny: X-Would-Deny\n  headers: {X-Key"
    )
    + "mode: observe\n"
)
_OF_TIME = re.compile(
    r"_(seconds_(bucket|sum)|created|timestamp_seconds)\b|^(process|python|sidecar_store)_|_in_flight|last_reload"
)
_LOOKUPS = 'sidecar_store_seconds_count{operation="find"}'
_HITS = 'sidecar_key_cache_total{result="hit"}'
_SECONDS = re.compile(r"\bt=\d+")
"""Of RateLimit: until it resets."""
_IDS = re.compile(rb"(?im)^(x-request-id|x-trace): [^\r]*\r\n")
SEED = b"GET /items/7 HTTP/1.1\r\nHost: api.test\r\nX-Api-Key: <key>\r\nX-Request-Id: a\r\n\r\n"
STEPS = st.lists(
    st.one_of(
        st.lists(st.one_of(USUAL, USUAL, USUAL, ODD), min_size=1, max_size=3),
        st.lists(mutated([SEED]), min_size=1, max_size=1),
        st.sampled_from(["revoke", "reload", "issue"]),
    ),
    min_size=2,
    max_size=6,
)


@dataclass(slots=True)
class Twins:
    sidecars: tuple[Sidecar, Sidecar]
    upstream: Upstream
    key: IssuedKey
    reloads: int = 0

    def ask(self, requests: list[bytes], places: list[int]) -> tuple[tuple[list[object], list[object]], ...]:
        """What the client and the upstream of each sidecar saw."""
        return tuple(self._ask(sidecar, requests, places) for sidecar in self.sidecars)

    def _ask(self, sidecar: Sidecar, requests: list[bytes], places: list[int]) -> tuple[list[object], list[object]]:
        responses: list[object] = []
        with sidecar.connect() as connection:
            connection.lose_patience(PATIENCE_SECONDS)
            for raw in requests:
                try:
                    for segment in cut(raw, places):
                        connection.send(segment)
                    responses.append(_told(connection.receive(head_only=raw.startswith(b"HEAD "))))
                except (ConnectionClosed, ConnectionError, TimeoutError) as end:
                    responses.append("nothing more" if isinstance(end, TimeoutError) else "closed")
                    break
        seen = [_seen(each) for each in self.upstream.requests()]
        self.upstream.clear()
        return responses, seen

    def happen(self, event: str) -> None:
        keys = self.sidecars[0].keys
        if event == "revoke":
            keys.told("revoke", self.key.id)
        if event in ("revoke", "issue"):
            self.key = keys.issue("another", scopes=("write",), tenant="acme", environment="live")
            return
        self.reloads += 1
        for sidecar in self.sidecars:
            sidecar.keys.config.write_text(RELOADED if self.reloads % 2 else CONFIG, encoding="utf-8")
            sidecar.process.signal(signal.SIGHUP)
        for sidecar in self.sidecars:
            assert sidecar.process.stderr.wait_for(_after(self.reloads - 1, "is in force")) is not None


def _after(times: int, words: str) -> Callable[[str], bool]:
    """Whether a line has the words, after as many others with them."""
    met = itertools.count()
    return lambda line: words in line and next(met) == times


def _told(response: Response) -> object:
    timed = ("x-request-id", "date", "retry-after")
    kept = [(name, _SECONDS.sub("", value)) for name, value in response.headers if name.lower() not in timed]
    return response.status, kept, response.body, response.interim


def _seen(each: Recorded) -> object:
    return _IDS.sub(b"", each.head), each.body, each.malformed


@pytest.fixture(scope="module")
def twins(
    start_shared_sidecar: StartSidecar, upstream_process: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Twins]:
    store = tmp_path_factory.mktemp("twins") / "keys.db"
    knowing = start_shared_sidecar(CONFIG, store=store)
    other = start_shared_sidecar(CONFIG, store=store, environ={REMEMBERS: "off"})
    key = knowing.keys.issue("first", scopes=("write",), tenant="acme", environment="live")
    upstream_process.clear()
    yield Twins((knowing, other), upstream_process, key)


def counted(sidecar: Sidecar) -> dict[str, float]:
    samples = [line.rpartition(" ") for line in sidecar.metrics().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in samples if not _OF_TIME.search(name) or name == _LOOKUPS}


def logged(sidecar: Sidecar) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in sidecar.process.stdout.all()]
    # Each reloads in its own time, and `config` says by which one a request ended.
    timed = {"time", "request_id", "seconds", "upstream_seconds", "config"}
    return [{name: value for name, value in line.items() if name not in timed} for line in lines]


@budget(30)
@given(steps=STEPS, places=st.lists(st.integers(0, 400), max_size=1))
def test_caching_changes_nothing_but_speed(twins: Twins, steps: list[Any], places: list[int]) -> None:
    for step in steps:
        if isinstance(step, str):
            twins.happen(step)
            continue
        for _ in range(2):  # The second time, its lines are known.
            requests = [raw.replace(b"<key>", twins.key.text.encode()) for raw in step]
            knowing, other = twins.ask(requests, places)
            assert knowing == other, requests


def test_afterwards_metrics_and_logs_are_the_same(twins: Twins) -> None:
    knowing, other = twins.sidecars
    known, plain = counted(knowing), counted(other)
    # What is observed is decided on once more on the longer way, which looks for its key again.
    assert known.pop(_HITS) >= plain.pop(_HITS) > 0
    assert known == plain
    assert any(name.startswith("sidecar_would_deny_total") for name in known)
    for sidecar in twins.sidecars:
        untroubled(sidecar)
        assert sidecar.stop() == 0
    assert logged(knowing) == logged(other)
    assert len(logged(knowing)) > 30
