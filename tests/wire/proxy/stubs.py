"""Ports of the data path for its tests: a gate that allows everything, and a recording observer."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from sidecar.config.build.config import Config
from sidecar.config.load import load
from sidecar.core.apikey import Hasher
from sidecar.core.errors import Reason, UpstreamCause, status_of
from sidecar.core.headers import HOP_BY_HOP
from sidecar.core.model import (
    Allow,
    ApiKey,
    Decision,
    Deny,
    Headers,
    Policy,
    Principal,
    QuotaState,
    RequestHead,
    Response,
    Route,
    StaticResponse,
)
from sidecar.core.observer import Forwarding, UpstreamName
from sidecar.gate.gate import Gate
from sidecar.gate.requests import Understood
from sidecar.limiter.memory import MemoryLimiter
from sidecar.runtime.tasks import SystemClock

_STRIPPED = HOP_BY_HOP | {b"host", b"content-length", b"expect"}
_ROUTE = Route(name="* /**", methods=frozenset({"*"}), pattern="/**", policy=Policy(public=True))
_RESPOND = Route(
    name="GET /me", methods=frozenset({"GET"}), pattern="/me", policy=Policy(respond=StaticResponse(body={"me": True}))
)


_KEY = ApiKey(id="k", name="k", prefix="k", digest=b"k", algorithm="sha256", created_at=0, created_by="t")


CONFIG = """\
listen: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:unused.db
ops: 127.0.0.1:0
keys: {from: [{header: X-Unused}], environments: {live: hv_live_}}
routes:
  - "* /**": {public: true}
"""


class OpenGate(Gate):
    """Allows everything, except that it refuses /denied, answers /me itself, and raises at /broken.

    Known requests get the same decisions.
    """

    def __init__(self) -> None:
        super().__init__(
            _config(),
            _NoKeys(),
            MemoryLimiter(),
            hasher=Hasher([]),
            clock=SystemClock(),
            new_request_id=lambda: "r",
        )
        self.fallen_for: Reason | None = None
        """Why the only key is no longer valid."""

    narrowed_for: Reason | None = None
    """Why it is no longer allowed to do what it could, although it is valid."""

    async def revalidate(self, key: ApiKey) -> ApiKey | Reason:
        return self.fallen_for or replace(key, scopes=("others",))

    def reauthorize(self, head: RequestHead, allow: Allow, key: ApiKey) -> Reason | None:
        assert key.scopes == ("others",)
        return self.narrowed_for

    async def decide(self, head: RequestHead, *, remove_copies: bool = True) -> Decision:
        return self._decision(head)

    def decide_now(self, head: RequestHead, understood: Understood) -> Decision:
        return self._decision(head)

    def _decision(self, head: RequestHead) -> Decision:
        if head.target.startswith("/denied"):
            return Deny(reason=Reason.MISSING_CREDENTIAL, request_id="r", client_address=head.peer)
        if head.target == "/broken":
            raise RuntimeError(f"secret {head.target}")
        kept = tuple(pair for pair in head.headers if pair[0].lower() not in _STRIPPED)
        host = next((value for name, value in head.headers if name.lower() == b"host"), b"")
        return Allow(
            route=_RESPOND if head.target == "/me" else _ROUTE,
            principal=None if head.target.startswith("/public") else Principal(key=_KEY, scopes=frozenset()),
            target=head.target,
            headers=kept,
            host=host,
            request_id="r",
            client_address=head.peer,
        )


@cache
def _config() -> Config:
    with TemporaryDirectory() as folder:
        (file := Path(folder, "sidecar.yaml")).write_text(CONFIG, encoding="utf-8")
        return load(str(file), environ={})


class _NoKeys:
    def peek(self, secret_digest: bytes) -> None:
        """Knows no key."""

    def uncount(self, found: object) -> None:
        """Nothing is counted."""

    def remembers(self, secret_digest: bytes) -> bool:
        return False

    async def find(self, secret_digest: bytes, candidates: object) -> None:
        """Finds no key."""


@dataclass
class OpenResponses:
    """Responses whose body is only the reason."""

    told: Headers = ()
    """Fields added to the upstream's responses."""

    def denied(self, deny: Deny, now: float) -> Response:
        return self.for_reason(deny.reason)

    def static_response(self, allow: Allow, response: StaticResponse, now: float) -> Response:
        return Response(status=200, headers=((b"Content-Type", b"application/json"),), body=b'{"me":true}')

    def fault(self, reason: Reason, allow: Allow, now: float) -> Response:
        return self.for_reason(reason)

    def for_reason(self, reason: Reason) -> Response:
        return Response(status=status_of(reason), headers=((b"Cache-Control", b"no-store"),), body=reason.encode())

    def client_headers(self, principal: Principal | None, states: Sequence[QuotaState], now: float) -> Headers:
        return self.told


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What the observer received about one request."""

    target: str
    status: int
    reason: Reason | None
    cause: UpstreamCause | None
    bytes_in: int
    bytes_out: int
    seconds: float
    upstream_seconds: float | None
    decision: Decision | None
    cut: bool = False


@dataclass
class Records:
    """An observer that records."""

    keep: bool = True
    in_flight: int = 0
    finished_ones: list[Record] = field(default_factory=list)
    malformed_ones: list[tuple[int, Reason]] = field(default_factory=list)
    turned: list[str] = field(default_factory=list)
    internal_errors: int = 0

    def begun(self) -> None:
        self.in_flight += 1

    def forwarding(self, head: RequestHead, upstream: UpstreamName) -> Forwarding | None:
        return None

    def finished(
        self,
        head: RequestHead,
        decision: Decision | None,
        status: int,
        *,
        seconds: float,
        upstream_seconds: float | None,
        bytes_in: int,
        bytes_out: int,
        reason: Reason | None,
        cause: UpstreamCause | None = None,
        forwarding: Forwarding | None = None,
        request_id: str = "",
        cut: bool = False,
    ) -> None:
        self.in_flight -= 1
        if self.keep:
            self.finished_ones.append(
                Record(
                    target=head.target,
                    status=status,
                    reason=reason,
                    cause=cause,
                    bytes_in=bytes_in,
                    bytes_out=bytes_out,
                    seconds=seconds,
                    upstream_seconds=upstream_seconds,
                    decision=decision,
                    cut=cut,
                )
            )

    def internal_error(self) -> None:
        self.internal_errors += 1

    def connection_refused(self, limit: str) -> None:
        self.turned.append(limit)

    def bad_request(self, status: int, reason: Reason, *, peer: str, request_id: str = "") -> None:
        self.malformed_ones.append((status, reason))
